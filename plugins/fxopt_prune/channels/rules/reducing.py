"""Reductions: what is reduced may go where only a sum is taken."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fxopt_prune.channels.atoms import Labels, fixed
from fxopt_prune.channels.rules.registry import rule
from fxopt_prune.channels.trace import Call, Dims

aten = torch.ops.aten


@rule(aten.sum.dim_IntList)
def sum_(call: Call) -> Dims:
    """Zeros add nothing."""
    return _reduced(call, lambda labels: None)


@rule(
    aten.mean.dim, aten.amax.default, aten.amin.default, aten.var.correction, aten.var.dim,
    aten.std.correction, aten.std.dim, aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim,
    aten.logsumexp.default, aten.prod.dim_int, aten.argmax.default, aten.argmin.default,
)  # fmt: skip
def reduction(call: Call) -> Dims:
    """What is reduced stays: a mean, for one, is over as many as there were."""
    return _reduced(call, lambda labels: call.fix(labels, "reduced"))


def _reduced(call: Call, reduce: Callable[[Labels], None]) -> Dims:
    x, given = call.first(), call.arguments.get("dim")
    dims = range(len(x)) if given is None or given == [] else given
    gone = {dim % len(x) for dim in ([dims] if isinstance(dims, int) else dims)}
    for dim in gone:
        reduce(x[dim])
    if call.arguments.get("keepdim"):
        return tuple(fixed(1) if dim in gone else labels for dim, labels in enumerate(x))
    return tuple(labels for dim, labels in enumerate(x) if dim not in gone)


@rule(aten.cumsum.default, aten.cumprod.default)
def running(call: Call) -> Dims:
    """Positions along the dimension depend on those before."""
    x = call.first()
    call.fix(x[call.arguments["dim"]], "positions depend on one another")
    return x


@rule(nn.Softmax, nn.LogSoftmax)
def softmax_module(call: Call) -> Dims:
    """What sums to one stays."""
    x = call.first()
    call.fix(x[call.leaf.dim], "a softmax")
    return x
