"""A session bound to sizes, called with torch tensors and safe to share between threads."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from fxopt.plugin import BackendError, Executable, Kernel, Tensors
from fxopt_onnxruntime.kernels import HEAVY
from fxopt_onnxruntime.session import Session, first_line
from fxopt_onnxruntime.tensors import to_numpy_dtype

if TYPE_CHECKING:
    import onnxruntime


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
        outputs = session.probe([tensor.detach().contiguous() for tensor in inputs])
        self._inputs = [
            (name, to_numpy_dtype(tensor.dtype), list(tensor.shape))
            for name, tensor in zip(session.input_names, inputs, strict=True)
        ]
        self._outputs = [
            (name, array.dtype.type, list(array.shape), torch.from_numpy(array).dtype)
            for name, array in zip(session.output_names, outputs, strict=True)
        ]
        self._idle: list[onnxruntime.IOBinding] = []

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # The runtime does not keep alive what it is pointed to: these lists do, until it is done.
        dense = [tensor.detach().contiguous() for tensor in inputs]
        outputs = [torch.empty(shape, dtype=dtype) for _, _, shape, dtype in self._outputs]
        binding = self._take()
        for (name, kind, shape), tensor in zip(self._inputs, dense, strict=True):
            binding.bind_input(name, "cpu", 0, kind, shape, tensor.data_ptr())
        for (name, kind, shape, _), tensor in zip(self._outputs, outputs, strict=True):
            binding.bind_output(name, "cpu", 0, kind, shape, tensor.data_ptr())
        try:
            self._session.runtime.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime fails: {first_line(error)}") from error
        self._idle.append(binding)
        return tuple(outputs)

    def kernels(self) -> tuple[Kernel, ...]:
        """The operations that ran and compute something."""
        return self._session.kernels

    def precisions(self) -> Counter[str]:
        """How many of the convolutions, matrix products and the like run in which precision."""
        return Counter(kernel.precision for kernel in self.kernels() if kernel.kind in HEAVY)

    def _take(self) -> onnxruntime.IOBinding:
        try:
            return self._idle.pop()  # one operation of the interpreter, so it needs no lock
        except IndexError:
            return self._session.runtime.io_binding()
