"""Which backend takes which part of a program, and the module that results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxopt.backends import Backend, LoweredModule, Region, cut_region, splice, whole_region
from fxopt.cost import Target
from fxopt.emit import REGION
from fxopt.errors import BackendError
from fxopt.ir import Program


@dataclass(frozen=True)
class Share:
    """What one backend takes of a program.

    Attributes:
        backend: The backend.
        nodes: Names of the nodes, a convex set; None for all.
    """

    backend: Backend
    nodes: frozenset[str] | None = None

    def unsupported(self, program: Program, target: Target) -> str | None:
        """Why the backend cannot take its share of ``program``; None when it can."""
        part = program if self.nodes is None else region_of(program, self).program
        return self.backend.unsupported(part, target)


@dataclass(frozen=True)
class Assignment:
    """Backends for disjoint parts of a program; what no share names runs as it stands.

    Attributes:
        shares: In the order of the program.
    """

    shares: tuple[Share, ...]

    @property
    def label(self) -> str:
        """What reports call it, such as ``openvino`` or ``openvino + inductor``."""
        names = dict.fromkeys(share.backend.label for share in self.shares)
        return " + ".join(names) or "torch"

    @property
    def native(self) -> bool:
        """Whether nothing is lowered at all."""
        return all(share.backend.info.native for share in self.shares)

    @property
    def takes_all(self) -> bool:
        """Whether one backend has the whole program."""
        return len(self.shares) == 1 and self.shares[0].nodes is None

    def placed(self, program: Program) -> tuple[str, ...]:
        """What each backend takes of ``program``, a line a region; empty where one takes all."""
        return tuple(
            _described(program, share.backend.label, share.nodes)
            for share in self.shares
            if share.nodes is not None
        )

    def applied(self, program: Program, target: Target) -> Program:
        """A copy of ``program``, same weights, whose shares run as lowered code.

        Raises:
            BackendError: A share computes nothing, or is no convex set.
        """
        copied = Program(_copy_sharing(program), program.signature, program.notes)
        lowered = [share for share in self.shares if not share.backend.info.native]
        for index, share in enumerate(lowered):
            region = region_of(copied, share)
            module = LoweredModule(region.program, share.backend, target)
            splice(copied, region, module, REGION if len(lowered) == 1 else f"{REGION}_{index}")
        return copied


def whole(backend: Backend) -> Assignment:
    """One backend for the whole program."""
    return Assignment((Share(backend),))


def regions_at_entry(
    program: Program, flat: Sequence[Any]
) -> Iterator[tuple[LoweredModule, tuple[Any, ...]]]:
    """Lowered regions that take inputs of the program alone, with what they are given.

    Args:
        program: As :meth:`Assignment.applied` makes it.
        flat: Its flat inputs.
    """
    given = dict(zip(program.inputs, flat, strict=True))
    for node in program.find(LoweredModule):
        if all(arg in given for arg in node.args):
            leaf = program.leaf(node)
            assert isinstance(leaf, LoweredModule)
            yield leaf, tuple(given[arg] for arg in node.all_input_nodes)


def region_of(program: Program, share: Share) -> Region:
    """The nodes of a share, cut out.

    Raises:
        BackendError: There is nothing to compute, or it is no convex set.
    """
    if share.nodes is None:
        region = whole_region(program)
    else:
        region = cut_region(program, list(_named(program, share.nodes)))
    if region is None or not region.outputs:
        raise BackendError("there is nothing to compute")
    return region


def _described(program: Program, label: str, names: frozenset[str]) -> str:
    operations = [node.name for node in _named(program, names) if node.op.startswith("call_")]
    count = f"{len(operations)} operation{'s' * (len(operations) != 1)}"
    ends = f": %{operations[0]} to %{operations[-1]}" if operations else ""
    return f"{label} {count}{ends}"


def _named(program: Program, names: frozenset[str]) -> Iterator[torch.fx.Node]:
    return (node for node in program.nodes if node.name in names)


def _copy_sharing(program: Program) -> torch.fx.GraphModule:
    """A copy whose graph may be changed, with the same modules and weights."""
    copied: torch.fx.GraphModule = torch.fx.GraphModule(program.module, _copy_graph(program))
    return copied.train(program.module.training)


def _copy_graph(program: Program) -> torch.fx.Graph:
    graph = torch.fx.Graph()
    output = graph.graph_copy(program.graph, {})
    graph.output(output)
    return graph
