"""The pass: linear and recurrent layers in int8, with ranges of activations found on each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import fx, nn

from fxopt.plugin import Context, Lossy, Milder, Pass, PassInfo, PassResult, Program, Target
from fxopt_quantize.dynamic.modules import DynamicLinear
from fxopt_quantize.dynamic.recurrent import DynamicRecurrent, RowStore, recurrent_refusal
from fxopt_quantize.formats import NumberFormat, safe
from fxopt_quantize.layers import LayerFactory, refusal
from fxopt_quantize.measured import measured
from fxopt_quantize.modules import QuantLayer
from fxopt_quantize.sensitivity import shares
from fxopt_quantize.skipping import staying


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Dynamic int8: weights per output channel, what layers take per row and call.

    No data are needed, and no outlier of one token coarsens another one: the scheme of Yao et al.,
    "ZeroQuant", 2022, token by token, both symmetric. Finding the ranges costs a pass over each
    layer's input, so it is for layers with many outputs, as transformers have them. Recurrent
    layers, whose states no calibration could bound for all steps, take their input and state as
    :class:`DynamicRecurrent` says.

    Attributes:
        skip: Qualified names of layers that stay in float; ``*`` matches any text.
    """

    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        name="quantize_dynamic", stage="numeric", fidelity=Lossy(), after=("quantize",)
    )

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do without a linear layer in float."""
        return None if _layers(program) else "there is no linear or recurrent layer in float"

    def run(self, program: Program, context: Context) -> PassResult:
        """Replaces layers by such that round.

        Raises:
            PassError: ``skip`` names a layer that does not exist.
        """
        refused = self._refused(program)
        layers = self._counterparts(program, refused, context.target)
        with program.edit() as edit:
            for node, reason in refused.items():
                edit.refuse(node, reason)
            for node, layer in layers.items():
                edit.replace(node, layer, *node.args, **node.kwargs)
        return edit.result(
            f"{len(layers)} layers int8, rounded on each call",
            layers=len(layers),
            float_layers=len(refused),
        )

    def milder(self, program: Program, context: Context) -> Milder:
        """More and more layers stay in float, those first that cost most for what they save.

        That is measured, on calibration data where there are some, else on the example inputs.
        """
        layers = self._counterparts(program, self._refused(program), context.target)
        found = measured(program, context, layers, dict.fromkeys(layers, nn.Identity()))
        names = list(found)
        options = [replace(self, skip=(*self.skip, *names[:n])) for n in range(1, len(names))]
        return Milder(options, shares(found))

    def _refused(self, program: Program) -> dict[fx.Node, str]:
        """The layers that stay in float, with reasons."""
        return staying(_layers(program), self.skip, partial(_refusal, program))

    def _counterparts(
        self, program: Program, refused: Mapping[fx.Node, str], target: Target
    ) -> dict[fx.Node, QuantLayer | DynamicRecurrent]:
        """The layers in int8; a layer that is called twice gives one, tied weights stay tied."""
        factory = _Factory(safe(target))
        taken = [node for node in _layers(program) if node not in refused]
        return {node: factory.quantized(program.leaf(node)) for node in taken}


class _Factory:
    """Makes the counterparts of linear and recurrent layers."""

    def __init__(self, number: NumberFormat) -> None:
        self._linear = LayerFactory(number, linear=DynamicLinear)
        self._matrices = RowStore()
        self._recurrent: dict[nn.Module, DynamicRecurrent] = {}

    def quantized(self, layer: nn.Module) -> QuantLayer | DynamicRecurrent:
        if not isinstance(layer, nn.RNNBase):
            return self._linear.quantized(layer)
        if layer not in self._recurrent:
            self._recurrent[layer] = DynamicRecurrent(layer, self._matrices.stored(layer))
        return self._recurrent[layer]


def _layers(program: Program) -> list[fx.Node]:
    return list(program.find(nn.Linear, nn.RNNBase))


def _refusal(program: Program, node: fx.Node) -> str | None:
    layer = program.leaf(node)
    return recurrent_refusal(layer) if isinstance(layer, nn.RNNBase) else refusal(program, node)
