"""No-ops: operations that return their argument unchanged in inference, as a table of rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _ConstantPadNd

from fxopt.plugin import Edit, LeafModule, Program
from fxopt_cleanup import layout
from fxopt_cleanup.memory import argument, escapes, operand, same_kind

aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """One kind of no-op.

    Attributes:
        name: For the counts in the report.
        targets: Operator overloads, or classes of modules.
        source: The node whose value a call of a target yields; None where it is no no-op.
        fresh: Whether a call gives its result memory of its own.
    """

    name: str
    targets: tuple[Any, ...]
    source: Callable[[Program, fx.Node], fx.Node | None]
    fresh: bool = False


def _same_kind(program: Program, node: fx.Node) -> fx.Node | None:
    """For what can only keep all elements in place, or change shape, dtype or device."""
    source = operand(node)
    return source if source is not None and same_kind(source, node) else None


def _cast(program: Program, node: fx.Node) -> fx.Node | None:
    requested = node.kwargs.get("memory_format")
    return _same_kind(program, node) if requested in (None, torch.preserve_format) else None


def _inactive_module(program: Program, node: fx.Node) -> fx.Node | None:
    return None if program.leaf(node).training else operand(node)


def _inactive_dropout(program: Program, node: fx.Node) -> fx.Node | None:
    off = argument(node, "train") is False or argument(node, "p") == 0.0
    return operand(node) if off else None


def _returns_its_input(program: Program, node: fx.Node) -> fx.Node | None:
    """For modules like stochastic depth: not torch's, without state, and active in training only.

    They are run on a fake tensor, which has no data that the answer could depend on: what
    returns the very object that it was given returns it always.
    """
    leaf, source = program.leaf(node), operand(node)
    if leaf.training or isinstance(leaf, LeafModule) or source is None or _has_state(leaf):
        return None
    if (
        type(leaf).__module__.startswith("torch.nn.modules.")
        or len(node.args) + len(node.kwargs) > 1
    ):
        return None
    value = source.meta["val"]
    try:
        returned = leaf(value)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None  # it looks at the data, or at what a fake tensor does not have
    return source if returned is value else None


def _has_state(leaf: nn.Module) -> bool:
    return any(True for _ in leaf.parameters()) or any(True for _ in leaf.buffers())


def _neutral(number: int) -> Callable[[Program, fx.Node], fx.Node | None]:
    """For arithmetic with the number that changes nothing (but the sign of a zero)."""

    def source(program: Program, node: fx.Node) -> fx.Node | None:
        other = node.args[1] if len(node.args) > 1 else None
        plain = isinstance(other, (int, float)) and other == number
        return _same_kind(program, node) if plain else None

    return source


def _no_padding(program: Program, node: fx.Node) -> fx.Node | None:
    padding = node.args[1]
    assert isinstance(padding, (tuple, list))
    return operand(node) if all(isinstance(p, int) and p == 0 for p in padding) else None


def _no_padding_module(program: Program, node: fx.Node) -> fx.Node | None:
    padding: Any = program.leaf(node).padding
    return operand(node) if not any(padding) else None


def _single(program: Program, node: fx.Node) -> fx.Node | None:
    """For a concatenation of one tensor."""
    tensors = node.args[0]
    assert isinstance(tensors, (tuple, list))
    only = tensors[0] if len(tensors) == 1 else None
    return only if isinstance(only, fx.Node) and same_kind(only, node) else None


def _undone_permutation(program: Program, node: fx.Node) -> fx.Node | None:
    """For permutations that, with those before them, leave every dimension in place."""
    order, current = _order(node), node
    while order is not None:
        source = operand(current)
        if source is None:
            return None
        if order == tuple(range(len(order))):
            return source
        current, inner = source, _order(source)
        order = None if inner is None else tuple(inner[dim] for dim in order)
    return None


def _order(node: fx.Node) -> tuple[int, ...] | None:
    """Which dimension of its argument each dimension of a permutation is."""
    if node.target not in _PERMUTATIONS:
        return None
    dims = list(range(node.meta["val"].dim()))
    if node.target is aten.permute.default:
        return tuple(dims[dim] for dim in argument(node, "dims"))
    if node.target is aten.t.default:
        return tuple(reversed(dims))
    first, second = (
        argument(node, name) if isinstance(name, str) else name for name in _SWAPS[node.target]
    )
    dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


# Which dimensions change places, or the arguments that say so.
_SWAPS: dict[Any, tuple[Any, Any]] = {
    aten.transpose.int: ("dim0", "dim1"),
    aten.swapaxes.default: ("axis0", "axis1"),
    aten.mT.default: (-2, -1),
}
_PERMUTATIONS = (aten.permute.default, aten.t.default, *_SWAPS)
_CASTS = (
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default,
)  # fmt: skip
_WHOLE = (
    aten.detach.default, aten.alias.default, aten.lift_fresh.default, aten.expand.default,
    aten.expand_as.default, aten.broadcast_to.default, aten.slice.Tensor, aten.narrow.default,
)  # fmt: skip
_WHOLE_COPIED = (
    aten.lift_fresh_copy.default, aten.repeat.default, aten.tile.default,
    # with as many outputs as inputs, each window is one element
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)  # fmt: skip
_DROPOUTS = (
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
)  # fmt: skip
_SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
_PRODUCTS = (
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.pow.Tensor_Scalar,
)  # fmt: skip

RULES: tuple[Rule, ...] = (
    Rule("dropout", (_DropoutNd,), _inactive_module),
    Rule("dropout", _DROPOUTS, _inactive_dropout),
    Rule("identity", (nn.Identity,), _same_kind),
    Rule("cast", _CASTS, _cast),
    Rule("cast", (aten._to_copy.default,), _cast, fresh=True),
    Rule("whole", _WHOLE, _same_kind),
    Rule("whole", _WHOLE_COPIED, _same_kind, fresh=True),
    Rule("permute", _PERMUTATIONS, _undone_permutation),
    Rule("neutral", _SUMS, _neutral(0), fresh=True),
    Rule("neutral", _PRODUCTS, _neutral(1), fresh=True),
    Rule("pad", (aten.constant_pad_nd.default, aten.pad.default), _no_padding, fresh=True),
    Rule("pad", (_ConstantPadNd,), _no_padding_module, fresh=True),
    Rule("concat", (aten.cat.default,), _single, fresh=True),
    Rule("reshape", layout.RESHAPES, layout.undone_reshape),
    Rule("copy", layout.COPIES, layout.needless_copy, fresh=True),
    # last, for any module: nothing above has claimed it
    Rule("training only", (nn.Module,), _returns_its_input),
)


def find_noops(program: Program) -> Iterator[tuple[fx.Node, fx.Node, Rule]]:
    """No-ops, in order: the node, the one that yields the same value, and the rule.

    The consumer may redirect the users of the first to the second while it iterates.
    """
    for node in program.nodes:
        rule = _rule_of(program, node)
        source = rule.source(program, node) if rule and node.users else None
        if rule is None or source is None:
            continue
        if not (rule.fresh and _shows(program, node, source)):
            yield node, source, rule


def no_operations(program: Program) -> Iterator[str]:
    """A line per no-op."""
    for node, source, _ in find_noops(program):
        yield f"%{node.name} yields what %{source.name} does"


def remove_noops(program: Program, edit: Edit) -> Counter[str]:
    """Lets the users of a no-op use its argument."""
    counts: Counter[str] = Counter()
    for node, source, rule in find_noops(program):
        if edit.exhausted:
            break
        if rule.fresh or rule.targets is layout.RESHAPES:
            counts["views to reshapes"] += layout.relax_views(program, edit, node, source)
        if edit.exhausted:
            break
        edit.redirect(node, source)
        counts[rule.name] += 1
    return counts


def _shows(program: Program, node: fx.Node, source: fx.Node) -> bool:
    """Whether the user, or a later operation, can tell a result from a copy of it."""
    return escapes(program, node) or not layout.layout_is_free(program, node, source)


def _rule_of(program: Program, node: fx.Node) -> Rule | None:
    if node.op == "call_function":
        return _BY_FUNCTION.get(node.target)
    if node.op != "call_module":
        return None
    leaf = program.leaf(node)
    return next(rule for classes, rule in _BY_CLASS if isinstance(leaf, classes))


_BY_FUNCTION: dict[Any, Rule] = {
    target: rule for rule in RULES for target in rule.targets if not isinstance(target, type)
}
_BY_CLASS: list[tuple[tuple[type, ...], Rule]] = [
    (classes, rule)
    for rule in RULES
    if (classes := tuple(target for target in rule.targets if isinstance(target, type)))
]
