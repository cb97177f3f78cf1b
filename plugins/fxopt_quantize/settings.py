"""What can be chosen about the pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxopt.plugin import Target
from fxopt_quantize.calibrators import Calibrator
from fxopt_quantize.equalize import Equalization
from fxopt_quantize.formats import NumberFormat, safe, signed
from fxopt_quantize.sites import Activations, Depthwise
from fxopt_quantize.smooth import Strength

Rounding = Literal["nearest", "gptq", "adaround"]
Learning = Literal["off", "lsq"]
Bits = int | Literal["auto"]


@dataclass(frozen=True)
class Settings:
    """What can be chosen about static int8.

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

    def number(self, target: Target) -> NumberFormat:
        """What weights become."""
        return safe(target) if self.weight_bits == "auto" else signed(self.weight_bits)
