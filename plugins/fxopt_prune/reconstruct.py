"""Fits the layers that are left to the outputs that they had before, by least squares.

As He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), section 3.1,
reconstruct each layer's outputs from the channels that are left, in order, so that each makes up
for what is missing in what it gets. Outputs are those of the original network; no labels are used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Context, Program, windows
from fxopt_prune.constants import shift_of, used_once
from fxopt_prune.energies import takes_channels

_RIDGE = 1e-3
"""How much weights are held back, as a share of the mean square of what they multiply."""

_LARGEST = 8192  # inputs and taps: the matrix of a larger layer takes over half a gigabyte
_COLUMNS = 1 << 13  # positions of a batch that are enough: neighbours in an image are alike

Rows = dict[str, torch.Tensor]
"""Which outputs of each layer are left, by the layer's qualified name."""


def reconstruct(
    original: Program, pruned: Program, rows: Rows, context: Context, samples: int
) -> int:
    """Changes weights and biases of ``pruned`` in place.

    Args:
        original: The program before anything was removed.
        pruned: The same with smaller weights; it may have a batch norm's mean changed, which then
            stands for the bias of the layer before.
        rows: The outputs of each layer of ``original`` that ``pruned`` has.
        context: With calibration data.
        samples: How many of those are used at most, rounded up to whole batches.

    Returns:
        How many layers were fitted; left out are grouped convolutions, very large layers, and
        those whose weights are used more than once.
    """
    assert context.calibration is not None
    batches = list(_first(context.calibration, samples))
    before, after = _Walk(original, batches), _Walk(pruned, batches)
    alone = used_once(pruned)
    fitted = 0
    with torch.no_grad():
        for target in after.layers():
            before.run_to(target)
            if after.next in alone and target in rows and _fit(before, after, rows[target], alone):
                fitted += 1
                context.progress(f"fitting what is left: {fitted} layers")
    return fitted


def _first(batches: Iterable[list[Any]], samples: int) -> Iterator[list[Any]]:
    taken = 0
    for flat in batches:
        yield flat
        taken += next((len(x) for x in flat if isinstance(x, torch.Tensor) and x.dim()), 1)
        if taken >= samples:
            return


class _Walk:
    """Runs all batches through a program side by side, stopping in front of layers."""

    def __init__(self, program: Program, batches: list[list[Any]]) -> None:
        self.program = program
        self._runs = [fx.Interpreter(program.module) for _ in batches]
        for run, flat in zip(self._runs, batches, strict=True):
            run.args_iter = iter(flat)
        self._waiting = [node for node in program.nodes if node.op != "output"]

    def layers(self) -> Iterator[str]:
        """Runs on and on, and yields the name of each layer before it is run."""
        while self._waiting:
            node = self._waiting[0]
            if node.op == "call_module" and takes_channels(self.program.leaf(node)):
                yield str(node.target)
            self._step()

    def run_to(self, target: str) -> None:
        """Runs until the layer of this name is next, which has to come."""
        while self._waiting[0].op != "call_module" or self._waiting[0].target != target:
            self._step()

    @property
    def next(self) -> fx.Node:
        """What is run next."""
        return self._waiting[0]

    def inputs(self) -> list[torch.Tensor]:
        """What the next layer takes, batch by batch."""
        source = self._waiting[0].all_input_nodes[0]
        return [run.env[source] for run in self._runs]

    def step(self) -> list[torch.Tensor]:
        """Runs the next layer; what it yields."""
        node = self._waiting[0]
        self._step()
        return [run.env[node] for run in self._runs]

    def _step(self) -> None:
        node = self._waiting.pop(0)
        for run in self._runs:
            run.env[node] = run.run_node(node)
            for gone in run.user_to_last_uses.get(node, []):
                run.env.pop(gone, None)


def _fit(before: _Walk, after: _Walk, rows: torch.Tensor, alone: Collection[fx.Node]) -> bool:
    """Fits the next layer of ``after`` to what the same one of ``before`` yields."""
    layer: Any = after.program.leaf(after.next)
    if layer.weight[0].numel() > _LARGEST:
        return False
    shift = shift_of(after.program, after.next, alone)
    sums = _Sums(shift is not None)
    for x, y in zip(after.inputs(), before.step(), strict=True):
        sums.add(*_pairs(layer, x, y, rows))
    weight, constant = sums.solve(layer.weight.flatten(1).double())
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if shift is not None:
        shift(constant)
    return True


def _pairs(
    layer: Any, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is multiplied, as (positions, inputs and taps), and what should come out."""
    if isinstance(layer, nn.Linear):
        taken, given = (each.reshape(-1, each.shape[-1]) for each in (x, y[..., rows]))
        step = max(1, len(taken) // _COLUMNS)
        return taken[::step], given[::step]
    rank = len(layer.kernel_size)
    if x.dim() == rank + 1:
        x, y = x[None], y[None]
    pads = layer._reversed_padding_repeated_twice
    seen = windows(
        x,
        kernel=layer.kernel_size,
        stride=layer.stride,
        dilation=layer.dilation,
        pads=pads,
        padding_mode=layer.padding_mode,
    )
    step = max(1, round((y[:, 0].numel() / _COLUMNS) ** (1 / rank)))
    thin = (slice(None), slice(None), *[slice(None, None, step)] * rank)
    order = (0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
    columns = seen[thin].permute(order).flatten(0, rank).flatten(1)
    return columns, y[thin].movedim(1, -1).flatten(0, rank)[:, rows]


class _Sums:
    """Gathers the normal equations of a layer's outputs in its inputs.

    Args:
        shifts: Whether a constant can be added, which takes care of the means.
    """

    def __init__(self, shifts: bool) -> None:
        self._shifts = shifts
        self._squares: Any = 0.0
        self._products: Any = 0.0
        self._means: Any = 0.0, 0.0
        self._count = 0

    def add(self, columns: torch.Tensor, outputs: torch.Tensor) -> None:
        """Takes in one batch, of shapes (positions, inputs) and (positions, outputs)."""
        x, y = columns.double(), outputs.double()
        self._squares = self._squares + x.T @ x
        self._products = self._products + y.T @ x
        self._means = self._means[0] + x.sum(0), self._means[1] + y.sum(0)
        self._count += len(x)

    def solve(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights, near those that were, and the constant by which outputs err least."""
        squares, products = self._squares / self._count, self._products / self._count
        x, y = (each / self._count for each in self._means)
        if self._shifts:
            squares, products = squares - torch.outer(x, x), products - torch.outer(y, x)
        held = _RIDGE * squares.diagonal().mean() + torch.finfo(torch.float64).tiny
        matrix = squares + held * torch.eye(len(squares), dtype=squares.dtype, device=held.device)
        change = torch.linalg.solve(matrix, (products - weight @ squares).T).T
        fitted = weight + change
        return fitted, y - fitted @ x
