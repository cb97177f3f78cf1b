"""Runs passes and programs so that nothing of it is left behind but their results."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fxopt.analysis import Analyses
from fxopt.ir import Program
from fxopt.passes import Context, Pass
from fxopt.pipeline.precision import full_precision


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers start at ``seed`` inside, and go on outside as if nothing had happened."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """All of ``module`` is in eval mode inside, and in the modes it had outside."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def copy_inputs(flat: Sequence[Any]) -> list[Any]:
    """Flat inputs with tensors of their own."""
    return [t.detach().clone() if isinstance(t, torch.Tensor) else t for t in flat]


def private_context(context: Context, analyses: Analyses) -> Context:
    """A context of which a pass may change what it likes; only the calibration data is shared."""
    examples = [copy_inputs(flat) for flat in context.examples]
    return dataclasses.replace(context, examples=examples, analyses=analyses)


def run_pass(item: Pass, program: Program, context: Context) -> Any:
    """Runs a pass on ``program`` itself.

    What the pass returns is handed on as it is: it may be anything. Random numbers start at the
    context's seed, and gradients are enabled as they are in plain Python code.
    """
    with seeded(context.seed), torch.enable_grad():
        return item.run(program, context)


def why_inapplicable(item: Pass, program: Program, context: Context) -> str | None:
    """Why there is nothing for a pass to do, in the pass's own words."""
    with seeded(context.seed):
        reason = item.inapplicable(program, context)
    return None if reason is None else str(reason)


def missing_data(item: Pass, context: Context) -> str | None:
    """Which data a pass needs that there is none of; None when it has all."""
    lacking = [need for need in item.info.needs if getattr(context, need, None) is None]
    return f"needs {lacking[0]} data, and there is none: give {lacking[0]}=" if lacking else None


def run_program(program: Program, flat: Sequence[Any], seed: int) -> tuple[Any, ...]:
    """The flat outputs in eval mode and full precision, without gradients, on copies of the inputs.

    Raises:
        ValueError: The program writes to its inputs.
    """
    own = copy_inputs(flat)
    with evaluating(program.module), torch.no_grad(), seeded(seed), full_precision():
        outputs = tuple(program(*own))
    for index, (before, after) in enumerate(zip(flat, own, strict=True)):
        if isinstance(before, torch.Tensor) and not torch.equal(_bits(before), _bits(after)):
            raise ValueError(f"the program writes to its input {index}")
    return outputs


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes: unlike the numbers, they compare equal where there are NaNs."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
