"""What was exported last, of which others that ask for the same get copies."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch

from fxopt.backends.base import Tensors
from fxopt.backends.stepwise import StepwiseProgram
from fxopt.ir import Program

Form = tuple[object, ...]


class LastExport:
    """Keeps one exported program, for as long as the program lives that it was made from.

    Several runtimes begin with the same export of the same program, one after the other, and it
    takes as long as what each of them makes of it. What is handed out is its receiver's own, who
    may decompose it in place; its weights are the program's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: weakref.WeakKeyDictionary[Program, tuple[Form, StepwiseProgram]]
        self._kept = weakref.WeakKeyDictionary()

    def get(
        self,
        program: Program,
        inputs: Tensors,
        dynamic: bool,
        export: Callable[[], StepwiseProgram],
    ) -> StepwiseProgram:
        """What ``export`` returns, or a copy of what it returned for the same before.

        Args:
            program: What is exported.
            inputs: The examples.
            dynamic: Whether the batch is symbolic.
            export: Exports; what it raises is passed on.
        """
        form = _form(program, inputs, dynamic)
        with self._lock:
            known = self._kept.get(program)
            if known is not None and known[0] == form:
                return known[1].copied()
        made = export()
        with self._lock:
            self._kept.clear()  # one is enough: they come one after the other
            self._kept[program] = form, made.copied()
        return made


def _form(program: Program, inputs: Tensors, dynamic: bool) -> Form:
    """What an export depends on: the program as it has been edited by now, and the inputs."""
    module = program.module
    weights = [id(tensor) for tensor in (*module.parameters(), *module.buffers())]
    examples = [_layout(tensor) for tensor in inputs]
    return dynamic, len(program.rewrites), tuple(weights), tuple(examples)


def _layout(tensor: torch.Tensor) -> Form:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
