"""Which of two libraries computes a linear layer in float32 faster: a trial of each size.

Trials take a second or two where compiling the whole program both ways takes half a minute, and
they can tell for each size.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import fx

from fxopt.plugin import find_files, keep_files
from fxopt_inductor.linears import Size, layers_by_size

# Pairs of calls that are timed, one right after the other, all but one of which have to show a
# clear difference. Others may compile on the same cores meanwhile: the median of five pairs below
# 0.97 made convolutions of layers of BERT-base that MKL computes faster, in two of six builds.
_PAIRS = 7
_CLEARLY = 0.95
_MATTERS = 0.02  # share of the arithmetic of all linear layers
_FILE = "ratios.json"
_KEY = "inductor-linears-"

_ONE, _NONE = [1, 1], [0, 0]  # strides and dilations, paddings

Call = Callable[[], torch.Tensor]
Ratios = Mapping[Size, float]


def faster_as_convolutions(
    module: fx.GraphModule, patience: float | None = None
) -> list[fx.Node] | None:
    """The linear layers that oneDNN computes faster as convolutions than MKL as products.

    Args:
        module: A flat module with fixed sizes.
        patience: Seconds to wait for another process to find it out; None to do so here.

    Returns:
        The layers; None where nobody has found it out in time.
    """
    layers = layers_by_size(module)
    if not (layers and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return []
    work = {size: size.work * len(nodes) for size, nodes in layers.items()}
    matter = sorted(size for size in layers if work[size] > _MATTERS * sum(work.values()))
    ratios = _kept(matter, patience)
    if ratios is None:
        return None
    return [node for size in matter if ratios[size] < _CLEARLY for node in layers[size]]


def being_measured_elsewhere(patience: float) -> bool:
    """Waits until another process has measured some sizes; whether it has not done so by then.

    Whatever else is at work then slows one library down more than the other.
    """
    return find_files(f"{_KEY}*", patience) is None


def _kept(sizes: Sequence[Size], patience: float | None) -> Ratios | None:
    """The ratios, measured once for all builds of a program, so that these are the same."""
    said = repr((sizes, torch.get_num_threads()))
    key = f"{_KEY}{hashlib.sha256(said.encode()).hexdigest()}"
    if patience is not None:
        kept = find_files(key, patience)
        return None if kept is None else _read(sizes, kept)
    kept = keep_files(key, functools.partial(_write, sizes))
    return _measured(sizes) if kept is None else _read(sizes, kept)


def _read(sizes: Sequence[Size], kept: Path) -> Ratios:
    return dict(zip(sizes, json.loads((kept / _FILE).read_text()), strict=True))


def _write(sizes: Sequence[Size], folder: Path) -> None:
    ratios = _measured(sizes)
    (folder / _FILE).write_text(json.dumps([ratios[size] for size in sizes]))


def _measured(sizes: Sequence[Size]) -> Ratios:
    return {size: convolution_over_product(size, torch.get_num_threads()) for size in sizes}


@functools.lru_cache(maxsize=256)
def convolution_over_product(size: Size, threads: int) -> float:
    """How many times as long oneDNN's convolution takes as MKL's product, at most but for chance.

    Args:
        size: Of the layer.
        threads: As many as torch uses now; what was measured with others says nothing.
    """
    del threads  # part of what is remembered
    with torch.no_grad():
        x, weight = torch.ones(size.rows, size.wide), torch.ones(size.out, size.wide)
        product, convolution = calls(x, weight)
        _seconds(product), _seconds(convolution)  # they warm up
        ratios = [_seconds(convolution) / _seconds(product) for _ in range(_PAIRS)]
        return sorted(ratios)[-2]


def calls(x: torch.Tensor, weight: torch.Tensor) -> tuple[Call, Call]:
    """What Inductor makes of a linear layer with a frozen weight, and of it as a convolution.

    Args:
        x: Matrix of rows.
        weight: Of the layer; there is no bias.
    """
    return _product(x, weight), _convolution(x, weight)


def _product(x: torch.Tensor, weight: torch.Tensor) -> Call:
    rows, ops = len(x), torch.ops.mkl
    packed = ops._mkl_reorder_linear_weight(weight, rows)
    return lambda: ops._mkl_linear(x, packed, weight, None, rows)


def _convolution(x: torch.Tensor, weight: torch.Tensor) -> Call:
    ops = torch.ops.mkldnn
    image = x.reshape(1, len(x), 1, -1).permute(0, 3, 1, 2)
    kernel, shape = weight[:, :, None, None], list(image.shape)
    packed = ops._reorder_convolution_weight(kernel, _NONE, _ONE, _ONE, 1, shape)
    return lambda: ops._convolution_pointwise(
        image, packed, None, _NONE, _ONE, _ONE, 1, "none", [], ""
    )


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
