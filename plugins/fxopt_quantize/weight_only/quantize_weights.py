"""The pass: puts the weights of linear layers, embeddings and recurrent layers into few bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
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
    check_names,
    is_named,
)
from fxopt_quantize.calibrate import observe
from fxopt_quantize.measured import measured_calls
from fxopt_quantize.sensitivity import shares
from fxopt_quantize.skipping import layers_taking, skip_text, staying
from fxopt_quantize.weight_only.modules import WeightOnlyEmbedding, WeightOnlyLinear
from fxopt_quantize.weight_only.moments import LinearMoments
from fxopt_quantize.weight_only.packing import PACKED_BITS
from fxopt_quantize.weight_only.precisions import FINE_BITS, Step, Tied, names_in, ordered, tied
from fxopt_quantize.weight_only.recurrent import WeightOnlyRecurrent, matrices
from fxopt_quantize.weight_only.stored import Store
from fxopt_quantize.weights import weight_refusal

_LAYERS = (nn.Linear, nn.Embedding, nn.RNNBase)
_FINE_GROUP = 32


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Weights in few bits, activations in float: for models that wait for their weights.

    A decoder that makes one token at a time reads each weight for a single multiplication, so
    what counts is how many bytes there are. Each group of neighbours in a row has a scale and a
    zero point of its own, in the range of least squared error. No data are needed for rounding to
    the nearest level.

    Attributes:
        bits: How fine weights are, from 2 to 8. Up to 4, two share a byte.
        group: How many weights share a scale; 0 for a whole row. The rows of recurrent layers,
            which are often of odd sizes, are one group each where they do not divide.
        symmetric: Whether zero is the middle of the levels in each group, which spares the zero
            points and takes a level.
        rounding: Which level a weight of a linear layer becomes: the ``nearest`` one, or one by
            which the outputs on the calibration data err less, by ``gptq`` (Frantar et al. 2023,
            with the levels chosen beforehand).
        samples: How many calibration samples that takes at most, rounded up to whole batches. With
            very many weights they are seen several times, which bounds memory.
        embeddings: Whether the tables of embeddings are stored so too.
        eight_bits: Qualified names of layers whose weights have eight bits; ``*`` matches any text.
        skip: Qualified names of layers that stay in float; ``*`` matches any text.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = False
    rounding: Literal["nearest", "gptq"] = "nearest"
    samples: int = 256
    embeddings: bool = True
    eight_bits: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        name="quantize_weights", stage="numeric", fidelity=Lossy(), after=("quantize",)
    )

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits} must be between 2 and 8")
        if self.group < 0 or self.group % 2:
            raise ValueError(f"group={self.group} must be an even number, or 0 for whole rows")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1")

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do without a layer that has such weights."""
        if self._layers(program):
            return None
        return "there is no linear layer, no embedding and no recurrent layer"

    def run(self, program: Program, context: Context) -> PassResult:
        """Replaces layers by such that hold integers.

        Raises:
            CalibrationError: ``rounding=gptq`` without calibration data, or with such that cannot
                be used.
            PassError: ``skip`` or ``eight_bits`` names a layer that does not exist.
        """
        refused = self._refused(program)
        layers = self._counterparts(program, context, refused)
        with program.edit() as edit:
            for node, reason in refused.items():
                edit.refuse(node, reason)
            for node, layer in layers.items():
                edit.replace(node, layer, *node.args, **node.kwargs)
        fine = sum(self._bits(node) != self.bits for node in layers)
        bits = f"{self.bits}-bit weights" + (f" ({fine} with {FINE_BITS}-bit ones)" if fine else "")
        scope = f"groups of {self.group}" if self.group else "whole rows"
        scope += "" if self.rounding == "nearest" else f", by {self.rounding}"
        return edit.result(
            f"{len(layers)} layers with {bits}, {scope}",
            layers=len(layers),
            float_layers=len(refused),
        )

    def milder(self, program: Program, context: Context) -> Milder:
        """Smaller groups, then more and more layers in eight bits or float.

        Those come first that cost most for the bytes they save. That is measured, on calibration
        data where there are some, else on the example inputs.
        """
        finer = self._finer(program)
        layers = finer._tied(program, context)
        steps = ordered(layers)
        options = [] if finer is self else [finer]
        options += [finer._with(steps[:n], layers) for n in range(1, len(steps))]
        found = {step.layers.label: step.layers.sensitivity() for step in steps}
        return Milder(options, shares(found))

    def _finer(self, program: Program) -> QuantizeWeights:
        """The pass with small groups, where the same layers divide into them."""
        if 0 < self.group <= _FINE_GROUP:
            return self
        finer = replace(self, group=_FINE_GROUP)
        return finer if finer._refused(program).keys() == self._refused(program).keys() else self

    def _tied(self, program: Program, context: Context) -> list[Tied]:
        """What each layer that is not refused costs, as far as layers can differ."""
        layers = self._counterparts(program, context, self._refused(program))
        exact = dict.fromkeys(layers, nn.Identity())
        # bytes are saved once, however often a layer is called
        found = measured_calls(program, context, layers, exact, gain=lambda *_: 0.0)
        return tied(
            Tied(
                (str(node.target),),
                frozenset(_matrices(program.leaf(node))),
                self._bits(node),
                each.error,
            )
            for node, each in found.items()
        )

    def _with(self, steps: Sequence[Step], layers: Sequence[Tied]) -> QuantizeWeights:
        """The pass with more bits for some layers."""
        skip = (*self.skip, *names_in(steps, None))
        more = (*self.eight_bits, *names_in(steps, FINE_BITS))
        fine = [name for name in more if name not in skip]
        rest = {name for each in layers for name in each.names if name not in skip}
        if all(is_named(name, fine) for name in rest):
            return replace(self, bits=FINE_BITS, eight_bits=(), skip=skip)
        return replace(self, eight_bits=tuple(fine), skip=skip)

    def _stores(
        self, program: Program, context: Context, taken: Sequence[fx.Node]
    ) -> dict[int, Store]:
        """By bits, what stores weights; it holds those already that GPTQ rounds."""
        stores = {bits: Store(bits, self.group, self.symmetric) for bits in (self.bits, FINE_BITS)}
        if self.rounding == "nearest" or not taken:
            return stores
        if context.calibration is None:
            raise CalibrationError(
                f"quantize_weights{{rounding={self.rounding}}} needs calibration data",
                hint="pass calibration=, an iterable of batches such as the model will see",
            )
        for part, watch in LinearMoments(program, taken).parts():
            observe(
                program,
                context.calibration,
                watch,
                samples=self.samples,
                progress=context.progress,
                task=f"gathering moments{part}",
                remedy=lambda value: skip_text("quantize_weights", layers_taking(value)),
            )
            self._compensate(program, taken, watch, stores)
        return stores

    def _compensate(
        self,
        program: Program,
        taken: Sequence[fx.Node],
        watch: LinearMoments,
        stores: Mapping[int, Store],
    ) -> None:
        """Stores the weights that were watched."""
        moments = watch.found()
        for node in taken:
            for weight in _matrices(program.leaf(node)):
                if weight in moments:
                    stores[self._bits(node)].stored(weight, moments[weight])

    def _layers(self, program: Program) -> list[fx.Node]:
        return [
            node
            for node in program.find(*_LAYERS)
            if self.embeddings or not isinstance(program.leaf(node), nn.Embedding)
        ]

    def _bits(self, node: fx.Node) -> int:
        """Of the weights of a layer."""
        return FINE_BITS if is_named(str(node.target), self.eight_bits) else self.bits

    def _counterparts(
        self, program: Program, context: Context, refused: Mapping[fx.Node, str]
    ) -> dict[fx.Node, nn.Module]:
        """The layers in few bits; a layer that is called twice gives one module."""
        nodes = self._layers(program)
        check_names(self.eight_bits, [str(node.target) for node in nodes], "eight_bits")
        taken = [node for node in nodes if node not in refused]
        stores = self._stores(program, context, taken)
        made: dict[nn.Module, nn.Module] = {}
        for node in taken:
            layer = program.leaf(node)
            if layer not in made:
                made[layer] = _counterpart(layer, stores[self._bits(node)])
        return {node: made[program.leaf(node)] for node in taken}

    def _refused(self, program: Program) -> dict[fx.Node, str]:
        """The layers that stay in float, with reasons."""
        return staying(self._layers(program), self.skip, partial(self._refusal, program))

    def _refusal(self, program: Program, node: fx.Node) -> str | None:
        layer = program.leaf(node)
        for weight in _matrices(layer):
            if (reason := weight_refusal(weight)) is not None:
                return reason
            columns = weight.shape[1]
            whole = isinstance(layer, nn.RNNBase)  # whose rows may be one group each
            shared = 2 if self.bits <= PACKED_BITS else 1  # of which a byte holds so many
            if columns % (shared if whole else self.group or shared):
                group = f"groups of {self.group}" if self.group and not whole else "bytes"
                return f"rows of {columns} weights do not divide into {group}"
        if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
            return "it scales its vectors when they are looked up"
        return None


def _matrices(layer: nn.Module) -> list[torch.Tensor]:
    if isinstance(layer, nn.RNNBase):
        return list(matrices(layer).values())
    return [layer.get_parameter("weight")]


def _counterpart(layer: nn.Module, store: Store) -> nn.Module:
    if isinstance(layer, nn.Embedding):
        return WeightOnlyEmbedding(store.stored(layer.weight))
    if isinstance(layer, nn.RNNBase):
        stored = {name: store.stored(weight) for name, weight in matrices(layer).items()}
        return WeightOnlyRecurrent(layer, stored)
    assert isinstance(layer, nn.Linear)
    return WeightOnlyLinear(store.stored(layer.weight), layer.bias)
