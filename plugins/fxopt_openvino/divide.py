"""Whether a batch may be divided among streams: no sample of it may depend on another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import fx

from fxopt.plugin import Program, Tensors


def divisible(program: Program, inputs: Tensors) -> bool:
    """Whether the samples of a batch may be computed apart.

    All inputs and outputs have to be batched, and outputs of all samples but the first may not
    change with the first one. That one is spoilt for the trial, in floating-point inputs by NaN,
    which passes through nearly all arithmetic, in others by its values in another order, and by
    one above and one below those of the batch, unless these are out of bounds.

    Args:
        program: It is run up to four times, and not changed.
        inputs: Example inputs.
    """
    batched = [_batch(value) for value in (*_values(program.inputs), *_values(_outputs(program)))]
    if None in batched or len(set(batched)) != 1 or len(inputs) != len(program.inputs):
        return False
    if len(inputs[0]) < 2:
        return False
    with torch.no_grad():
        expected = program(*inputs)
        trials = [_tried(program, spoilt) for spoilt in _spoilt_ones(inputs)]
    known = [found for found in trials if found is not None]
    rest = [output[1:] for output in expected]
    return bool(known) and all(_same([out[1:] for out in found], rest) for found in known)


def _tried(program: Program, inputs: Tensors) -> Tensors | None:
    """Outputs; None where an integer is no index of what it chooses from."""
    try:
        outputs: Tensors = program(*inputs)
    except (IndexError, RuntimeError):
        return None
    return outputs


def _outputs(program: Program) -> Sequence[object]:
    (output,) = (node for node in program.nodes if node.op == "output")
    flat: Sequence[object] = output.args[0]  # type: ignore[assignment]
    return flat


def _values(nodes: Sequence[object]) -> Iterator[object]:
    return (node.meta.get("val") if isinstance(node, fx.Node) else None for node in nodes)


def _batch(value: object) -> str | None:
    """The symbol of the batch that a value has in front; None where it has none."""
    if not isinstance(value, torch.Tensor) or not value.dim():
        return None
    size = value.shape[0]
    return str(size) if isinstance(size, torch.SymInt) else None


def _spoilt_ones(inputs: Tensors) -> Iterator[Tensors]:
    """The inputs with the first sample spoilt in one way or another."""
    for change in (_turned, _above, _below):
        spoilt = [_spoilt(tensor, change) for tensor in inputs]
        if not _same(spoilt, inputs):
            yield spoilt


def _spoilt(tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    changed = tensor.detach().clone()
    if changed.numel():
        changed[0] = float("nan") if changed.is_floating_point() else change(changed)
    return changed


def _turned(batch: torch.Tensor) -> torch.Tensor:
    return batch[0].flatten().flip(0).reshape(batch[0].shape)


def _above(batch: torch.Tensor) -> torch.Tensor:
    return ~batch[0] if batch.dtype is torch.bool else batch.max() + 1


def _below(batch: torch.Tensor) -> torch.Tensor:
    return ~batch[0] if batch.dtype is torch.bool else batch.min() - 1


def _same(first: Tensors, second: Tensors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
