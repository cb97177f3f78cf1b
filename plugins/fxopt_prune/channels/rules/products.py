"""Products of activations: matrices, attention, sums over shared letters."""

from __future__ import annotations

import torch

from fxopt.plugin import ScaledDotProductAttention
from fxopt_prune.channels.rules.pointwise import broadcast
from fxopt_prune.channels.rules.registry import rule
from fxopt_prune.channels.trace import Call, Dims, UnclearError

aten = torch.ops.aten


@rule(aten.matmul.default, aten.bmm.default, aten.mm.default)
def matmul(call: Call) -> Dims:
    """Columns of the first meet rows of the second; other dimensions are broadcast."""
    x, y = (call.dims(arg) for arg in list(call.arguments.values())[:2])
    if min(len(x), len(y)) < 2:
        raise UnclearError("a vector is multiplied")
    batch = broadcast(call, [x[:-2], y[:-2]]) if len(x) > 2 or len(y) > 2 else ()
    call.trace.heads(batch)
    call.couple(x[-1], y[-2])
    return (*batch, x[-2], y[-1])


@rule(aten.linear.default)
def linear(call: Call) -> Dims:
    """A linear layer whose weight is computed, or a part of one."""
    given = call.arguments
    x, (outputs, inputs) = call.dims(given["input"]), call.dims(given["weight"])
    call.layer(inputs, outputs)
    call.couple(x[-1], inputs)
    if given["bias"] is not None:
        call.couple(call.dims(given["bias"])[0], outputs)
    return (*x[:-1], outputs)


@rule(aten.scaled_dot_product_attention.default)
def attention(call: Call) -> Dims:
    """Query, key and value are (..., heads, tokens, features)."""
    given = call.arguments
    return _attended(call, given["attn_mask"], bool(given["enable_gqa"]), given["scale"] is None)


@rule(ScaledDotProductAttention)
def attention_module(call: Call) -> Dims:
    """The same as a module, with dropout."""
    leaf: ScaledDotProductAttention = call.leaf
    return _attended(call, call.arguments.get("3"), leaf.enable_gqa, leaf.scale is None)


def _attended(call: Call, mask: object, grouped: bool, scale_by_size: bool) -> Dims:
    q, k, v = (call.dims(arg) for arg in list(call.arguments.values())[:3])
    if grouped and len(q[-3]) != len(k[-3]):  # each key serves several queries behind one another
        k, v = (_repeated(each, len(q[-3]) // len(each[-3])) for each in (k, v))
    batch = broadcast(call, [q[:-2], k[:-2], v[:-2]])
    call.trace.heads(batch)
    call.couple(q[-1], k[-1])
    if scale_by_size:
        call.fix(q[-1], "the scale of attention depends on its size")
    call.couple(k[-2], v[-2])
    for labels in (q[-2], k[-2]):
        call.fix(labels, "tokens")
    if mask is not None:
        broadcast(call, [call.dims(mask), (*batch, q[-2], k[-2])])
    return (*batch, q[-2], v[-1])


def _repeated(dims: Dims, times: int) -> Dims:
    return (*dims[:-3], dims[-3].repeat(times), *dims[-2:])


@rule(aten.einsum.default)
def einsum(call: Call) -> Dims:
    """Dimensions of the same letter meet."""
    equation, tensors = call.arguments["equation"], call.arguments["tensors"]
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow or "." in equation:
        raise UnclearError("its equation has dots or no arrow")
    letters: dict[str, list[Dims]] = {}
    for word, tensor in zip(left.split(","), tensors, strict=True):
        for letter, labels in zip(word, call.dims(tensor), strict=True):
            letters.setdefault(letter, []).append((labels,))
    met = {letter: broadcast(call, dims)[0] for letter, dims in letters.items()}
    call.trace.heads(tuple(met[letter] for letter in right if len(letters[letter]) > 1))
    return tuple(met[letter] for letter in right)


@rule(aten.softmax.int, aten._softmax.default, aten.log_softmax.int)
def softmax(call: Call) -> Dims:
    """What sums to one stays."""
    x = call.first()
    call.fix(x[call.arguments["dim"]], "a softmax")
    return x
