"""A session bound to sizes, called with torch tensors and safe to share between threads."""

from __future__ import annotations

from collections import Counter

import torch

from fxopt.plugin import Executable, Kernel, Tensors
from fxopt_onnxruntime.binding import Binding, Slot
from fxopt_onnxruntime.kernels import HEAVY
from fxopt_onnxruntime.session import Session
from fxopt_onnxruntime.tensors import to_numpy_dtype

_SMALL = 1 << 17
"""Bytes of an output that are copied in less time than it takes to bind it."""


class ONNXRuntimeExecutable(Executable):
    """A session for inputs of one set of shapes.

    Inputs are read, and outputs written, where torch has them. Each call takes a binding of its
    own from a pool, so that threads do not disturb each other, and writes to fresh outputs, so
    that later calls do not overwrite them.

    Args:
        session: What to run.
        inputs: Inputs of the shapes that it is called with: it is run once, which tells the
            shapes of the outputs.

    Raises:
        BackendError: ONNX Runtime cannot run it.
    """

    def __init__(self, session: Session, inputs: Tensors) -> None:
        self._session = session
        outputs = session.probe(inputs)
        self._inputs = [
            Slot(name, to_numpy_dtype(tensor.dtype), list(tensor.shape), tensor.dtype)
            for name, tensor in zip(session.input_names, inputs, strict=True)
        ]
        self._outputs = [
            Slot(name, array.dtype.type, list(array.shape), torch.from_numpy(array).dtype)
            for name, array in zip(session.output_names, outputs, strict=True)
        ]
        self._large = [index for index, array in enumerate(outputs) if array.nbytes > _SMALL]
        self._small = sorted(set(range(len(outputs))) - set(self._large))
        self._idle: list[Binding] = []

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # The runtime does not keep alive what it is pointed to: these lists do, until it is done.
        dense = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in inputs]
        binding, fresh = (
            self._take(),
            {index: self._outputs[index].empty() for index in self._large},
        )
        binding.bind(dense, fresh)
        binding.run()
        count = range(len(self._outputs))
        results = tuple([fresh[i] if i in fresh else binding.output(i) for i in count])
        self._idle.append(binding)
        return results

    def kernels(self) -> tuple[Kernel, ...]:
        """The operations that ran and compute something."""
        return self._session.kernels

    def precisions(self) -> Counter[str]:
        """How many of the convolutions, matrix products and the like run in which precision."""
        return Counter(kernel.precision for kernel in self.kernels() if kernel.kind in HEAVY)

    def _take(self) -> Binding:
        try:
            return self._idle.pop()  # one operation of the interpreter, so it needs no lock
        except IndexError:
            return Binding(self._session.runtime, self._inputs, self._outputs, self._small)
