"""Which layers cost the most quality in int8, measured: each by itself, all others in float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Context, Program
from fxopt_quantize.calibrate import eval_mode
from fxopt_quantize.sensitivity import Counterpart, Sensitivity, few_samples, ranked, saving

Gain = Callable[[Any, torch.Tensor, torch.Tensor], float]


def measured(
    program: Program,
    context: Context,
    layers: Mapping[fx.Node, Counterpart],
    roundings: Mapping[fx.Node, nn.Module],
) -> dict[str, Sensitivity]:
    """By names of layers, those first that cost most quality for the time they save.

    Args:
        program: In float; its weights are not changed.
        context: As of :func:`measured_calls`.
        layers: The counterparts in few bits, by the nodes of the layers.
        roundings: What rounds the input of each.
    """
    return ranked(measured_calls(program, context, layers, roundings))


def measured_calls(
    program: Program,
    context: Context,
    layers: Mapping[fx.Node, Callable[..., Any]],
    roundings: Mapping[fx.Node, nn.Module],
    gain: Gain = saving,
) -> dict[fx.Node, Sensitivity]:
    """By calls of layers, in the order of ``layers``.

    Args:
        program: In float; its weights are not changed.
        context: Has the data: a few calibration samples, or where there are none, example inputs.
        layers: The counterparts in few bits, by the nodes of the layers.
        roundings: What rounds the input of each.
        gain: What a layer saves, given what it takes and yields.
    """
    found = MeasuredSensitivities(program, layers, roundings, gain)
    batches: Iterable[list[Any]] = map(list, context.examples)
    for batch, samples in few_samples(program, context.calibration or batches):
        found.update(batch, samples)
    return found.found()


class MeasuredSensitivities:
    """Gathers the sensitivity of layers, batch by batch, by running what comes after each.

    Takes about half as many runs of the program as it has layers, and the memory of all values.

    Args:
        program: In float; its weights are not changed.
        layers: The counterparts in int8, by the nodes of the layers.
        roundings: What rounds the input of each.
        gain: What a layer saves, given what it takes and yields.
    """

    def __init__(
        self,
        program: Program,
        layers: Mapping[fx.Node, Callable[..., Any]],
        roundings: Mapping[fx.Node, nn.Module],
        gain: Gain = saving,
    ) -> None:
        self._program = program
        self._layers = layers
        self._roundings = roundings
        self._gain = gain
        self._later = {node: _later(node) for node in layers}
        self._found = {node: Sensitivity() for node in layers}
        self._norm = 0.0

    def update(self, batch: Sequence[Any], samples: int = 1) -> None:
        """Takes in one batch of flat inputs; how many samples it holds makes no difference."""
        walk = fx.Interpreter(self._program.module, garbage_collect_values=False)
        with torch.no_grad(), eval_mode(self._program.module):
            outputs = _floats(walk.run(*batch))
            values = dict(walk.env)
            self._norm += sum(float(y.double().square().sum()) for y in outputs)
            for node in self._layers:
                self._measure(walk, node, values, outputs)

    def found(self) -> dict[fx.Node, Sensitivity]:
        """The sensitivities so far; errors are relative to the outputs."""
        scale = 1 / self._norm if self._norm else 0.0
        return {
            node: Sensitivity(each.error * scale, each.saving) for node, each in self._found.items()
        }

    def _measure(
        self,
        walk: fx.Interpreter,
        node: fx.Node,
        values: Mapping[fx.Node, Any],
        outputs: Sequence[torch.Tensor],
    ) -> None:
        """One layer in int8: only what depends on it runs again."""
        layer = self._layers[node]
        inputs: Any = fx.node.map_arg(node.args, values.__getitem__)
        given, *others = inputs
        rounded = layer(self._roundings[node](given), *others)
        kept = {n: value for n, value in values.items() if n not in self._later[node]}
        changed = _floats(walk.run(initial_env={**kept, node: rounded}))
        pairs = zip(changed, outputs, strict=True)
        found = self._found[node]
        found.error += sum(float((y - was).double().square().sum()) for y, was in pairs)
        yielded = values[node]
        value = yielded[0] if isinstance(yielded, tuple) else yielded
        found.saving += self._gain(layer, given, value)


def _later(node: fx.Node) -> set[fx.Node]:
    """All that depends on a node."""
    found: set[fx.Node] = set()
    ahead = list(node.users)
    while ahead:
        user = ahead.pop()
        if user not in found:
            found.add(user)
            ahead += user.users
    return found


def _floats(outputs: Sequence[Any]) -> list[torch.Tensor]:
    return [y for y in outputs if isinstance(y, torch.Tensor) and y.is_floating_point()]
