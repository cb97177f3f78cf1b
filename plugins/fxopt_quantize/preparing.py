"""All of the pass that takes calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxopt.plugin import CalibrationError, Context, Program
from fxopt_quantize.adaround import adaround
from fxopt_quantize.bias import BiasErrors
from fxopt_quantize.calibrate import Observer, Watch, observe, values_of
from fxopt_quantize.calibrators import activation_grid
from fxopt_quantize.equalize import Equalizer
from fxopt_quantize.gains import worthless
from fxopt_quantize.gptq import gptq
from fxopt_quantize.histogram import ChannelRange
from fxopt_quantize.layers import LayerFactory, int8_refusal
from fxopt_quantize.modules import FakeQuantize, FakeQuantizePerChannel
from fxopt_quantize.moments import InputMoments, Reconstruction
from fxopt_quantize.placement import Placement, Site, place
from fxopt_quantize.ranges import channel_grids
from fxopt_quantize.ready import Ready
from fxopt_quantize.results import ResultRange, results_of
from fxopt_quantize.rules import layers_of
from fxopt_quantize.settings import Settings
from fxopt_quantize.silent import remarkable, takers_of_dead
from fxopt_quantize.sites import observers_of, unify
from fxopt_quantize.skipping import layers_rounding, skip_text, staying
from fxopt_quantize.smooth import Smoother


class Preparation:
    """Rescales, calibrates and rounds weights; of the program itself, only factors move.

    Args:
        settings: Of the pass.
        program: In float, with batch norms folded.
        context: With calibration data.
    """

    def __init__(self, settings: Settings, program: Program, context: Context) -> None:
        self._settings, self._program, self._context = settings, program, context
        self._number = settings.number(context.target)

    def ready(self) -> Ready:
        """All that takes calibration data; of the program itself, only factors move."""
        self.rescale()
        ready = self._calibrate()
        if self._settings.rounding != "nearest":
            self._round_weights(ready)
        if self._settings.bias_correction:
            self._correct_biases(ready)
        return ready

    def _calibrate(self) -> Ready:
        """Where values are rounded, by what the data show, and weights to the nearest integers."""
        refused = self._refused()
        found = self._calibrated(refused)
        while dead := takers_of_dead(self._program, found.placement, found.observers):
            refused.update(dead)  # without them rounding may be elsewhere, which was not watched
            found = self._calibrated(refused)
        placement, observers = found.placement, found.observers
        roundings = {
            site.value: self._rounding(site, observers[site.value]) for site in placement.sites
        }
        factory = LayerFactory(self._number, whole=self._settings.weights == "tensor")
        layers = {node: factory.quantized(self._program.leaf(node)) for node in placement.layers}
        for node, result in found.results.items():
            layers[node].bounds = result.bounds()
        remarks = remarkable(observers)
        return Ready(refused, placement, roundings, layers, found.samples, remarks)

    def _calibrated(self, refused: Mapping[fx.Node, str]) -> _Calibrated:
        """What is to be rounded and what was seen of it, with some operations in float."""
        layers = [node for node in layers_of(self._program) if node not in refused]
        placement = place(self._program, layers, refused.keys())
        unify(placement, self._settings.activations, self._settings.depthwise)
        observers = observers_of(placement, self._settings.calibrator)
        results = {} if self._settings.training != "off" else results_of(self._program, placement)
        watch = values_of({**observers, **results})
        seen = self._observe(watch, "calibrating")
        return _Calibrated(placement, observers, results, seen)

    def _observe(self, watch: Watch, task: str) -> int:
        if self._context.calibration is None:
            raise CalibrationError(
                "quantize needs calibration data",
                hint="pass calibration=, an iterable of batches such as the model will see",
            )
        return observe(
            self._program,
            self._context.calibration,
            watch,
            samples=self._settings.samples,
            progress=self._context.progress,
            task=task,
            remedy=lambda value: skip_text("quantize", layers_rounding(self._program, value)),
        )

    def rescale(self) -> None:
        """Moves factors between channels; what the program computes stays the same."""
        refused = self._refused()
        layers = [node for node in layers_of(self._program) if node not in refused]
        if self._settings.equalization != "off":
            equalizer = Equalizer(self._program, layers)
            if self._settings.equalization == "activations" and equalizer.links:
                self._observe(equalizer, "equalizing")
            equalizer.equalize(self._settings.equalization)
        smoother = Smoother(self._program, layers)
        if self._settings.smoothing and smoother:
            self._observe(smoother, "smoothing")
            smoother.smooth(self._settings.smoothing)

    def _rounding(self, site: Site, observer: Observer) -> nn.Module:
        """What rounds a value."""
        if isinstance(observer, ChannelRange):
            scale, zero_point = channel_grids(observer.minimum, observer.maximum)
            return FakeQuantizePerChannel(scale.float(), zero_point)  # torch takes no others
        grid = activation_grid(
            observer,
            self._settings.calibrator,
            symmetric=site.symmetric,
            percentile=self._settings.percentile,
            linear=site.linear,
        )
        return FakeQuantize(grid.scale, grid.zero_point)

    def _round_weights(self, ready: Ready) -> None:
        weights = {node: self._program.leaf(node).get_parameter("weight") for node in ready.layers}
        for part, moments in InputMoments(ready.layers, dict(ready.inputs())).parts():
            self._observe(moments, f"gathering moments{part}")
            self._reconstruct(moments.found(weights), len(moments), part)

    def _reconstruct(self, found: Iterator[Reconstruction], count: int, part: str) -> None:
        choose = {"gptq": gptq, "adaround": adaround}[self._settings.rounding]
        limit = int(self._number.highest)
        with torch.no_grad():
            for done, each in enumerate(found, start=1):
                each.put(choose(each.weight, each.scale, each.moments, limit))
                self._context.progress(
                    f"rounding by {self._settings.rounding}{part}: {done} of {count} weights"
                )

    def _correct_biases(self, ready: Ready) -> None:
        with torch.no_grad():
            errors = BiasErrors(ready.layers, dict(ready.inputs()))
            self._observe(errors, "correcting biases")
            errors.correct()

    def _refused(self) -> dict[fx.Node, str]:
        """The layers that stay in float, with reasons."""
        layers = layers_of(self._program)
        small = worthless(self._program, layers, self._settings.least_saving)
        return staying(
            layers,
            self._settings.skip,
            lambda node: int8_refusal(self._program, node) or small.get(node),
        )


@dataclass(frozen=True)
class _Calibrated:
    """Where values are rounded, and what was seen there and of the results of layers."""

    placement: Placement
    observers: Mapping[fx.Node, Observer]
    results: Mapping[fx.Node, ResultRange]
    samples: int
