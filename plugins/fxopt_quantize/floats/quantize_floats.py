"""The pass: layers in floats of eight or sixteen bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

from torch import fx, nn

from fxopt.plugin import (
    CalibrationError,
    Context,
    Lossy,
    Milder,
    Pass,
    PassInfo,
    PassResult,
    Program,
)
from fxopt_quantize.calibrate import describe, observe, values_of
from fxopt_quantize.floats.modules import RoundFloatRows, RoundFloats
from fxopt_quantize.formats import FLOATS, Float, NumberFormat
from fxopt_quantize.histogram import Histogram
from fxopt_quantize.layers import LayerFactory, refusal
from fxopt_quantize.measured import measured
from fxopt_quantize.modules import QuantLayer
from fxopt_quantize.ranges import is_dead
from fxopt_quantize.sensitivity import shares
from fxopt_quantize.silent import DEAD
from fxopt_quantize.skipping import layers_taking, skip_text, staying

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_PRECISIONS = {"fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "fp16": "f16", "bf16": "bf16"}
"""What kernels that compute with a format are listed as."""


@dataclass(frozen=True)
class QuantizeFloats(Pass):
    """Weights, and activations if asked for, as floats of eight or sixteen bits.

    With eight bits weights have a scale per output channel, and the largest magnitude becomes the
    largest number of the format (Micikevicius et al., "FP8 Formats for Deep Learning", 2022).
    Where a target has no kernels for a format, layers compute in float32 on the rounded values:
    weights still take fewer bytes in a file.

    Attributes:
        format: ``fp8_e4m3`` is the finer one, ``fp8_e5m2`` the one of wider range; ``fp16`` and
            ``bf16`` need no scales. Layers stay in float if the data, or without any the example
            inputs, show that they take more than ``fp16`` holds.
        activations: What layers take is rounded too: on a ``static`` scale that calibration data
            give, or a ``dynamic`` one for each row and call (linear layers alone); ``off`` leaves
            it in float.
        samples: How many calibration samples are used at most, rounded up to whole batches.
        skip: Qualified names of layers that stay in float; ``*`` matches any text.
    """

    format: Float = "fp8_e4m3"
    activations: Literal["off", "static", "dynamic"] = "static"
    samples: int = 256
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        name="quantize_floats",
        stage="numeric",
        fidelity=Lossy(),
        requires=("batch_norms_folded",),
        after=("quantize", "quantize_dynamic", "quantize_weights"),
    )

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1")

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do without a convolution or linear layer in float."""
        return None if _layers(program) else "there is no convolution or linear layer in float"

    def run(self, program: Program, context: Context) -> PassResult:
        """Replaces layers, and rounds what they take.

        Raises:
            CalibrationError: Static scales without calibration data, or with such that cannot be
                used.
            PassError: ``skip`` names a layer that does not exist.
        """
        refused, roundings = self._decided(program, context)
        layers = self._counterparts(program, refused)
        inputs = {node: _input(node) for node in layers}
        first = {value: node for node, value in reversed(inputs.items())}
        with program.edit() as edit:
            for node, reason in refused.items():
                edit.refuse(node, reason)
            rounded = {
                value: edit.call(rounding, value, before=first[value])
                for value, rounding in roundings.items()
            }
            for node, layer in layers.items():
                taken = rounded.get(inputs[node], node.args[0])
                edit.replace(node, layer, taken, *node.args[1:], **node.kwargs)
        how = "weights alone" if self.activations == "off" else f"{self.activations} activations"
        return edit.result(
            f"{len(layers)} layers in {self.format}, {how}",
            layers=len(layers),
            float_layers=len(refused),
        )

    def milder(self, program: Program, context: Context) -> Milder:
        """More and more layers stay in float, those first that cost most for what they save.

        That is measured, on calibration data where there are some, else on the example inputs.
        """
        refused, roundings = self._decided(program, context)
        layers = self._counterparts(program, refused)
        each = {node: roundings.get(_input(node), nn.Identity()) for node in layers}
        found = measured(program, context, layers, each)
        names = list(found)
        options = [replace(self, skip=(*self.skip, *names[:n])) for n in range(1, len(names))]
        return Milder(options, shares(found))

    @property
    def _number(self) -> NumberFormat:
        return FLOATS[self.format]

    def _decided(
        self, program: Program, context: Context
    ) -> tuple[dict[fx.Node, str], dict[fx.Node, nn.Module]]:
        """The layers that stay in float, with reasons, and what rounds the inputs of the others."""
        refused = self._refused(program)
        inputs = {node: _input(node) for node in _layers(program) if node not in refused}
        seen = self._ranges(program, context, list(inputs.values()))
        unfit = {value: reason for value in seen if (reason := self._unfit(value, seen[value]))}
        refused |= {node: unfit[value] for node, value in inputs.items() if value in unfit}
        taken = dict.fromkeys(value for value in inputs.values() if value not in unfit)
        return refused, self._roundings(taken, seen)

    def _unfit(self, value: fx.Node, seen: Histogram) -> str | None:
        """Why a value cannot be rounded; None where it can."""
        if self._number.scaled:
            return DEAD.format(describe(value)) if is_dead(seen) else None
        if (largest := _largest(seen)) > self._number.highest:
            return f"it takes values up to {largest:.3g}, which {self.format} does not hold"
        return None

    def _refused(self, program: Program) -> dict[fx.Node, str]:
        """The layers that stay in float, with reasons."""
        return staying(_layers(program), self.skip, partial(self._refusal, program))

    def _refusal(self, program: Program, node: fx.Node) -> str | None:
        if (reason := refusal(program, node)) is not None:
            return reason
        layer = program.leaf(node)
        if (
            self.activations == "dynamic"
            and self._number.scaled
            and not isinstance(layer, nn.Linear)
        ):
            return "only linear layers can take a scale for each row"
        weight = layer.get_parameter("weight")
        largest = float(weight.detach().abs().max())
        if not self._number.scaled and largest > self._number.highest:
            return f"its weights reach to {largest:.3g}, which {self.format} does not hold"
        return None

    def _counterparts(
        self, program: Program, refused: Mapping[fx.Node, str]
    ) -> dict[fx.Node, QuantLayer]:
        """The layers in few bits; what is tied stays tied."""
        precision = "" if self.activations == "off" else _PRECISIONS[self.format]
        factory = LayerFactory(self._number, precision=precision)
        taken = [node for node in _layers(program) if node not in refused]
        return {node: factory.quantized(program.leaf(node)) for node in taken}

    def _roundings(
        self, values: Iterable[fx.Node], seen: Mapping[fx.Node, Histogram]
    ) -> dict[fx.Node, nn.Module]:
        """What rounds the values that layers take; nothing where they stay in float."""
        if self.activations == "off":
            return {}
        if not self._number.scaled:
            return {value: RoundFloats(self.format, 1.0) for value in values}
        if self.activations == "dynamic":
            return {value: RoundFloatRows(self.format) for value in values}
        # the largest magnitude that was seen becomes the largest number
        scales = {value: _largest(seen[value]) / self._number.highest for value in values}
        return {value: RoundFloats(self.format, scale) for value, scale in scales.items()}

    def _ranges(
        self, program: Program, context: Context, values: Sequence[fx.Node]
    ) -> dict[fx.Node, Histogram]:
        """What is seen of the values that layers take, where that is needed."""
        batches = self._batches(context) if values else None
        if not batches:
            return {}
        ranges = {value: Histogram() for value in values}
        observe(
            program,
            batches,
            values_of(ranges),
            samples=self.samples,
            progress=context.progress,
            task="calibrating",
            remedy=lambda value: skip_text("quantize_floats", layers_taking(value)),
        )
        return ranges

    def _batches(self, context: Context) -> Iterable[list[Any]] | None:
        """What values are watched on, if they have to be: calibration data, which scales need.

        Whether fp16 holds all values can be seen on the example inputs as well.
        """
        scaled = self.activations == "static" and self._number.scaled
        if scaled and context.calibration is None:
            raise CalibrationError(
                "quantize_floats{activations=static} needs calibration data",
                hint="pass calibration=, an iterable of batches such as the model will see, "
                "or set activations=dynamic",
            )
        if scaled or (self.activations != "off" and self.format == "fp16"):
            return context.calibration or [list(inputs) for inputs in context.examples]
        return None


def _largest(seen: Histogram) -> float:
    return max(-seen.minimum, seen.maximum)


def _layers(program: Program) -> list[fx.Node]:
    return list(program.find(*_LAYERS))


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source
