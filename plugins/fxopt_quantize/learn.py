"""Quantization-aware training: a quantized program learns its weights, biases and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from fxopt.plugin import Program, Trained, Trainer
from fxopt_quantize.lsq import LearnedWeight
from fxopt_quantize.modules import FakeQuantize, QuantLayer

# A step that reaches zero would divide by it; this share of where it began is no grid any more.
_LEAST = 1e-3


def learn(
    program: Program,
    trainer: Trainer,
    *,
    floats: Mapping[QuantLayer, nn.Module],
    roundings: Sequence[Sequence[FakeQuantize]],
    limit: int,
    original: Program,
) -> Trained:
    """Trains a quantized program in place, as the integer program that it is.

    What the user froze stays: the integers and scales of a weight, a bias. The statistics of batch
    norms that were not folded stay, too: the roundings were calibrated for them.

    Args:
        program: Quantized; its layers and roundings are those given.
        trainer: Trains it; where the data have no labels, towards the outputs of ``original``.
        floats: The layers in int8, one at least, and what each was in float.
        roundings: What rounds activations; those of one group share their step.
        limit: The largest integer of a weight.
        original: The program in float; it is not changed.
    """
    objective = None if trainer.labelled else _match(original)
    key = f"{limit} {original.fingerprint() if objective else ''}"
    asked = any(parameter.requires_grad for parameter in original.module.parameters())
    with _learning(floats, roundings, limit, asked) as steps:
        least = [step.detach() * _LEAST for step in steps]

        def keep_positive() -> None:
            with torch.no_grad():
                for step, bound in zip(steps, least, strict=True):
                    step.clamp_(min=bound.to(step.device))

        return trainer.train(
            program,
            name="quantize",
            objective=objective,
            after_step=keep_positive,
            key=key,
            evaluating=[each for each in program.module.modules() if isinstance(each, _NormBase)],
        )


@contextmanager
def _learning(
    floats: Mapping[QuantLayer, nn.Module],
    roundings: Sequence[Sequence[FakeQuantize]],
    limit: int,
    asked: bool,
) -> Iterator[list[nn.Parameter]]:
    """Weights and steps are parameters inside, and what they have become afterwards."""
    learned = _learn_layers(floats, limit)
    like = learned[0].step
    steps = [nn.Parameter(like.new_tensor(group[0].scale), asked) for group in roundings]
    for group, step in zip(roundings, steps, strict=True):
        for rounding in group:
            rounding.step = step
    try:
        yield [*steps, *(each.step for each in learned)]
    finally:
        _settle(list(floats), roundings)


def _learn_layers(floats: Mapping[QuantLayer, nn.Module], limit: int) -> list[LearnedWeight]:
    """Layers get learned weights, which ask for gradients where the user's do."""
    shared: dict[int, LearnedWeight] = {}  # by the integers, which tied layers share
    for layer, original in floats.items():
        key, weight = id(layer.weight_values), original.get_parameter("weight")
        if key not in shared:
            shared[key] = LearnedWeight(weight, layer.weight_scale, limit)
            shared[key].begin_at(layer.weight_values)  # GPTQ or AdaRound may have chosen them
            shared[key].requires_grad_(weight.requires_grad)
        layer.learned = shared[key]
        if layer.bias is not None:
            like = weight if original.bias is None else original.get_parameter("bias")
            layer.bias.requires_grad_(like.requires_grad)
    return list(shared.values())


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
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
    for rounding in (each for group in roundings for each in group):
        assert rounding.step is not None
        rounding.scale = rounding.step.item()
        del rounding.step
        rounding.step = None


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
