"""The contract of a backend: it says what it supports, lowers a program, and is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxopt.cost import Target
from fxopt.ir import Program

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class BackendInfo:
    """The declaration of a backend.

    Attributes:
        name: Its name in ``backends=`` and in reports.
        targets: Names of the targets that it lowers to.
        extra: How to install what it needs, such as ``pip install 'fxopt[openvino]'``.
        native: Whether it runs the program's nodes as they stand, so that nothing is lowered.
        packages: The distributions besides torch that its speed depends on.
        builds_slowly: Whether building takes a multiple of what it takes others, so that it is
            tried after them.
        node_by_node: Whether it calls its kernels one by one, from Python. Compiled code that calls
            the same ones is not slower, so such a backend has to win by more than chance.
    """

    name: str
    targets: tuple[str, ...]
    extra: str = ""
    native: bool = False
    packages: tuple[str, ...] = ()
    builds_slowly: bool = False
    node_by_node: bool = False


@dataclass(frozen=True)
class Kernel:
    """An operation as it really runs in lowered code.

    Attributes:
        name: The operation, by the name that the runtime gives it.
        kind: What it computes, such as ``Convolution``.
        precision: ``f32``, ``bf16``, ``int8`` ...: what it computes in.
    """

    name: str
    kind: str
    precision: str


class Executable(ABC):
    """Lowered code for inputs of one set of shapes and dtypes; safe to call from any thread."""

    @abstractmethod
    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the code. Inputs are those it was compiled for, in shape and dtype."""

    def kernels(self) -> tuple[Kernel, ...]:
        """Which operations there are in the lowered code; empty when it cannot be told.

        They are in the order of the program, as far as the runtime lets that be known.
        """
        return ()

    def precisions(self) -> Counter[str]:
        """How many heavy operations run in which precision."""
        return Counter(kernel.precision for kernel in self.kernels())


class Lowering(ABC):
    """A program in a backend's own form, not yet bound to sizes."""

    def prepare(self, inputs: Tensors) -> None:  # noqa: B027 - what most have no use for
        """Does what :meth:`compile` begins with and what needs no compiler.

        Where a backend builds slowly, this runs in the caller's process while a worker compiles
        the same. What it leaves may be taken by the next :meth:`compile` for such inputs.
        """

    @abstractmethod
    def compile(self, inputs: Tensors) -> Executable:
        """Code for inputs of these shapes and dtypes.

        Raises:
            BackendError: The backend cannot compile for them.
        """


class Backend(ABC):
    """Base of all backends: a frozen dataclass whose fields are its settings.

    Attributes:
        info: Its declaration.
        precision: What floating-point operations are computed in; a field where there is a choice.
    """

    info: ClassVar[BackendInfo]
    precision: str = "f32"

    def unavailable(self) -> str | None:
        """Why it cannot be used here, such as a missing package; None when it can."""
        return None

    def unsupported(self, program: Program, target: Target) -> str | None:
        """Why it cannot take ``program`` as a whole; None when it can.

        Where single nodes are the reason, it is asked again for the parts between them. One that
        has other reasons, too, gives those first, and then what this says: that ``target`` is not
        its own, or which node it refuses.
        """
        if target.name not in self.info.targets:
            return f"it lowers to {' and '.join(self.info.targets)}, not to {target.name}"
        for node in program.nodes:
            reason = self.refuses(program, node, target) if node.op.startswith("call_") else None
            if reason is not None:
                return f"%{node.name} {reason}"
        return None

    def refuses(self, program: Program, node: fx.Node, target: Target) -> str | None:
        """Why it cannot take a node that calls something; None when it can.

        Returns:
            What goes after the name of the node or of its operator: ``draws random numbers``.
        """
        return None

    def variants(self, program: Program, target: Target, exact: bool) -> Sequence[Backend]:
        """The settings of this backend that are worth racing against one another.

        Args:
            program: What is lowered.
            target: What is lowered for.
            exact: Whether the program may change by rounding alone; what is lossy already may
                as well be computed in a lower precision, as long as its drift stays in bounds.
        """
        return (self,)

    def tunings(
        self, program: Program, inputs: Tensors, target: Target, milliseconds: float
    ) -> Sequence[Backend]:
        """Further settings that are worth a try once this one has won the race.

        They may be those of another backend, which is tried where it is on offer.

        Args:
            program: What is lowered.
            inputs: What it is measured on.
            target: What is lowered for.
            milliseconds: What this one takes.
        """
        return ()

    def spare(self) -> Backend | None:
        """What is tried where this one fails to build, crashes or is wrong; None for nothing.

        Such as settings that are slower, and that fewer things can go wrong with.
        """
        return None

    @property
    def label(self) -> str:
        """What reports call this variant."""
        return self.info.name

    @abstractmethod
    def lower(self, program: Program, inputs: Tensors, target: Target) -> Lowering:
        """Translates ``program``, whose inputs are all tensors, for ``target``.

        Raises:
            BackendError: The backend cannot translate it.
        """
