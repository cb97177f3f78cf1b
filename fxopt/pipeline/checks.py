"""What the result of a pass must keep besides the invariants: interface, values, tidiness."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxopt.ir import Program
from fxopt.ir.shapes import infer
from fxopt.ir.text import describe_value
from fxopt.pipeline.identity import describe_node

Check = Callable[[Program, Program], Iterator[str]]


def interface_is_kept(before: Program, after: Program) -> Iterator[str]:
    """The program is called as before: same nesting, inputs of the same shapes and dtypes."""
    if before.signature != after.signature:
        yield "the signature is another one"
    old, new = _inputs(before), _inputs(after)
    if old != new:
        yield f"the inputs are {', '.join(new)}, and were {', '.join(old)}"


def nothing_dangles(before: Program, after: Program) -> Iterator[str]:
    """No node is left behind whose result nothing uses; unused nodes of before may stay."""
    dead = {node.name for node in before.graph.nodes if not node.users}
    for node in after.graph.nodes:
        idle = not node.users and node.op not in ("placeholder", "output")
        if idle and node.name not in dead:
            yield f"%{node.name} is left dangling: nothing uses it"


def modes_are_kept(before: Program, after: Program) -> Iterator[str]:
    """Modules are in train or eval mode as before, new ones as the whole program."""
    old = {name: m.training for name, m in before.module.named_modules(remove_duplicate=False)}
    for node in after.graph.nodes:
        if node.op != "call_module":
            continue
        wanted = old.get(str(node.target), before.module.training)
        if any(module.training != wanted for module in after.leaf(node).modules()):
            yield f"{node.target} is left in {'eval' if wanted else 'train'} mode"


def new_modules_can_be_copied(before: Program, after: Program) -> Iterator[str]:
    """Whatever runs next works on a copy, so a module that a pass adds must have one."""
    old = {str(name): type(m) for name, m in before.module.named_modules(remove_duplicate=False)}
    for node in after.graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or old.get(name) is type(after.leaf(node)):
            continue
        try:
            copy.deepcopy(after.leaf(node))
        except Exception as error:  # noqa: BLE001 - a module of a plugin may raise anything
            yield f"{name} cannot be copied: {type(error).__name__}: {error}"


def values_are_right(before: Program, after: Program) -> Iterator[str]:
    """``meta["val"]`` is what the node yields, wherever a node or one of its inputs changed."""
    known = {describe_node(before, node) for node in before.graph.nodes}
    changed = {node for node in after.graph.nodes if describe_node(after, node) not in known}
    yield from _first_wrong_value(
        after,
        (n for n in after.graph.nodes if n in changed or not changed.isdisjoint(n.all_input_nodes)),
    )


def all_values_are_right(before: Program, after: Program) -> Iterator[str]:
    """``meta["val"]`` of every node is what the node yields."""
    yield from _first_wrong_value(after, after.graph.nodes)


CHECKS: tuple[Check, ...] = (
    interface_is_kept,
    nothing_dangles,
    modes_are_kept,
    new_modules_can_be_copied,
)


def _inputs(program: Program) -> list[str]:
    return [f"{node.name} {describe_value(node.meta.get('val'))}" for node in program.inputs]


def _first_wrong_value(program: Program, nodes: Iterable[fx.Node]) -> Iterator[str]:
    """Only the first one: what the next nodes yield would be inferred from it."""
    for node in nodes:
        if node.op in ("placeholder", "output"):
            continue
        claimed, real = node.meta["val"], infer(program.module, node)
        if not _agree(claimed, real):
            found, wanted = describe_value(claimed), describe_value(real)
            yield f'meta["val"] of %{node.name} is {found}, but the node yields {wanted}'
            return


def _agree(claimed: Any, real: Any) -> bool:
    if isinstance(real, torch.Tensor):
        return (
            isinstance(claimed, torch.Tensor)
            and claimed.dtype == real.dtype
            and len(claimed.shape) == len(real.shape)
            and all(map(_same_size, claimed.shape, real.shape))
        )
    if isinstance(real, (tuple, list)):
        return (
            isinstance(claimed, (tuple, list))
            and len(claimed) == len(real)
            and all(map(_agree, claimed, real))
        )
    if isinstance(real, (int, torch.SymInt)):
        return isinstance(claimed, (int, torch.SymInt)) and _same_size(claimed, real)
    return str(claimed) == str(real)


def _same_size(claimed: Any, real: Any) -> bool:
    """Whether two sizes are the same for every batch; without adding guards."""
    if str(claimed) == str(real) or _is_unbacked(claimed) or _is_unbacked(real):
        return True
    return statically_known_true(claimed == real)


def _is_unbacked(size: Any) -> bool:
    """Whether a size depends on data: each inference gives such a one another symbol."""
    return re.search(r"\bu\d+", str(size)) is not None
