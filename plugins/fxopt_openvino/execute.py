"""Compiled code of OpenVINO, called with torch tensors and safe to share between threads."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import torch

from fxopt.plugin import BackendError, Executable, Kernel, Tensors, give_back
from fxopt_openvino.kernels import HEAVY, find_kernels
from fxopt_openvino.relayed import find_relayed
from fxopt_openvino.request import BoundRequest
from fxopt_openvino.settings import Settings
from fxopt_openvino.tensors import to_torch_dtype

if TYPE_CHECKING:
    import openvino

_SMALL = 1 << 17
"""Bytes of an output that are copied in less time than it takes to bind it."""


class OpenVINOExecutable(Executable):
    """A model of fixed shapes, compiled for the lowest latency of a single call.

    Inputs are read, and outputs written, where torch has them. Each call takes an infer request
    of its own from a pool, so that threads do not disturb each other, and writes to fresh
    outputs, so that later calls do not overwrite them.

    Args:
        model: A model all of whose shapes are known.
        settings: How it is to run.
        memory: What constants of the model lie in. Most of it the runtime packs anew, so it is
            given back.

    Raises:
        BackendError: OpenVINO cannot compile it.
    """

    def __init__(self, model: openvino.Model, settings: Settings, memory: Tensors = ()) -> None:
        self._memory = list(memory)  # which nobody else may keep alive
        self._compiled = _compile(model, settings)
        give_back(self._memory)
        self._rounds = settings.rounded_group > 0
        self._outputs = [
            (tuple(output.shape), to_torch_dtype(output.element_type))
            for output in self._compiled.outputs
        ]
        # An output that is an input must not be bound: the runtime would write to the input.
        relayed = find_relayed(model)
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self._outputs]
        small = {index for index, size in enumerate(sizes) if size <= _SMALL}
        self._owned = frozenset(small - relayed)
        self._bound = frozenset(range(len(sizes))) - small - relayed
        self._idle = [self._new_request()]

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # OpenVINO does not keep alive what it shares: the lists do, until the call is over.
        dense = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in inputs]
        return self._run(dense)

    def _run(self, inputs: Tensors) -> tuple[torch.Tensor, ...]:
        request, fresh = self._take(), {index: self._empty(index) for index in self._bound}
        request.bind(inputs, fresh)
        request.infer()
        count = range(len(self._outputs))
        outputs = tuple([fresh[i] if i in fresh else request.output(i) for i in count])
        self._idle.append(request)
        return outputs

    def _empty(self, index: int) -> torch.Tensor:
        shape, dtype = self._outputs[index]
        return torch.empty(shape, dtype=dtype)

    def kernels(self) -> tuple[Kernel, ...]:
        """The operations of the compiled model that compute something."""
        return find_kernels(self._compiled.get_runtime_model(), self._rounds)

    def precisions(self) -> Counter[str]:
        """How many of the convolutions, matrix products and the like run in which precision."""
        return Counter(kernel.precision for kernel in self.kernels() if kernel.kind in HEAVY)

    def _take(self) -> BoundRequest:
        try:
            return self._idle.pop()  # one operation of the interpreter, so it needs no lock
        except IndexError:
            return self._new_request()

    def _new_request(self) -> BoundRequest:
        return BoundRequest(self._compiled, self._owned)


class DividedExecutable(OpenVINOExecutable):
    """A batch in parts that run side by side, each on its share of the threads.

    Args:
        model: For one part.
        settings: How it is to run; there are as many parts as streams.
        memory: What constants of the model lie in.

    Raises:
        BackendError: OpenVINO cannot compile it.
    """

    def __init__(self, model: openvino.Model, settings: Settings, memory: Tensors = ()) -> None:
        super().__init__(model, settings, memory)
        self._streams = settings.streams
        self._outputs = [((self._streams * s[0], *s[1:]), dtype) for s, dtype in self._outputs]

    def _run(self, inputs: Tensors) -> tuple[torch.Tensor, ...]:
        outputs = [self._empty(index) for index in range(len(self._outputs))]
        parts = list(zip(self._parts(inputs), self._parts(outputs), strict=True))
        requests = [self._take() for _ in parts]
        started: list[BoundRequest] = []
        try:
            for request, (given, wanted) in zip(requests, parts, strict=True):
                request.bind(given, {index: wanted[index] for index in self._bound})
                request.start()
                started.append(request)
        finally:  # what runs uses the caller's memory, also where the next one cannot start
            failures = [failure for request in started if (failure := _waited(request))]
        if failures:
            raise failures[0]
        for request, (_, wanted) in zip(requests, parts, strict=True):
            for index in set(range(len(wanted))) - self._bound:
                wanted[index].copy_(request.output(index))
            self._idle.append(request)
        return tuple(outputs)

    def _parts(self, tensors: Tensors) -> list[tuple[torch.Tensor, ...]]:
        return list(zip(*(tensor.chunk(self._streams) for tensor in tensors), strict=True))


def _waited(request: BoundRequest) -> Exception | None:
    """Waits; the others still use the caller's memory, so a failure is not raised at once."""
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _compile(model: openvino.Model, settings: Settings) -> openvino.CompiledModel:
    import openvino

    try:
        return openvino.Core().compile_model(model, "CPU", settings.properties())
    except Exception as error:
        raise BackendError(f"OpenVINO cannot compile the program: {error}") from error
