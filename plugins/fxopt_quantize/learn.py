"""Quantization-aware training: a quantized program learns its weights, biases and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fxopt.plugin import Program, Trained, Trainer
from fxopt_quantize.lsq import LearnedWeight
from fxopt_quantize.modules import FakeQuantize, QuantLayer

# A step that reaches zero would divide by it; this share of where it began is no grid any more.
_LEAST = 1e-3


def learn(
    program: Program,
    trainer: Trainer,
    *,
    layers: Sequence[QuantLayer],
    weights: Mapping[QuantLayer, torch.Tensor],
    roundings: Sequence[Sequence[FakeQuantize]],
    limit: int,
    original: Program,
) -> Trained:
    """Trains a quantized program in place, as the integer program that it is.

    Args:
        program: Quantized; its layers and roundings are those given.
        trainer: Trains it; where the data have no labels, towards the outputs of ``original``.
        layers: The layers in int8.
        weights: What each was rounded from.
        roundings: What rounds activations; those of one group share their step.
        limit: The largest integer of a weight.
        original: The program in float; it is not changed.
    """
    objective = None if trainer.labelled else _match(original)
    key = f"{limit} {original.fingerprint() if objective else ''}"
    with _learning(layers, weights, roundings, limit) as steps:
        least = [step.detach() * _LEAST for step in steps]

        def keep_positive() -> None:
            with torch.no_grad():
                for step, bound in zip(steps, least, strict=True):
                    step.clamp_(min=bound.to(step.device))

        return trainer.train(
            program, name="quantize", objective=objective, after_step=keep_positive, key=key
        )


@contextmanager
def _learning(
    layers: Sequence[QuantLayer],
    weights: Mapping[QuantLayer, torch.Tensor],
    roundings: Sequence[Sequence[FakeQuantize]],
    limit: int,
) -> Iterator[list[nn.Parameter]]:
    """Weights and steps are parameters inside, and what they have become afterwards."""
    shared: dict[int, LearnedWeight] = {}  # by the integers, which tied layers share
    for layer in layers:
        key = id(layer.weight_values)
        if key not in shared:
            shared[key] = LearnedWeight(weights[layer], layer.weight_scale, limit)
            shared[key].begin_at(layer.weight_values)  # GPTQ or AdaRound may have chosen them
        layer.learned = shared[key]
        _train_bias(layer, True)
    like = next(iter(shared.values())).step
    steps = [nn.Parameter(like.new_tensor(group[0].scale)) for group in roundings]
    for group, step in zip(roundings, steps, strict=True):
        for rounding in group:
            rounding.step = step
    try:
        yield [*steps, *(learned.step for learned in shared.values())]
    finally:
        _settle(layers, roundings)


def _settle(layers: Sequence[QuantLayer], roundings: Sequence[Sequence[FakeQuantize]]) -> None:
    integers: dict[LearnedWeight, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer in layers:
        learned = layer.learned
        assert learned is not None
        if learned not in integers:
            integers[learned] = learned.integers(), learned.step.detach().clone()
        layer.weight_values, layer.weight_scale = integers[learned]
        del layer.learned
        layer.learned = None
        _train_bias(layer, False)
    for rounding in (each for group in roundings for each in group):
        assert rounding.step is not None
        rounding.scale = rounding.step.item()
        del rounding.step
        rounding.step = None


def _train_bias(layer: QuantLayer, wanted: bool) -> None:
    if layer.bias is not None:
        layer.bias.requires_grad_(wanted)


def _match(original: Program) -> Callable[..., torch.Tensor]:
    """The mean squared error against the original's outputs, relative to their mean square."""

    def objective(outputs: Sequence[Any], inputs: Sequence[Any], target: Any) -> torch.Tensor:
        original.module.to(outputs[0].device).eval()
        with torch.no_grad():
            wanted = original(*inputs)
        pairs = [(o, w) for o, w in zip(outputs, wanted, strict=True) if _is_float(w)]
        errors = [F.mse_loss(o, w) / w.square().mean().clamp(min=1e-12) for o, w in pairs]
        return torch.stack(errors).mean()

    return objective


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
