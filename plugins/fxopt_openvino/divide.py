"""Whether a batch may be divided among streams: no sample of it may depend on another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from fxopt.plugin import Program, Tensors


def divisible(program: Program, inputs: Tensors) -> bool:
    """Whether the samples of a batch may be computed apart.

    All inputs and outputs have to be batched, and outputs of all samples but the first may not
    change with the first one. That one is spoilt for the trial, in floating-point inputs by NaN,
    which passes through nearly all arithmetic, in others by its values in another order.

    Args:
        program: It is run twice, and not changed.
        inputs: Example inputs.
    """
    batched = [_batch(value) for value in (*_values(program.inputs), *_values(_outputs(program)))]
    if None in batched or len(set(batched)) != 1 or len(inputs) != len(program.inputs):
        return False
    spoilt = [_spoilt(tensor) for tensor in inputs]
    if len(inputs[0]) < 2 or _same(spoilt, inputs):
        return False
    with torch.no_grad():
        expected, found = program(*inputs), program(*spoilt)
    return _same([output[1:] for output in found], [output[1:] for output in expected])


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


def _spoilt(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.detach().clone()
    if not len(changed):
        return changed
    if changed.is_floating_point():
        changed[0] = float("nan")
    else:
        changed[0] = changed[0].flatten().flip(0).reshape(changed[0].shape)
    return changed


def _same(first: Tensors, second: Tensors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
