"""The pass: rewrites the program into what int8 kernels compute, and trains it if asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx, nn

from fxopt.plugin import (
    Context,
    Lossy,
    Milder,
    Pass,
    PassError,
    PassInfo,
    PassResult,
    Program,
    Target,
)
from fxopt_quantize.learn import learn
from fxopt_quantize.measured import MeasuredSensitivities
from fxopt_quantize.modules import QuantLayer
from fxopt_quantize.preparing import Preparation
from fxopt_quantize.ready import Ready
from fxopt_quantize.rewrite import round_activations
from fxopt_quantize.rules import layers_of
from fxopt_quantize.sensitivity import (
    Sensitivities,
    Sensitivity,
    few_samples,
    ranked,
    shares,
)
from fxopt_quantize.settings import Settings


@dataclass(frozen=True)
class Quantize(Settings, Pass):
    """Static int8: weights symmetric, activations uint8 per tensor.

    The rewritten program computes in float what int8 kernels compute (the scheme of Jacob et
    al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", 2018); a backend that has such kernels recognises the pairs of quantize and
    dequantize and uses them. What can be chosen are the attributes of `Settings`.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="quantize",
        stage="numeric",
        fidelity=Lossy(),
        requires=("batch_norms_folded",),
        needs=("calibration",),
    )

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do without a convolution or a linear layer."""
        if layers_of(program):
            return None
        recurrent = any(program.find(nn.RNNBase))
        hint = "; quantize_dynamic and quantize_weights take recurrent layers" if recurrent else ""
        return f"there is no convolution and no linear layer{hint}"

    def run(self, program: Program, context: Context) -> PassResult:
        """Calibrates, then rounds weights and activations.

        Raises:
            CalibrationError: There are no calibration data, or they cannot be used.
            PassError: ``skip`` names a layer that does not exist, or there is nothing to train on.
        """
        self._check_training(context)
        original = program.clone() if self.training != "off" else program
        ready = Preparation(self, program, context).ready()
        floats = {layer: program.leaf(node) for node, layer in ready.layers.items()}
        count, kind = len(ready.layers), self.calibrator
        left = len(layers_of(program)) - count
        with program.edit() as edit:
            for node, reason in ready.refused.items():
                edit.refuse(node, reason)
            round_activations(edit, program, ready.placement, ready.roundings)
            for node, layer in ready.layers.items():
                edit.replace(node, layer, *node.args, **node.kwargs)
        trained = self._train(program, context, ready, floats, original)
        weights_are = self._weights(context.target)
        return edit.result(
            f"{count} layers int8{weights_are}, per {self.weights}, "
            f"{kind} of {ready.samples} samples{_remarked(ready)}{trained}",
            layers=count,
            float_layers=left,
            activations=len(ready.placement.sites),
            calibrator=kind,
            samples=ready.samples,
            **ready.remarks,
        )

    def milder(self, program: Program, context: Context) -> Milder:
        """More and more layers stay in float, those first that cost most for what they save."""
        found = ranked(self.sensitivities(program, context))
        names = list(found)
        options = [replace(self, skip=(*self.skip, *names[:n])) for n in range(1, len(names))]
        return Milder(options, shares(found))

    def sensitivities(self, program: Program, context: Context) -> dict[fx.Node, Sensitivity]:
        """What computing each layer in int8 costs in quality, and how much time it may save.

        Layers are as they would run, rescaled, rounded and with their biases corrected, but
        before any training. Instead of AdaRound, GPTQ rounds weights, as it minimises the same
        error in seconds.

        Args:
            program: In float, with batch norms folded; it is not changed.
            context: With calibration data, of which a few samples are used.

        Raises:
            CalibrationError: There are no calibration data, or they cannot be used.
        """
        twin = program.clone()
        originals = dict(zip(twin.nodes, program.nodes, strict=True))
        quick = replace(self, rounding="gptq") if self.rounding == "adaround" else self
        ready = Preparation(quick, twin, context).ready()
        assert context.calibration is not None
        found = self._sensitivities(twin, ready, context.seed)
        for batch, samples in few_samples(twin, context.calibration):
            found.update(batch, samples)
            context.progress(f"measuring sensitivities: {samples} samples")
        return {originals[node]: each for node, each in found.found().items()}

    def _sensitivities(
        self, program: Program, ready: Ready, seed: int
    ) -> Sensitivities | MeasuredSensitivities:
        inputs = dict(ready.inputs())
        if self.sensitivity == "measured":
            return MeasuredSensitivities(program, ready.layers, inputs)
        return Sensitivities(program, ready.layers, inputs, seed=seed)

    def _weights(self, target: Target) -> str:
        """What is unusual about the weights."""
        number = self.number(target)
        bits = "" if number.bits == 8 else f" with {number.bits}-bit weights"
        return bits + ("" if self.rounding == "nearest" else f" by {self.rounding}")

    def _check_training(self, context: Context) -> None:
        if self.training != "off" and context.training is None:
            raise PassError(
                f"quantize{{training={self.training}}} needs data to train on: "
                "pass training=fxopt.Training(data=loader) to fxopt.optimize",
            )

    def _train(
        self,
        program: Program,
        context: Context,
        ready: Ready,
        floats: Mapping[QuantLayer, nn.Module],
        original: Program,
    ) -> str:
        """Trains the quantized program if that is asked for; a text for the report."""
        if self.training == "off" or context.training is None:
            return ""
        if not floats:
            return ", not trained: no layer is left to quantize"
        trained = learn(
            program,
            context.training,
            floats=floats,
            roundings=ready.groups(),
            limit=int(self.number(context.target).highest),
            original=original,
        )
        return f", trained for {trained}"


def _remarked(ready: Ready) -> str:
    constant = len(ready.remarks.get("constant", ()))
    dead = sum(ready.remarks.get("dead_channels", {}).values())
    told = f", {constant} constant values" if constant else ""
    return told + (f", {dead} dead channels" if dead else "")
