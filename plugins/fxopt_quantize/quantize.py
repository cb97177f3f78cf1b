"""The pass: decides what is quantized, calibrates, and rewrites the program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import fx, nn

from fxopt.plugin import (
    CalibrationError,
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
from fxopt_quantize.adaround import adaround
from fxopt_quantize.bias import BiasErrors
from fxopt_quantize.calibrate import Observer, Watch, observe, values_of
from fxopt_quantize.calibrators import Calibrator, activation_grid
from fxopt_quantize.equalize import Equalization, Equalizer
from fxopt_quantize.formats import NumberFormat, safe, signed
from fxopt_quantize.gains import worthless
from fxopt_quantize.gptq import gptq
from fxopt_quantize.histogram import ChannelRange
from fxopt_quantize.layers import LayerFactory, int8_refusal
from fxopt_quantize.learn import learn
from fxopt_quantize.measured import MeasuredSensitivities
from fxopt_quantize.modules import FakeQuantize, FakeQuantizePerChannel, QuantLayer
from fxopt_quantize.moments import InputMoments, Reconstruction
from fxopt_quantize.placement import Placement, Site, place
from fxopt_quantize.ranges import channel_grids
from fxopt_quantize.ready import Ready
from fxopt_quantize.results import ResultRange, results_of
from fxopt_quantize.rewrite import round_activations
from fxopt_quantize.rules import Role, role_of
from fxopt_quantize.sensitivity import (
    Sensitivities,
    Sensitivity,
    few_samples,
    ranked,
    shares,
)
from fxopt_quantize.silent import remarkable, takers_of_dead
from fxopt_quantize.sites import Activations, Depthwise, observers_of, unify
from fxopt_quantize.skipping import layers_rounding, skip_text, staying
from fxopt_quantize.smooth import Smoother, Strength

Rounding = Literal["nearest", "gptq", "adaround"]
Learning = Literal["off", "lsq"]
Bits = int | Literal["auto"]


@dataclass(frozen=True)
class Quantize(Pass):
    """Static int8: weights symmetric, activations uint8 per tensor.

    The rewritten program computes in float what int8 kernels compute (the scheme of Jacob et
    al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", 2018); a backend that has such kernels recognises the pairs of quantize and
    dequantize and uses them.

    Attributes:
        calibrator: How the range of an activation is chosen: ``histogram`` minimises the squared
            error on the calibration data, ``auto`` does, but covers all that was seen where
            linear layers alone take the value (in a transformer, much depends on its outliers),
            ``entropy`` the loss of information, ``minmax`` covers
            all that was seen, ``percentile`` all but the rarest values, and ``moving_average``
            what a batch spans on the average. Where each channel has a range of its own, that
            covers all that was seen.
        percentile: For the calibrator of that name: percent of the values that lie within either
            end.
        activations: Where zero lies in the range of an activation that can be negative: anywhere
            (``asymmetric``, the least error), in the middle (``symmetric``, the fastest
            convolutions), or ``auto``: in the middle unless only linear layers take it.
        weights: Whether weights have one scale per output ``channel``, or one for a whole
            ``tensor``, for hardware that knows no others; ``equalization=weights`` makes up for
            much of what that costs.
        depthwise: Whether the input of a depthwise convolution has one scale, or one per channel
            (``channel``): finer steps, but ranges that hold for the calibration data alone if
            those are few, and slower kernels (15 % of the latency of mobilenet_v2).
        samples: How many calibration samples are used at most, rounded up to whole batches.
        smoothing: How much of the outliers in single channels of what linear layers take moves to
            their weights: the migration strength of Xiao et al. 2023, from 0, nothing, to 1, or
            ``auto``, for each value what is best, if it is worth it; takes a further run over
            the calibration data.
        equalization: Whether factors move between the channels of layers in a row before anything
            is rounded: ``weights`` balances the weights of both (Nagel et al. 2019), which needs
            no data, ``activations`` what the calibration data show between them.
        weight_bits: How fine weights are, from 2 to 8; they take a byte each all the same. By
            default 8, but 7 for a CPU whose kernels would overflow (x86 without VNNI).
        rounding: Which integer a weight becomes: the ``nearest`` one, or one by which the outputs
            on the calibration data err less, by ``gptq`` (Frantar et al. 2023) or ``adaround``
            (Nagel et al. 2020, up to minutes a layer), which take a further run over the data,
            or several where weights are very many, to bound memory. Transposed convolutions get
            the nearest one.
        bias_correction: Whether biases make up for the shift that rounding gives to the mean of a
            layer's outputs (Nagel et al. 2019); takes a second run over the calibration data.
        training: Whether weights, biases and scales are then trained as the integers that they
            become: quantization-aware training by learned step sizes (``lsq``, Esser et al.
            2020), on the data of ``fxopt.optimize(training=)``. Where those have no labels, the
            program learns to give the outputs that it gave in float. Statistics of batch norms
            stay, and so does what asks for no gradients, unless nothing does.
        sensitivity: How it is found out which layers cost the most quality, where a limit is not
            kept: by ``gradient``, an estimate from a few backward passes, or ``measured``, by
            running what comes after each layer, in about half as many runs as there are layers.
            Layers are rounded as they would be, but by ``gptq`` instead of ``adaround``.
        least_saving: The smallest linear layers that take floats, as behind a layer norm, stay in
            float as long as all of them together account for less than this share of the time of
            all layers: they would cost quality and save nothing.
        skip: Qualified names of layers that stay in float; ``*`` matches any text.
    """

    calibrator: Calibrator = "auto"
    percentile: float = 99.99
    activations: Activations = "auto"
    weights: Literal["channel", "tensor"] = "channel"
    depthwise: Depthwise = "tensor"
    samples: int = 256
    smoothing: Strength = "auto"
    equalization: Equalization = "off"
    weight_bits: Bits = "auto"
    rounding: Rounding = "nearest"
    bias_correction: bool = True
    training: Learning = "off"
    sensitivity: Literal["gradient", "measured"] = "gradient"
    least_saving: float = 0.005
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        name="quantize",
        stage="numeric",
        fidelity=Lossy(),
        requires=("batch_norms_folded",),
        needs=("calibration",),
    )

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile} must be over 50 and at most 100")
        if self.weight_bits != "auto" and not 2 <= self.weight_bits <= 8:
            raise ValueError(f"weight_bits={self.weight_bits} must be between 2 and 8")
        if not 0 <= self.least_saving < 1:
            raise ValueError(f"least_saving={self.least_saving} must be at least 0 and under 1")
        if self.smoothing != "auto" and not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing={self.smoothing} must be between 0 and 1")

    def _number(self, target: Target) -> NumberFormat:
        """What weights become."""
        return safe(target) if self.weight_bits == "auto" else signed(self.weight_bits)

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do without a convolution or a linear layer."""
        if _layers(program):
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
        ready = self._prepare(program, context)
        floats = {layer: program.leaf(node) for node, layer in ready.layers.items()}
        count, kind = len(ready.layers), self.calibrator
        left = len(_layers(program)) - count
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
        ready = quick._prepare(twin, context)
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

    def _prepare(self, program: Program, context: Context) -> Ready:
        """All that takes calibration data; of the program itself, only factors move."""
        self._rescale(program, context)
        ready = self._calibrate(program, context)
        if self.rounding != "nearest":
            self._round_weights(program, context, ready)
        if self.bias_correction:
            self._correct_biases(program, context, ready)
        return ready

    def _calibrate(self, program: Program, context: Context) -> Ready:
        """Where values are rounded, by what the data show, and weights to the nearest integers."""
        refused = self._refused(program)
        found = self._calibrated(program, context, refused)
        while dead := takers_of_dead(program, found.placement, found.observers):
            refused.update(dead)  # without them rounding may be elsewhere, which was not watched
            found = self._calibrated(program, context, refused)
        placement, observers = found.placement, found.observers
        roundings = {
            site.value: self._rounding(site, observers[site.value]) for site in placement.sites
        }
        number, whole = self._number(context.target), self.weights == "tensor"
        factory = LayerFactory(number, whole=whole)
        layers = {node: factory.quantized(program.leaf(node)) for node in placement.layers}
        for node, result in found.results.items():
            layers[node].bounds = result.bounds()
        remarks = remarkable(observers)
        return Ready(refused, placement, roundings, layers, found.samples, remarks)

    def _calibrated(
        self, program: Program, context: Context, refused: Mapping[fx.Node, str]
    ) -> _Calibrated:
        """What is to be rounded and what was seen of it, with some operations in float."""
        layers = [node for node in _layers(program) if node not in refused]
        placement = place(program, layers, refused.keys())
        unify(placement, self.activations, self.depthwise)
        observers = observers_of(placement, self.calibrator)
        results = {} if self.training != "off" else results_of(program, placement)
        watch = values_of({**observers, **results})
        seen = self._observe(program, context, watch, "calibrating")
        return _Calibrated(placement, observers, results, seen)

    def _observe(self, program: Program, context: Context, watch: Watch, task: str) -> int:
        if context.calibration is None:
            raise CalibrationError(
                "quantize needs calibration data",
                hint="pass calibration=, an iterable of batches such as the model will see",
            )
        return observe(
            program,
            context.calibration,
            watch,
            samples=self.samples,
            progress=context.progress,
            task=task,
            remedy=lambda value: skip_text("quantize", layers_rounding(program, value)),
        )

    def _rescale(self, program: Program, context: Context) -> None:
        """Moves factors between channels; what the program computes stays the same."""
        refused = self._refused(program)
        layers = [node for node in _layers(program) if node not in refused]
        if self.equalization != "off":
            equalizer = Equalizer(program, layers)
            if self.equalization == "activations" and equalizer.links:
                self._observe(program, context, equalizer, "equalizing")
            equalizer.equalize(self.equalization)
        smoother = Smoother(program, layers)
        if self.smoothing and smoother:
            self._observe(program, context, smoother, "smoothing")
            smoother.smooth(self.smoothing)

    def _rounding(self, site: Site, observer: Observer) -> nn.Module:
        """What rounds a value."""
        if isinstance(observer, ChannelRange):
            scale, zero_point = channel_grids(observer.minimum, observer.maximum)
            return FakeQuantizePerChannel(scale.float(), zero_point)  # torch takes no others
        grid = activation_grid(
            observer,
            self.calibrator,
            symmetric=site.symmetric,
            percentile=self.percentile,
            linear=site.linear,
        )
        return FakeQuantize(grid.scale, grid.zero_point)

    def _round_weights(self, program: Program, context: Context, ready: Ready) -> None:
        weights = {node: program.leaf(node).get_parameter("weight") for node in ready.layers}
        for part, moments in InputMoments(ready.layers, dict(ready.inputs())).parts():
            self._observe(program, context, moments, f"gathering moments{part}")
            self._reconstruct(moments.found(weights), len(moments), context, part)

    def _reconstruct(
        self, found: Iterator[Reconstruction], count: int, context: Context, part: str
    ) -> None:
        choose = {"gptq": gptq, "adaround": adaround}[self.rounding]
        limit = int(self._number(context.target).highest)
        with torch.no_grad():
            for done, each in enumerate(found, start=1):
                each.put(choose(each.weight, each.scale, each.moments, limit))
                context.progress(f"rounding by {self.rounding}{part}: {done} of {count} weights")

    def _weights(self, target: Target) -> str:
        """What is unusual about the weights."""
        number = self._number(target)
        bits = "" if number.bits == 8 else f" with {number.bits}-bit weights"
        return bits + ("" if self.rounding == "nearest" else f" by {self.rounding}")

    def _correct_biases(self, program: Program, context: Context, ready: Ready) -> None:
        with torch.no_grad():
            errors = BiasErrors(ready.layers, dict(ready.inputs()))
            self._observe(program, context, errors, "correcting biases")
            errors.correct()

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
            limit=int(self._number(context.target).highest),
            original=original,
        )
        return f", trained for {trained}"

    def _refused(self, program: Program) -> dict[fx.Node, str]:
        """The layers that stay in float, with reasons."""
        layers = _layers(program)
        small = worthless(program, layers, self.least_saving)
        return staying(
            layers, self.skip, lambda node: int8_refusal(program, node) or small.get(node)
        )


@dataclass(frozen=True)
class _Calibrated:
    """Where values are rounded, and what was seen there and of the results of layers."""

    placement: Placement
    observers: Mapping[fx.Node, Observer]
    results: Mapping[fx.Node, ResultRange]
    samples: int


def _remarked(ready: Ready) -> str:
    constant = len(ready.remarks.get("constant", ()))
    dead = sum(ready.remarks.get("dead_channels", {}).values())
    told = f", {constant} constant values" if constant else ""
    return told + (f", {dead} dead channels" if dead else "")


def _layers(program: Program) -> list[fx.Node]:
    return [node for node in program.nodes if role_of(program, node) is Role.LAYER]
