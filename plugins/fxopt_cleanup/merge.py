"""Common subexpressions: what is computed twice from the same values is computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fxopt.plugin import Edit, Program, is_random
from fxopt_cleanup.memory import escapes

# Modules whose second call differs from the first one, in training at least: they draw random
# numbers, or update statistics.
_STATEFUL = (
    _DropoutNd, _NormBase, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d,
    nn.MultiheadAttention, nn.RNNBase,
)  # fmt: skip


def repeated(program: Program) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs of a node and an earlier one that yields the same value.

    The consumer may redirect the users of the first to the second while it iterates.
    """
    first: dict[Hashable, fx.Node] = {}
    for node in program.nodes:
        key = _key(program, node)
        if key is None:
            continue
        earlier = first.setdefault(key, node)
        if earlier is not node and not _both_returned(program, node, earlier):
            yield node, earlier


def common_subexpressions(program: Program) -> Iterator[str]:
    """A line per node that repeats an earlier one."""
    for node, earlier in repeated(program):
        yield f"%{node.name} repeats %{earlier.name}"


def merge_common(program: Program, edit: Edit) -> Counter[str]:
    """Lets the users of a repeated node use the earlier one."""
    counts: Counter[str] = Counter()
    for node, earlier in repeated(program):
        if edit.exhausted:
            break
        edit.redirect(node, earlier)
        counts["merged"] += 1
    return counts


def _key(program: Program, node: fx.Node) -> Hashable | None:
    """What determines the value of a node; None where equal calls may differ."""
    if node.op == "get_attr":
        return ("tensor", id(program.tensor(node)))
    if node.op == "call_module":
        leaf = program.leaf(node)
        return (id(leaf), *_arguments(node)) if _repeatable(leaf) else None
    if node.op == "call_function" and not is_random(node):
        return (node.target, *_arguments(node))
    return None


def _repeatable(leaf: nn.Module) -> bool:
    standard = type(leaf).__module__.startswith("torch.nn.modules.")
    return standard and not isinstance(leaf, _STATEFUL)


def _arguments(node: fx.Node) -> tuple[Hashable, Hashable]:
    return _frozen(node.args), _frozen(node.kwargs)


def _frozen(value: Any) -> Hashable:
    """A hashable form that tells 1, 1.0, True and -0.0 from each other."""
    if isinstance(value, (tuple, list)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in sorted(value.items()))
    if isinstance(value, slice):
        return ("slice", _frozen((value.start, value.stop, value.step)))
    if isinstance(value, fx.Node):
        return value
    return repr(value)


def _both_returned(program: Program, node: fx.Node, earlier: fx.Node) -> bool:
    """Whether the user could see that two results share memory which had their own."""
    own_memory = node.op != "get_attr"
    return own_memory and escapes(program, node) and escapes(program, earlier)
