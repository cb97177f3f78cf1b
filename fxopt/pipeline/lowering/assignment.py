"""Which backend takes which part of a program, and the module that results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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

    def applied(self, program: Program, target: Target) -> Program:
        """A copy of ``program``, same weights, whose shares run as lowered code.

        Raises:
            BackendError: A share computes nothing.
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


def region_of(program: Program, share: Share) -> Region:
    """The nodes of a share, cut out.

    Raises:
        BackendError: It computes nothing.
    """
    if share.nodes is None:
        region = whole_region(program)
    else:
        region = cut_region(program, list(_named(program, share.nodes)))
    if region is None:
        raise BackendError("the program computes nothing")
    return region


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
