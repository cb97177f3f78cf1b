"""Dead code: what no output depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import fx

from fxopt.plugin import Edit, Program, is_aten


def dead_nodes(program: Program) -> list[fx.Node]:
    """The nodes that neither an output nor a check depends on, in order."""
    live: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node in live or _always_live(node):
            live.add(node)
            live.update(node.all_input_nodes)
    return [node for node in program.graph.nodes if node not in live]


def dead_code(program: Program) -> Iterator[str]:
    """A line per dead node."""
    for node in dead_nodes(program):
        yield f"%{node.name} is used by no output"


def remove_dead(program: Program, edit: Edit) -> Counter[str]:
    """Removes dead nodes: the last of each dead chain, and with it the editor takes the rest.

    Random operations go too: random numbers that nobody uses are no part of the outputs.
    """
    dead = dead_nodes(program)
    for node in [node for node in dead if not node.users]:
        edit.remove(node)
    return Counter(dead=0 if edit.exhausted else len(dead))


def _always_live(node: fx.Node) -> bool:
    """Inputs, the output, and operations that return nothing, which are there for their effect."""
    if node.op in ("placeholder", "output"):
        return True
    return is_aten(node.target) and not node.target._schema.returns  # type: ignore[union-attr]
