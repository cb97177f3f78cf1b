"""Operations that affect the layout of memory, and when they may go.

A call of ``contiguous`` is a no-op in value, but ``view`` needs memory in order, and the user may
call the module with another layout (channels last) than the one that was captured. So what may
change the layout goes only where nothing after it can tell; a ``view`` that could fail then
becomes a ``reshape``, which is the same wherever the ``view`` works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Edit, Program
from fxopt_cleanup.memory import operand, same_kind

aten = torch.ops.aten

COPIES = (aten.contiguous.default, aten.clone.default)

# Reshapes that keep the order of elements. The second kind copies where a view is impossible.
_VIEWS = (
    aten.view.default, aten.view_as.default, aten.unflatten.int, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
)  # fmt: skip
_COPYING = (
    aten.reshape.default, aten.reshape_as.default, aten.flatten.using_ints,
    aten._unsafe_view.default,
)  # fmt: skip
RESHAPES = (*_VIEWS, *_COPYING)

# What a view that needs memory in order becomes.
_RELAXED: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.view_as.default: aten.reshape_as.default,
    aten.unflatten.int: None,  # views as it is, and there is no form of it that copies
}
# Operations that look at strides themselves.
_STRICT = {
    aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten.sym_stride.int,
    aten.sym_storage_offset.default, aten.is_contiguous.default, aten._reshape_alias.default,
    *(target for target, relaxed in _RELAXED.items() if relaxed is None),
}  # fmt: skip
# Operations whose results have the same layout whatever that of their arguments is.
_FRESH = {
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.linear.default,
    aten.embedding.default, aten.layer_norm.default,
}  # fmt: skip
_FRESH_MODULES = (nn.Linear, nn.LayerNorm, nn.Embedding)


@dataclass
class _After:
    """What the layout of a node's result may reach: through all but operations with their own.

    Attributes:
        views: Views that need memory in order.
        strict: Whether something looks at strides.
        returned: Whether a result of the program may have another layout.
    """

    views: list[fx.Node] = field(default_factory=list)
    strict: bool = False
    returned: bool = False


def layout_is_free(program: Program, node: fx.Node, source: fx.Node) -> bool:
    """Whether ``source`` may stand for ``node`` though its layout may be another one.

    What the program returns keeps at least the layout that it had at capture.
    """
    after = _after(program, node)
    if after.strict:
        return False
    asked_for = node.target in COPIES
    return not after.returned or (not asked_for and _same_strides(source, node))


def is_seen(program: Program, node: fx.Node) -> bool:
    """Whether what comes after ``node``, or who gets the results, can tell its layout."""
    after = _after(program, node)
    return after.strict or after.returned or bool(after.views)


def undone_reshape(program: Program, node: fx.Node) -> fx.Node | None:
    """The nearest node before a chain of reshapes that has the shape of ``node``."""
    chain, source = [node], operand(node)
    while source is not None and not same_kind(source, node):
        if source.target not in RESHAPES:
            return None
        chain.append(source)
        source = operand(source)
    if source is None or len(chain) == 1:
        return source  # to its own shape anything can be viewed
    copied = any(link.target in _COPYING for link in chain)
    return source if not copied or layout_is_free(program, node, source) else None


def needless_copy(program: Program, node: fx.Node) -> fx.Node | None:
    """The argument of a copy that no later operation needs.

    One that really moves memory goes only where a reshape follows, which moves it anyway; it may
    well be there for the speed of what follows.
    """
    source, wanted = operand(node), node.kwargs.get("memory_format")
    if source is None or not same_kind(source, node):
        return None
    if node.target is aten.clone.default and wanted in (None, torch.preserve_format):
        return source if layout_is_free(program, node, source) else None
    if wanted not in (None, torch.contiguous_format):
        return None
    settled = source.meta["val"].is_contiguous() or _only_reshaped(node)
    return source if settled and layout_is_free(program, node, source) else None


def relax_views(program: Program, edit: Edit, node: fx.Node, source: fx.Node) -> int:
    """Turns each view that may fail with ``source`` for ``node`` into one that copies if need be.

    Returns:
        How many were turned.
    """
    count = 0
    if node.target in RESHAPES and source is operand(node):
        return count  # to its own shape: the layout is the same
    for view in _after(program, node).views:
        if edit.exhausted:
            break
        relaxed = _RELAXED[view.target]
        edit.replace(view, relaxed, *view.args, **view.kwargs)
        count += 1
    return count


def _after(program: Program, node: fx.Node) -> _After:
    after, pending, seen = _After(), [node], {node}
    while pending:
        for user in pending.pop().users:
            replaced = not user.users and user.op != "output"  # stays until the edit ends
            if user in seen or replaced:
                continue
            seen.add(user)
            after.returned |= user.op == "output"
            after.strict |= user.target in _STRICT
            if _RELAXED.get(user.target) is not None:
                after.views.append(user)
            if not _has_own_layout(program, user):
                pending.append(user)
    return after


def _has_own_layout(program: Program, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(program.leaf(node), _FRESH_MODULES)
    return node.target in _FRESH


def _same_strides(first: fx.Node, second: fx.Node) -> bool:
    a, b = first.meta["val"].stride(), second.meta["val"].stride()
    return [str(stride) for stride in a] == [str(stride) for stride in b]


def _only_reshaped(node: fx.Node) -> bool:
    return len(node.users) == 1 and next(iter(node.users)).target in (*_RELAXED, *_COPYING)
