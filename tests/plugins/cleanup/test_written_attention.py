"""cleanup: attention that is written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.plugins.cleanup.support import F64, Calls, cleaned, operations
from tests.random_models import on_random_models

WIDTH, STEPS = 4, 5
OPERATOR = "scaled_dot_product_attention"
CAUSAL = torch.ones(STEPS, STEPS).tril().bool()
LATER = torch.ones(STEPS, STEPS).triu(1).bool()  # nothing is in its last row
INFINITE = torch.zeros(STEPS, STEPS, dtype=F64).masked_fill(~CAUSAL, -math.inf)

PRODUCTS = {
    "plain": lambda q, k: q @ k,
    "times": lambda q, k: q @ k * 0.3,
    "over": lambda q, k: (q @ k) / math.sqrt(WIDTH),
    "number first": lambda q, k: 0.3 * (q @ k),
    "over a tensor": lambda q, k: (q @ k) / torch.sqrt(torch.tensor(4.0, dtype=F64)),
    "queries": lambda q, k: (q / 3) @ k,
    "keys": lambda q, k: q @ (0.3 * k),
    "both": lambda q, k: (q * 0.5) @ (k * 0.3) * 2,
    "queries before moves": lambda q, k: (q * 0.3).transpose(0, 1).contiguous().transpose(0, 1) @ k,
}
FLIPS = {
    "transpose": lambda k: k.transpose(-2, -1),
    "mT": lambda k: k.mT,
    "swapaxes": lambda k: k.swapaxes(-1, -2),
    "permute": lambda k: k.permute(*range(k.dim() - 2), k.dim() - 1, k.dim() - 2),
}
MASKS = {
    "none": lambda scores, words: scores,
    "constant": lambda scores, words: scores + torch.arange(STEPS, dtype=F64) * torch.eye(STEPS),
    "minus infinity": lambda scores, words: INFINITE.to(scores) + scores,
    "words": lambda scores, words: scores + (1.0 - words.to(scores.dtype)) * -1e4,
    "fill": lambda scores, words: scores.masked_fill(CAUSAL == 0, -math.inf),
    "where": lambda scores, words: torch.where(CAUSAL, scores, -math.inf),
}
SOFTMAXES = {
    "method": lambda scores: scores.softmax(-1),
    "function": lambda scores: nn.functional.softmax(scores, dim=scores.dim() - 1, dtype=F64),
    "module": nn.Softmax(-1),
    "dropout": lambda scores: nn.functional.dropout(scores.softmax(-1), 0.1, training=False),
}
BEHIND = {
    "returned": lambda y: y,
    "moved": lambda y: y.transpose(0, 1).reshape(y.shape[1], y.shape[0], -1).transpose(0, 1),
    "viewed": lambda y: torch.relu(y.view(y.shape[0], -1)),
}


class Written(nn.Module):
    def __init__(self, product, flip, mask, softmax, behind):
        super().__init__()
        self.parts = PRODUCTS[product], FLIPS[flip], MASKS[mask], SOFTMAXES[softmax], BEHIND[behind]

    def forward(self, q, k, v, words):
        product, flip, mask, softmax, behind = self.parts
        return behind(softmax(mask(product(q, flip(k)), words)) @ v)


def tensors(heads, queries=STEPS):
    """Queries, keys and values, and words of which the first ones count."""
    made = torch.Generator().manual_seed(0)
    lead = (2,) if heads is None else (2, heads)
    q, k, v = (
        torch.randn(*lead, rows, WIDTH, dtype=F64, generator=made)
        for rows in (queries, STEPS, STEPS)
    )
    words = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    return q, k, v, words.reshape(2, *(1,) * (len(lead)), STEPS)


@on_random_models(25)
@given(
    st.tuples(*(st.sampled_from(sorted(each)) for each in (PRODUCTS, FLIPS, MASKS, SOFTMAXES))),
    st.sampled_from(sorted(BEHIND)),
    st.sampled_from([None, 1, 3]),
)
def test_every_form_becomes_the_operator(parts, behind, heads):
    program, result = cleaned(Written(*parts, behind), *tensors(heads), tolerance=1e-12)
    assert result.details["attention"] == 1
    assert operations(program).count(OPERATOR) == 1
    assert not {"softmax", "matmul", "div", "masked_fill", "logical_not"} & {*operations(program)}
    assert ("mul" in operations(program)) == (parts[2] == "words")  # their mask needs one


def attend(scores, v):
    return scores.softmax(-1) @ v


def products(q, k):
    return q @ k.transpose(-2, -1) * 0.5


LEFT = {
    "probabilities are returned": lambda q, k, v, w: (p := products(q, k).softmax(-1), p @ v),
    "scores are returned": lambda q, k, v, w: (s := products(q, k), attend(s, v)),
    "another dimension": lambda q, k, v, w: products(q, k).softmax(-2) @ v,
    "a negative scale": lambda q, k, v, w: attend(products(q, k) * -1, v),
    "no scale at all": lambda q, k, v, w: attend(products(q, k) * 0, v),
    "scaled with its mask": lambda q, k, v, w: attend((products(q, k) + INFINITE) * 0.5, v),
    "a scale of each key": lambda q, k, v, w: attend(products(q, k) * w, v),
    "booleans are added": lambda q, k, v, w: attend(products(q, k) + CAUSAL, v),
    "a mask may be infinite": lambda q, k, v, w: attend(products(q, k) + v.mT[..., :1, :], v),
    "it is infinite for some": lambda q, k, v, w: attend(
        products(q, k) + torch.where(w > 0, 0.0, -math.inf), v
    ),
    "a choice is not known": lambda q, k, v, w: attend(
        products(q, k).masked_fill(w == 0, -math.inf), v
    ),
    "a row is hidden": lambda q, k, v, w: attend(products(q, k).masked_fill(~LATER, -math.inf), v),
    "a row is infinite": lambda q, k, v, w: attend(products(q, k) + INFINITE[:, 1:2], v),
    "a choice leaves a row none": lambda q, k, v, w: attend(
        torch.where(LATER, products(q, k), -math.inf), v
    ),
    "a finite filling": lambda q, k, v, w: attend(products(q, k).masked_fill(~CAUSAL, -1e9), v),
    "a mask with more dimensions": lambda q, k, v, w: attend(
        products(q, k) + INFINITE[None, None], v[None]
    )[0],
    "values of another width": lambda q, k, v, w: attend(products(q, k), v[..., :3]),
    "values for all": lambda q, k, v, w: attend(products(q, k), v[:1]),
    "rows that are apart": lambda q, k, v, w: attend(products(q, k.mT.contiguous().mT), v),
    "probabilities on the right": lambda q, k, v, w: v.mT @ products(q, k).softmax(-1).mT,
    "probabilities of themselves": lambda q, k, v, w: (p := products(q, k).softmax(-1)) @ p,
    "a learned scale": None,
}


class LearnedScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, q, k, v, words):
        return attend(products(q, k) * self.scale, v)


@pytest.mark.parametrize("name", sorted(LEFT))
def test_what_means_something_else_stays(name):
    function = LEFT[name]
    model = Calls(lambda self, *args: function(*args)) if function else LearnedScale()
    program, result = cleaned(model, *tensors(3), tolerance=1e-12)
    assert "attention" not in result.details
    assert "softmax" in operations(program)


@pytest.mark.parametrize("mask", [None, INFINITE])
def test_multi_head_attention_whose_weights_nobody_wants(mask):
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Calls(lambda self, x: self.layer(x, x, x, attn_mask=mask)[0], layer=layer)
    program, result = cleaned(model, torch.randn(2, STEPS, 8, dtype=F64), tolerance=1e-12)
    assert result.details["attention"] == 1
    assert OPERATOR in operations(program)


def test_a_constant_mask_is_turned_once_for_all_layers():
    def forward(self, q, k, v, words):
        for _ in range(3):
            q = attend(products(q, k).masked_fill(self.hidden, -math.inf), v)
        return q

    model = Calls(forward, hidden=LATER)
    program, result = cleaned(model, *tensors(3), tolerance=1e-12)
    assert result.details["attention"] == 3
    assert sum(node.op == "get_attr" for node in program.nodes) == 1


def test_results_lie_in_memory_in_order():
    def forward(self, x):
        q = x.reshape(x.shape[0], STEPS, 3, WIDTH).transpose(1, 2)  # as heads are made
        return attend(products(q, q), q)

    program, result = cleaned(
        Calls(forward), torch.randn(2, STEPS, 3 * WIDTH, dtype=F64), tolerance=1e-12
    )
    assert result.details["attention"] == 1
    assert program(torch.randn(4, STEPS, 3 * WIDTH, dtype=F64))[0].is_contiguous()
