"""The pass: puts the weights of linear layers, embeddings and recurrent layers into few bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import fx, nn

from fxopt.plugin import (
    CalibrationError,
    Context,
    Edit,
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
from fxopt_quantize.weight_only.modules import WeightOnlyEmbedding, WeightOnlyLinear
from fxopt_quantize.weight_only.moments import LinearMoments
from fxopt_quantize.weight_only.recurrent import WeightOnlyRecurrent, matrices
from fxopt_quantize.weight_only.stored import Store
from fxopt_quantize.weights import weight_refusal

_LAYERS = (nn.Linear, nn.Embedding, nn.RNNBase)
_FINE_GROUP = 32
_FINE_BITS = 8


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
        samples: How many calibration samples that takes at most, rounded up to whole batches.
        embeddings: Whether the tables of embeddings are stored so too.
        skip: Qualified names of layers that stay in float; ``*`` matches any text.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = False
    rounding: Literal["nearest", "gptq"] = "nearest"
    samples: int = 256
    embeddings: bool = True
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
            PassError: ``skip`` names a layer that does not exist.
        """
        nodes = self._layers(program)
        check_names(self.skip, [str(node.target) for node in nodes], "skip")
        moments = self._moments(program, context, nodes)
        store = Store(self.bits, self.group, self.symmetric, moments)
        made: dict[nn.Module, nn.Module] = {}
        left = 0
        with program.edit() as edit:
            for node in nodes:
                left += self._replace(edit, program, node, store, made)
        scope = f"groups of {self.group}" if self.group else "whole rows"
        scope += "" if self.rounding == "nearest" else f", by {self.rounding}"
        return edit.result(
            f"{len(nodes) - left} layers with {self.bits}-bit weights, {scope}",
            layers=len(nodes) - left,
            float_layers=left,
        )

    def milder(self, program: Program, context: Context) -> Milder:
        """Smaller groups, then eight bits."""
        options = []
        if self.bits < _FINE_BITS and not 0 < self.group <= _FINE_GROUP:
            options.append(replace(self, group=_FINE_GROUP))
        if self.bits < _FINE_BITS:
            options.append(replace(self, bits=_FINE_BITS, group=_FINE_GROUP))
        return Milder(options)

    def _moments(
        self, program: Program, context: Context, nodes: list[fx.Node]
    ) -> dict[torch.Tensor, torch.Tensor]:
        """Of the inputs of the layers that are rounded by them; none where none are."""
        taken = [node for node in nodes if self._refusal(node, program.leaf(node)) is None]
        if self.rounding == "nearest" or not taken:
            return {}
        if context.calibration is None:
            raise CalibrationError(
                f"quantize_weights{{rounding={self.rounding}}} needs calibration data",
                hint="pass calibration=, an iterable of batches such as the model will see",
            )
        moments = LinearMoments(program, taken)
        observe(
            program,
            context.calibration,
            moments,
            samples=self.samples,
            progress=context.progress,
            task="gathering moments",
        )
        return moments.found()

    def _layers(self, program: Program) -> list[fx.Node]:
        return [
            node
            for node in program.find(*_LAYERS)
            if self.embeddings or not isinstance(program.leaf(node), nn.Embedding)
        ]

    def _replace(
        self,
        edit: Edit,
        program: Program,
        node: fx.Node,
        store: Store,
        made: dict[nn.Module, nn.Module],
    ) -> bool:
        """Whether a layer stays in float."""
        layer = program.leaf(node)
        reason = self._refusal(node, layer)
        if reason is not None:
            edit.refuse(node, reason)
            return True
        if layer not in made:  # a layer that is called twice gives one module
            made[layer] = _counterpart(layer, store)
        edit.replace(node, made[layer], *node.args, **node.kwargs)
        return False

    def _refusal(self, node: fx.Node, layer: nn.Module) -> str | None:
        """Why a layer stays in float; None where nothing speaks against it."""
        if is_named(str(node.target), self.skip):
            return "named in skip"
        for weight in _matrices(layer):
            if (reason := weight_refusal(weight)) is not None:
                return reason
            columns = weight.shape[1]
            whole = isinstance(layer, nn.RNNBase)  # whose rows may be one group each
            if columns % (2 if whole else self.group or 2):
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
