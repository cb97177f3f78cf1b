"""Captures a whole model: export, unlift, make functional, raise, and check the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from fxopt.errors import CaptureError
from fxopt.frontend.batches import (
    another_size,
    batch_size,
    batched_tensors,
    is_batched,
    with_batch,
)
from fxopt.frontend.comparing import mismatch
from fxopt.frontend.exporting import depends_on_data, export_model, largest_size
from fxopt.frontend.functional import functionalize
from fxopt.frontend.inputs import own_inputs
from fxopt.frontend.keep import IdentityWatch, kept, training_modules
from fxopt.frontend.raising import raise_graph
from fxopt.frontend.source import blame
from fxopt.frontend.structure import (
    buffers_restored,
    fast_path_off,
    random_state_restored,
    structural_copy,
)
from fxopt.frontend.unlift import model_state, unlift
from fxopt.ir import Program, Signature

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Captured:
    """A program and what was computed while it was compared with its model.

    Attributes:
        program: The program.
        expected: What the model returned for the example inputs.
        outputs: Flat outputs of the program for them.
    """

    program: Program
    expected: Any
    outputs: tuple[Any, ...]


def capture_program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    """As :func:`capture_compared`, the program alone."""
    return capture_compared(model, args, kwargs).program


def capture_compared(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int = 0
) -> Captured:
    """Captures a whole model in module form, with a symbolic batch where the model allows it.

    The model is not touched: all the work is done on a copy that shares its tensors. The captured
    program is compared with the model at the example inputs' batch size and at others before it
    is returned; where the batch cannot be symbolic, it is fixed and the program's notes say why.

    Args:
        model: The model, in any mode; it is captured as in eval mode.
        args: Example positional inputs; the batch is the first dimension of the first tensor.
        kwargs: Example keyword inputs.
        seed: Where random numbers start in each run.

    Returns:
        The program, on the very parameters and buffers of the model, and what both computed.

    Raises:
        CaptureError: The model cannot be captured; the error names the operation and the line.
    """
    return _Capture(structural_copy(model), (args, kwargs), seed).run()


class _FixedBatchError(CaptureError):
    """The batch cannot be symbolic."""


class _Capture:
    """One capture: a structural copy of the model, and example inputs."""

    def __init__(self, model: nn.Module, inputs: Inputs, seed: int) -> None:
        self._model = model
        self._inputs = inputs
        self._seed = seed
        self._expected: Any = None  # of the model for these inputs
        self._kept: dict[str, nn.Module] = {}

    def run(self) -> Captured:
        """Captures with a symbolic batch, or else with a fixed one."""
        watch = IdentityWatch(training_modules(self._model))
        with watch.watching():
            self._expected = run_model(self._model, self._inputs, self._seed)
        self._kept = watch.identities()
        try:
            return self._dynamic()
        except _FixedBatchError as error:
            return self._static(error.what)

    def _dynamic(self) -> Captured:
        size = batch_size(self._inputs)
        if size is None:
            raise _FixedBatchError("no input has a batch dimension")
        # export would specialise a batch of 0 or 1
        traced = self._inputs if size > 1 else with_batch(self._inputs, 2)
        try:
            program = self._capture(traced, batched_tensors(traced), batch=True)
            return self._checked_at_batches(program, size)
        except CaptureError as error:
            if depends_on_data(error) or isinstance(error, _FixedBatchError):
                raise
            raise _FixedBatchError(error.what) from error

    def _checked_at_batches(self, program: Program, size: int) -> Captured:
        if not all(_is_symbolic(node) for node in _batched_inputs(program, self._inputs)):
            raise _FixedBatchError("the model's code fixes it")
        captured = self._checked(program)
        for other in {another_size(size), 1} - {size}:
            inputs = with_batch(self._inputs, other)
            self._check(program, inputs, run_model(self._model, inputs, self._seed))
        return captured

    def _static(self, reason: str) -> Captured:
        note = f"the batch size is fixed: {reason}"
        return self._checked(self._capture(self._inputs, (), batch=False, notes=(note,)))

    def _capture(
        self,
        inputs: Inputs,
        batched: Iterable[torch.Tensor],
        batch: bool,
        notes: tuple[str, ...] = (),
    ) -> Program:
        with kept(self._kept):
            exported = export_model(self._model, *inputs, batched)
        limit = largest_size(exported)
        if batch and limit is not None:
            raise _FixedBatchError(f"the model takes no more than {limit} at once")
        state = model_state(self._model)
        graph = unlift(exported, state)
        functionalize(graph)
        module = raise_graph(graph, self._model, state)
        calls = exported.call_spec
        assert calls.in_spec is not None
        assert calls.out_spec is not None
        return Program(module, Signature(calls.in_spec, calls.out_spec, batch), notes)

    def _checked(self, program: Program) -> Captured:
        outputs = self._check(program, self._inputs, self._expected)
        return Captured(program, self._expected, outputs)

    def _check(self, program: Program, inputs: Inputs, expected: Any) -> tuple[Any, ...]:
        outputs = _run_program(program, inputs, self._seed)
        difference = mismatch(outputs, pytree.tree_leaves(expected))
        if difference:
            size = batch_size(inputs)
            raise CaptureError(f"the captured program differs at batch {size}: {difference}")
        return outputs


def run_model(model: nn.Module, inputs: Inputs, seed: int = 0) -> Any:
    """Runs a model without leaving a trace in its buffers or in the random generators.

    Raises:
        CaptureError: The model does not take the inputs; the error names its line.
    """
    args, kwargs = own_inputs(inputs)
    with torch.no_grad(), buffers_restored(model), random_state_restored(seed), fast_path_off():
        try:
            return model(*args, **kwargs)
        except Exception as error:
            raise CaptureError(
                f"{type(model).__name__} fails on the inputs: {type(error).__name__}: {error}",
                where=blame(error),
                hint="check that model(*args, **kwargs) runs in eval mode",
            ) from error


def _run_program(program: Program, inputs: Inputs, seed: int) -> tuple[Any, ...]:
    with torch.no_grad(), random_state_restored(seed):
        try:
            return program(*program.signature.flatten(*own_inputs(inputs)))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            size = batch_size(inputs)
            raise CaptureError(f"the captured program fails at batch {size}: {error}") from error


def _batched_inputs(program: Program, inputs: Inputs) -> list[Node]:
    leaves = program.signature.flatten(*inputs)
    size = batch_size(inputs)
    pairs = zip(program.inputs, leaves, strict=True)
    return [node for node, leaf in pairs if is_batched(leaf, size)]


def _is_symbolic(node: Node) -> bool:
    return isinstance(node.meta["val"].shape[0], torch.SymInt)
