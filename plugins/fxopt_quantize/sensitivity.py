"""Which layers cost the most quality when they compute in int8, and which save the most time.

To first order, the error of the outputs is the sum of what each layer contributes: its own error
on undisturbed inputs, times the Jacobian from its output to the program's. The squared norm of
such a product is estimated by Hutchinson's method ("A Stochastic Estimator of the Trace of the
Influence Matrix for Laplacian Smoothing Splines", 1990): the outputs are weighted by random
signs, and one backward pass gives the product's inner products with them for all layers at once.
For outputs with Gaussian noise this is the Fisher information that mixed-precision methods use
(Dong et al., "HAWQ-V2", 2020); it needs no labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_quantize.calibrate import eval_mode
from fxopt_quantize.modules import QuantLayer

_BATCHES, _SAMPLES = 4, 8

# Moving a value of 8 bits instead of 32 saves as much time as so many multiply-adds in int8 instead
# of float32: on a machine of 95 and 453 billion of those a second and 54 GB/s, and not far from it
# on others. Depthwise convolutions do little else than move values.
PRODUCTS_A_VALUE = 7


class Counterpart(Protocol):
    """A layer in few bits."""

    def __call__(self, *inputs: Any) -> Any:
        """What it yields."""

    def products(self, given: torch.Tensor, value: torch.Tensor) -> float:
        """Multiply-adds of a call, by what it takes and yields."""


@dataclass
class Sensitivity:
    """What computing a layer in int8 costs and saves.

    Attributes:
        error: Its part in the squared relative error of the outputs.
        saving: In time, as a number of multiply-adds: those that it does on the data that it was
            measured with, and what moving its inputs and outputs in fewer bits is worth.
    """

    error: float = 0.0
    saving: float = 0.0


class Sensitivities:
    """Gathers the sensitivity of layers, batch by batch.

    Args:
        program: In float; its weights are not changed.
        layers: The counterparts in int8, by the nodes of the layers.
        roundings: What rounds the input of each.
        probes: How many random weightings of the outputs are drawn for each batch.
        seed: Of those.
    """

    def __init__(
        self,
        program: Program,
        layers: Mapping[fx.Node, QuantLayer],
        roundings: Mapping[fx.Node, nn.Module],
        probes: int = 4,
        seed: int = 0,
    ) -> None:
        self._program = program
        self._layers = layers
        self._roundings = roundings
        self._probes = probes
        self._random = torch.Generator().manual_seed(seed)
        self._found = {node: Sensitivity() for node in layers}
        self._norm = 0.0

    def update(self, batch: Sequence[Any], samples: int = 1) -> None:
        """Takes in one batch of flat inputs.

        Args:
            batch: What the program is run on.
            samples: How many independent samples it holds, along dimension 0 of all values: the
                more are told apart, the fewer probes will do.
        """
        walk = _Traced(self._program.module, self._layers, self._roundings)
        with torch.enable_grad(), eval_mode(self._program.module), _frozen(self._program.module):
            outputs = [y for y in walk.run(*batch) if _has_gradient(y)]
            for _ in range(self._probes if outputs else 0):
                self._probe(outputs, walk.seen, samples)
        self._norm += sum(float(y.detach().double().square().sum()) for y in outputs)
        for node, seen in walk.seen.items():
            self._found[node].saving += seen.saving

    def found(self) -> dict[fx.Node, Sensitivity]:
        """The sensitivities so far; errors are relative to the outputs."""
        scale = 1 / (self._norm * self._probes) if self._norm else 0.0
        return {
            node: Sensitivity(each.error * scale, each.saving) for node, each in self._found.items()
        }

    def _probe(
        self, outputs: Sequence[torch.Tensor], seen: Mapping[fx.Node, _Seen], samples: int
    ) -> None:
        signs = [self._signs(y) for y in outputs]
        nodes = [node for node in seen if _has_gradient(seen[node].value)]
        gradients = torch.autograd.grad(
            list(outputs),
            [seen[node].value for node in nodes],
            signs,
            retain_graph=True,
            allow_unused=True,
        )
        for node, gradient in zip(nodes, gradients, strict=True):
            if gradient is not None:
                products = gradient.double() * seen[node].error.double()
                rows = samples if len(products) % samples == 0 else 1
                self._found[node].error += float(products.reshape(rows, -1).sum(1).square().sum())

    def _signs(self, y: torch.Tensor) -> torch.Tensor:
        bits = torch.randint(0, 2, y.shape, generator=self._random)
        return (2 * bits - 1).to(y.dtype).to(y.device)


def ranked(found: Mapping[fx.Node, Sensitivity]) -> dict[str, Sensitivity]:
    """By names of layers, those first that cost most quality for the time they save.

    A layer that is called several times counts with all its calls.
    """
    total: dict[str, Sensitivity] = {}
    for node, each in found.items():
        whole = total.setdefault(str(node.target), Sensitivity())
        whole.error += each.error
        whole.saving += each.saving
    order = sorted(total, key=lambda name: -total[name].error / max(total[name].saving, 1.0))
    return {name: total[name] for name in order}


def shares(found: Mapping[str, Sensitivity]) -> dict[str, tuple[float, float]]:
    """The share of each layer in the squared error, and in the time that is saved."""
    error = sum(each.error for each in found.values()) or 1.0
    saving = sum(each.saving for each in found.values()) or 1.0
    return {name: (each.error / error, each.saving / saving) for name, each in found.items()}


def few_samples(program: Program, batches: Iterable[list[Any]]) -> Iterator[tuple[list[Any], int]]:
    """The first samples of the first batches, and how many they are: gradients take memory."""
    for batch in itertools.islice(batches, _BATCHES):
        tensors = [item for item in batch if isinstance(item, torch.Tensor) and item.dim()]
        if not program.signature.batch or not tensors:
            yield batch, 1
            continue
        size = len(tensors[0])
        yield [_first(item, size) for item in batch], min(size, _SAMPLES)


def _first(item: Any, size: int) -> Any:
    whole = isinstance(item, torch.Tensor) and item.dim() and len(item) == size
    return item[:_SAMPLES] if whole else item


@dataclass
class _Seen:
    """What a layer yielded, how far its counterpart is off, and what that saves."""

    value: torch.Tensor
    error: torch.Tensor = field(repr=False)
    saving: float = 0.0


class _Traced(fx.Interpreter):
    """Runs the graph with gradients and compares each layer with its counterpart."""

    def __init__(
        self,
        module: fx.GraphModule,
        layers: Mapping[fx.Node, QuantLayer],
        roundings: Mapping[fx.Node, nn.Module],
    ) -> None:
        super().__init__(module)
        self._layers = layers
        self._roundings = roundings
        self.seen: dict[fx.Node, _Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n not in self._layers:
            return value
        inputs, _ = self.fetch_args_kwargs_from_env(n)
        if not value.requires_grad:
            value.requires_grad_()  # the first layers: what comes before has no gradient
        with torch.no_grad():
            layer = self._layers[n]
            error = layer(self._roundings[n](inputs[0].detach())) - value
            saved = saving(layer, inputs[0], value)
        self.seen[n] = _Seen(value, error, saved)
        return value


def saving(layer: Counterpart, given: torch.Tensor, value: torch.Tensor) -> float:
    """What a layer saves in int8, given what it takes and yields; see :class:`Sensitivity`."""
    moved = given.numel() + value.numel()
    return layer.products(given, value) + PRODUCTS_A_VALUE * moved


def _has_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient inside."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
