"""The tensors of a file: each stored once, however many names it has."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxopt.ir.saving.values import UnsavableError, torch_constant

_STORED = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.float8_e4m3fn, torch.float8_e5m2,
})  # fmt: skip
_COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)


class TensorWriter:
    """Collects tensors.

    A tensor that is met again is the same one after loading, and so are two tensors that are the
    same piece of memory seen alike. Views of different parts of it become separate tensors.

    Attributes:
        stored: What the file holds, by name.
        table: An entry per tensor.
    """

    def __init__(self) -> None:
        self.stored: dict[str, torch.Tensor] = {}
        self.table: list[dict[str, Any]] = []
        self._indices: dict[int, int] = {}
        self._met: list[torch.Tensor] = []  # kept, so that no other one takes over an id
        self._keys: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def add(self, tensor: torch.Tensor, name: str) -> int:
        """The index of a tensor in the table; it is stored if it is a new one.

        Args:
            tensor: Of any strides, on any device that holds data.
            name: What to call it in the file, if it is new.

        Raises:
            UnsavableError: Its kind or dtype cannot be stored.
        """
        if id(tensor) not in self._indices:
            _check(tensor, name)
            self._indices[id(tensor)] = len(self.table)
            self._met.append(tensor)
            self.table.append(self._entry(tensor, name))
        return self._indices[id(tensor)]

    def _entry(self, tensor: torch.Tensor, name: str) -> dict[str, Any]:
        key = _memory(tensor)
        if key not in self._keys:
            name = self._free(name)
            self._keys[key] = name
            self.stored[name] = self._alone(_dense(tensor))
        stored = self._keys[key]
        return {
            "stored": stored,
            "parameter": isinstance(tensor, nn.Parameter),
            "trainable": tensor.requires_grad and tensor.is_leaf,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "order": _order(tensor),
            "device": str(tensor.device),
            "checksum": checksum(self.stored[stored]),
        }

    def _free(self, name: str) -> str:
        names = (f"{name}.{i}" if i else name for i in itertools.count())
        return next(free for free in names if free not in self.stored)

    def _alone(self, dense: torch.Tensor) -> torch.Tensor:
        """A tensor that has its memory to itself, as the format wants it."""
        memory = dense.untyped_storage()
        part = memory.nbytes() != dense.numel() * dense.element_size()
        if part or memory.data_ptr() in self._storages:
            return dense.clone()
        self._storages.add(memory.data_ptr())
        return dense


class TensorReader:
    """Gives the tensors of a file by index; the same index gives the same tensor.

    Args:
        table: As of :class:`TensorWriter`.
        stored: What the file holds, by name.
    """

    def __init__(
        self, table: Sequence[Mapping[str, Any]], stored: Mapping[str, torch.Tensor]
    ) -> None:
        self._table = table
        self._stored = stored
        self._made: dict[int, torch.Tensor] = {}
        self._memory: dict[str, torch.Tensor] = {}

    def __getitem__(self, index: int) -> torch.Tensor:
        if index not in self._made:
            entry = self._table[index]
            tensor = self._data(entry)
            if entry["parameter"]:
                made: torch.Tensor = nn.Parameter(tensor, requires_grad=entry["trainable"])
            else:
                made = tensor.detach().requires_grad_(entry["trainable"])
            self._made[index] = made
        return self._made[index]

    def _data(self, entry: Mapping[str, Any]) -> torch.Tensor:
        name = entry["stored"]
        if name not in self._memory:
            self._memory[name] = _restore(self._stored[name], entry)
        return self._memory[name]


def checksum(tensor: torch.Tensor) -> int:
    """A number that tells whether the bytes of a contiguous tensor are still the same."""
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _check(tensor: torch.Tensor, name: str) -> None:
    if type(tensor) not in _PLAIN:
        raise UnsavableError(f"the tensor {name}, a {type(tensor).__name__},")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise UnsavableError(f"the tensor {name}, which is {tensor.layout} on {tensor.device},")
    if tensor.dtype not in _STORED and tensor.dtype not in _COMPLEX:
        raise UnsavableError(f"the tensor {name} of dtype {tensor.dtype}")


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory seen alike."""
    if not tensor.numel() or tensor.is_conj() or tensor.is_neg():
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers as a contiguous tensor of a dtype that the format has."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    return (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous()


def _order(tensor: torch.Tensor) -> list[int] | None:
    """The dimensions from the outermost in memory to the innermost; None where that is usual.

    Only of tensors that fill their memory; the others become contiguous.
    """
    if tensor.is_contiguous():
        return None
    order = sorted(range(tensor.dim()), key=lambda dim: (-tensor.stride()[dim], dim))
    return order if tensor.permute(order).is_contiguous() else None


def _restore(stored: torch.Tensor, entry: Mapping[str, Any]) -> torch.Tensor:
    dtype = torch_constant(entry["dtype"], torch.dtype)
    if checksum(stored) != entry["checksum"]:
        raise ValueError(f"the tensor {entry['stored']} is not what was written")
    if dtype in _COMPLEX and stored.dtype is _COMPLEX[dtype]:
        stored = torch.view_as_complex(stored)
    if stored.dtype is not dtype or list(stored.shape) != entry["shape"]:
        raise ValueError(f"the tensor {entry['stored']} is {stored.dtype}, {stored.shape}")
    if entry["order"] is not None:
        order = entry["order"]
        back = [order.index(dim) for dim in range(len(order))]
        stored = stored.permute(order).contiguous().permute(back)
    return stored.to(entry["device"])
