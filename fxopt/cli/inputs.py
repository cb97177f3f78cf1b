"""Example inputs and calibration batches from the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxopt.cli.locate import call, locate
from fxopt.errors import InputError

if TYPE_CHECKING:
    import torch

_INPUT = re.compile(r"(?:(?P<key>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")
_RANDOM_BATCHES = 4


def parse_inputs(texts: Sequence[str], seed: int) -> tuple[Any, ...] | dict[str, Any] | None:
    """Random example inputs of the shapes that the user gives.

    Args:
        texts: Each ``1x3x224x224``, with ``:int64`` behind it for another dtype than float32
            (integers are 0 or 1, which every vocabulary has), or ``name=1x128`` for a keyword.
        seed: For the random numbers.

    Returns:
        A tuple, a dict where all have names, or None where there is no text.

    Raises:
        InputError: A text cannot be read, or only some have a name.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    pairs = [_parse(text, generator) for text in texts]
    if not pairs:
        return None
    named = {key: value for key, value in pairs if key is not None}
    if named and len(named) < len(pairs):
        raise InputError("give either all inputs a name of their own, or none")
    return named or tuple(value for _, value in pairs)


def _parse(text: str, generator: torch.Generator) -> tuple[str | None, torch.Tensor]:
    import torch

    match = _INPUT.fullmatch(text)
    if match is None:
        raise InputError(
            f"cannot read the input {text!r}",
            hint="write its sizes, such as 1x3x224x224, 1x128:int64 or mask=1x128:bool",
        )
    dtype = getattr(torch, match["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"torch has no dtype {match['dtype']!r}")
    sizes = [int(size) for size in match["sizes"].split("x")]
    floating = dtype.is_floating_point or dtype.is_complex
    made = (
        torch.randn(sizes, generator=generator)
        if floating
        else torch.randint(0, 2, sizes, generator=generator)
    )
    try:
        return match["key"], made.to(dtype)
    except (RuntimeError, NotImplementedError) as error:  # quantized ones, and those of few bits
        raise InputError(f"no example of dtype {match['dtype']} can be made: {error}") from error


def load_calibration(text: str | None, inputs: Sequence[str], seed: int) -> Iterable[Any] | None:
    """The batches that ``--calibration`` names.

    Args:
        text: ``path.npy``, ``path.npz``, ``path.pt``, ``path/to/file.py:loader``, or ``random``.
        inputs: The texts of ``--input``: their shapes are those of random batches.
        seed: For random batches.

    Raises:
        InputError: There is no such file, or it holds no batches.
    """
    if text is None:
        return None
    if text == "random":
        return _random_batches(inputs, seed)
    if ":" in text:
        found = locate(text)
        loaded: Iterable[Any] = call(text, found) if callable(found) else found
        return loaded
    return _from_file(Path(text), inputs)


def _random_batches(inputs: Sequence[str], seed: int) -> list[Any]:
    if not inputs:
        raise InputError("--calibration random needs --input, which says the shapes")
    return [parse_inputs(inputs, seed + 1 + index) for index in range(_RANDOM_BATCHES)]


def _from_file(path: Path, inputs: Sequence[str]) -> list[Any]:
    if not path.is_file():
        raise InputError(f"there is no calibration file {path}")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".pt": _read_pt, ".pth": _read_pt}
    if path.suffix not in readers:
        raise InputError(
            f"cannot read calibration from {path}",
            hint=f"give a file of {', '.join(readers)}, or path/to/file.py:loader",
        )
    try:
        data = readers[path.suffix](path)
    except Exception as error:  # pickle, zip and numpy raise many kinds
        raise InputError(f"cannot read calibration from {path}: {error}") from error
    match = _INPUT.fullmatch(inputs[0]) if inputs else None
    size = int(match["sizes"].partition("x")[0]) if match else 1
    return _batches(data, size, by_name=bool(match and match["key"]))


def _read_npy(path: Path) -> Any:
    import numpy
    import torch

    return torch.from_numpy(numpy.load(path, allow_pickle=False))


def _read_npz(path: Path) -> Any:
    import numpy
    import torch

    with numpy.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _read_pt(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _batches(data: Any, size: int, *, by_name: bool) -> list[Any]:
    """Samples along dimension 0 as batches of ``size``; a list is batches already."""
    import torch

    if isinstance(data, torch.Tensor):
        return list(_split(data, size))
    if isinstance(data, dict) and all(isinstance(v, torch.Tensor) for v in data.values()):
        _check_lengths(data)
        columns = zip(*(_split(tensor, size) for tensor in data.values()), strict=True)
        return [dict(zip(data, batch, strict=True)) if by_name else batch for batch in columns]
    if isinstance(data, (list, tuple)):
        return list(data)
    raise InputError(
        f"the calibration file holds a {type(data).__name__}",
        hint="save a tensor, named tensors of equal length, or a list of batches",
    )


def _split(samples: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    if not samples.dim():
        raise InputError(
            "the calibration file holds a single number", hint="save samples along dimension 0"
        )
    batches: Sequence[torch.Tensor] = samples.split(size)
    return batches


def _check_lengths(named: dict[str, torch.Tensor]) -> None:
    lengths = {name: len(tensor) for name, tensor in named.items() if tensor.dim()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the calibration file holds tensors of different lengths: {lengths}")
