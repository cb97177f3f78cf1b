"""The pass: decides what is quantized, calibrates, and rewrites the program."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx, nn

from fxopt.plugin import (
    CalibrationError,
    Context,
    Edit,
    Lossy,
    Pass,
    PassError,
    PassInfo,
    PassResult,
    Program,
)
from fxopt_quantize.calibrate import Observer, observe
from fxopt_quantize.histogram import ChannelRange, Histogram
from fxopt_quantize.layers import LayerFactory, refusal
from fxopt_quantize.modules import FakeQuantize, FakeQuantizePerChannel
from fxopt_quantize.placement import Placement, Site, place
from fxopt_quantize.ranges import channel_grids, histogram_grid, minmax_grid
from fxopt_quantize.rules import Role, role_of

Calibrator = Literal["histogram", "minmax"]
Activations = Literal["auto", "asymmetric", "symmetric"]
_GRIDS = {"histogram": histogram_grid, "minmax": minmax_grid}


@dataclass(frozen=True)
class Quantize(Pass):
    """Static int8: weights symmetric per output channel, activations uint8 per tensor.

    The rewritten program computes in float what int8 kernels compute (the scheme of Jacob et
    al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", 2018); a backend that has such kernels recognises the pairs of quantize and
    dequantize and uses them.

    Attributes:
        calibrator: How the range of an activation is chosen: ``histogram`` minimises the squared
            error on the calibration data, ``minmax`` covers all that was seen.
        activations: Where zero lies in the range of an activation that can be negative: anywhere
            (``asymmetric``, the least error), in the middle (``symmetric``, the fastest
            convolutions), or ``auto``: in the middle unless only linear layers take it.
        samples: How many calibration samples are used at most, rounded up to whole batches.
        skip: Qualified names of layers that stay in float; ``*`` matches any text.
    """

    calibrator: Calibrator = "histogram"
    activations: Activations = "auto"
    samples: int = 256
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

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do without a convolution or a linear layer."""
        return None if _layers(program) else "there is no convolution and no linear layer"

    def run(self, program: Program, context: Context) -> PassResult:
        """Calibrates, then rounds weights and activations.

        Raises:
            CalibrationError: There are no calibration data, or they cannot be used.
            PassError: ``skip`` names a layer that does not exist.
        """
        refused = self._refused(program)
        placement = place(program, [node for node in _layers(program) if node not in refused])
        _unify(placement, self.activations)
        observers = _observers(placement)
        seen = self._calibrate(program, context, observers)
        with program.edit() as edit:
            for node, reason in refused.items():
                edit.refuse(node, reason)
            _round_activations(edit, placement, observers, self.calibrator)
            _round_weights(edit, program, placement)
        layers, kind = len(placement.layers), self.calibrator
        return edit.result(
            f"{layers} layers int8, per channel, {kind} of {seen} samples",
            layers=layers,
            float_layers=len(refused),
            activations=len(placement.sites),
            calibrator=kind,
            samples=seen,
        )

    def _calibrate(
        self, program: Program, context: Context, observers: dict[fx.Node, Observer]
    ) -> int:
        if context.calibration is None:
            raise CalibrationError(
                "quantize needs calibration data",
                hint="pass calibration=, an iterable of batches such as the model will see",
            )
        return observe(
            program,
            context.calibration,
            observers,
            samples=self.samples,
            progress=context.progress,
        )

    def _refused(self, program: Program) -> dict[fx.Node, str]:
        """The layers that stay in float, with reasons."""
        layers = _layers(program)
        _check_patterns(self.skip, [str(node.target) for node in layers])
        reasons = {node: refusal(program, node) for node in layers}
        for node in layers:
            if any(fnmatch.fnmatchcase(str(node.target), pattern) for pattern in self.skip):
                reasons[node] = "named in skip"
        return {node: reason for node, reason in reasons.items() if reason is not None}


def _layers(program: Program) -> list[fx.Node]:
    return [node for node in program.nodes if role_of(program, node) is Role.LAYER]


def _check_patterns(patterns: tuple[str, ...], names: list[str]) -> None:
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            close = difflib.get_close_matches(pattern, names, n=1)
            raise PassError(
                f"quantize: skip names {pattern!r}, but there is no such layer",
                hint=f"did you mean {close[0]!r}?" if close else "use qualified names of layers",
            )


def _unify(placement: Placement, activations: Activations) -> None:
    """Makes sites that share a scale agree on its kind."""
    groups: dict[int, list[Site]] = {}
    for site in placement.sites:
        groups.setdefault(site.group, []).append(site)
    for sites in groups.values():
        wished = any(site.symmetric for site in sites)
        for site in sites:
            site.symmetric = wished if activations == "auto" else activations == "symmetric"
            site.per_channel = site.per_channel and len(sites) == 1


def _observers(placement: Placement) -> dict[fx.Node, Observer]:
    """An observer for each site; sites that share a scale share theirs."""
    by_group: dict[int, Observer] = {}
    for site in placement.sites:
        if site.group not in by_group:
            by_group[site.group] = ChannelRange() if site.per_channel else Histogram()
    return {site.value: by_group[site.group] for site in placement.sites}


def _round_activations(
    edit: Edit, placement: Placement, observers: dict[fx.Node, Observer], calibrator: Calibrator
) -> None:
    for site in placement.sites:
        module = _fake_quantize(site, observers[site.value], calibrator)
        rounded = edit.call(module, site.value, before=site.takers[0])
        for taker in site.takers:
            _swap_input(edit, taker, site.value, rounded)


def _swap_input(edit: Edit, user: fx.Node, old: fx.Node, new: fx.Node) -> None:
    def swap(node: fx.Node) -> fx.Node:
        return new if node is old else node

    args, kwargs = fx.map_arg((user.args, user.kwargs), swap)
    edit.set_arguments(user, *args, **kwargs)


def _fake_quantize(site: Site, observer: Observer, calibrator: Calibrator) -> nn.Module:
    if isinstance(observer, ChannelRange):
        dtype = site.value.meta["val"].dtype
        scale, zero_point = channel_grids(observer.minimum, observer.maximum)
        return FakeQuantizePerChannel(scale.to(dtype), zero_point)
    assert isinstance(observer, Histogram)
    grid = _GRIDS[calibrator](observer, symmetric=site.symmetric)
    return FakeQuantize(grid.scale, grid.zero_point)


def _round_weights(edit: Edit, program: Program, placement: Placement) -> None:
    factory = LayerFactory()
    with torch.no_grad():
        for node in placement.layers:
            edit.replace(node, factory.quantized(program.leaf(node)), *node.args, **node.kwargs)
