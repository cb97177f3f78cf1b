"""A binding of a session to memory of torch, which remembers where it points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fxopt.plugin import BackendError, Tensors
from fxopt_onnxruntime.session import first_line

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Slot:
    """An input or output of fixed shape.

    Attributes:
        name: What the session calls it.
        kind: Its type in numpy.
        shape: Its sizes.
        dtype: Its type in torch.
    """

    name: str
    kind: Any
    shape: list[int]
    dtype: torch.dtype

    def empty(self) -> torch.Tensor:
        """Memory for it."""
        return torch.empty(self.shape, dtype=self.dtype)


class Binding:
    """Runs a session on tensors, one call at a time.

    With cold caches, as after a call of a model, binding an input and an output takes 100
    microseconds. So an input is not bound again where the last one had its address, and small
    outputs are bound once, to memory that they are copied from.

    Args:
        runtime: The session.
        inputs: Its inputs.
        outputs: Its outputs.
        owned: The indices of the outputs that are bound once.
    """

    def __init__(
        self,
        runtime: onnxruntime.InferenceSession,
        inputs: Sequence[Slot],
        outputs: Sequence[Slot],
        owned: Iterable[int],
    ) -> None:
        self._runtime = runtime
        self._inputs, self._outputs = inputs, outputs
        self._binding = runtime.io_binding()
        self._addresses: list[int] = []
        self._owned = {index: outputs[index].empty().numpy() for index in owned}
        for index, memory in self._owned.items():
            self._bind_output(index, memory.ctypes.data)

    def bind(self, inputs: Tensors, outputs: Mapping[int, torch.Tensor]) -> None:
        """Points the session to contiguous tensors, which must outlive the call.

        Args:
            inputs: All of them.
            outputs: By index, those that are not bound once.
        """
        # Shapes are fixed, so the address says all, whatever has lain there before.
        addresses = [tensor.data_ptr() for tensor in inputs]
        if addresses != self._addresses:
            for slot, address in zip(self._inputs, addresses, strict=True):
                self._binding.bind_input(slot.name, "cpu", 0, slot.kind, slot.shape, address)
            self._addresses = addresses
        for index, tensor in outputs.items():
            self._bind_output(index, tensor.data_ptr())

    def run(self) -> None:
        """Runs, and returns when it is done.

        Raises:
            BackendError: The runtime fails.
        """
        try:
            self._runtime.run_with_iobinding(self._binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime fails: {first_line(error)}") from error

    def output(self, index: int) -> torch.Tensor:
        """A copy of an output that is bound once."""
        # by numpy: 23 microseconds where the caches are cold, and 41 by torch
        return torch.from_numpy(self._owned[index].copy())

    def _bind_output(self, index: int, address: int) -> None:
        slot = self._outputs[index]
        self._binding.bind_output(slot.name, "cpu", 0, slot.kind, slot.shape, address)
