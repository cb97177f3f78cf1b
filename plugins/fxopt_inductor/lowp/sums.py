"""Which int8 layers compute the additions behind them, and write over the other addend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from fxopt_inductor.lowp.form import Form
from fxopt_inductor.lowp.grid import AnyGrid
from fxopt_inductor.lowp.layers import quant_layer
from fxopt_inductor.lowp.moves import moved, works_on_codes
from fxopt_inductor.lowp.tail import GridOf, Sum, Tail, find_sum, find_tail

_DIMS = (0, 2)  # of the layers whose operators can add


@dataclass(frozen=True)
class Planned:
    """An addition that is left to the operator of a layer before it.

    Attributes:
        tail: What that would compute without.
        sum: The addition.
    """

    tail: Tail
    sum: Sum


def plan_sums(module: fx.GraphModule, grid_of: GridOf, form: Form) -> dict[fx.Node, Planned]:
    """The additions that layers compute, by these layers; each addition is there once.

    Args:
        module: Flat, as it was exported.
        grid_of: Tells fake quantizers and their grids.
        form: What the module is rewritten for.
    """
    return _Planner(module, grid_of, form.compiled).run() if form.sums else {}


class _Planner:
    def __init__(self, module: fx.GraphModule, grid_of: GridOf, compiled: bool) -> None:
        self._module = module
        self._grid_of = grid_of
        self._compiled = compiled

    def run(self) -> dict[fx.Node, Planned]:
        found: dict[fx.Node, Planned] = {}
        taken: set[fx.Node] = set()
        for node in self._module.graph.nodes:
            planned = self._plan(node)
            if planned is not None and planned.sum.add not in taken:
                found[node] = planned
                taken.add(planned.sum.add)
        return found

    def _plan(self, node: fx.Node) -> Planned | None:
        layer = quant_layer(self._module, node)
        if layer is None or layer.dims not in _DIMS:
            return None
        tail = find_tail(node, layer, self._grid_of)
        found = find_sum(tail, self._grid_of, self._carried_grid)
        if found is None:
            return None
        # Inductor would write over what is read once more
        if self._compiled and (layer.dims == 0 or self._meet(found.other, node.args[0])):
            return None
        return Planned(tail, found)

    def _carried_grid(self, node: fx.Node) -> AnyGrid | None:
        """The grid on which codes of its value exist, also where those are only moved."""
        grid, sources = self._grid_of(node), self._moved_codes(node)
        if grid is not None or not sources:
            return grid
        found = [self._carried_grid(source) for source in sources]
        return found[0] if all(each == found[0] for each in found) else None

    def _meet(self, one: fx.Node, other: Any) -> bool:
        """Whether codes of two nodes may share memory."""
        return bool(self._origins(one) & self._origins(other))

    def _origins(self, node: fx.Node) -> set[fx.Node]:
        """What was computed before it was rounded and moved."""
        if self._grid_of(node) is not None:
            return self._origins(node.args[0])  # type: ignore[arg-type]
        sources = self._moved_codes(node)
        return set().union(*map(self._origins, sources)) if sources else {node}

    def _moved_codes(self, node: fx.Node) -> list[fx.Node]:
        """What a node moves, if it can move codes."""
        sources = moved(node) if node.op == "call_function" else None
        return sources if sources and works_on_codes(node, self._compiled) else []
