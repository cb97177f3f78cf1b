"""Attention that is written out becomes the operator, which patterns and backends know.

``softmax(q @ k.transpose(-2, -1) / sqrt(d) + mask, -1) @ v`` in all its forms: scaled before or
behind the product, with a mask that is added or chooses, with the keys' dimensions in any order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxopt.plugin import Edit, Program
from fxopt_cleanup import layout
from fxopt_cleanup.masks import chooses_keys, leaves_keys
from fxopt_cleanup.memory import argument
from fxopt_cleanup.scores import PRODUCTS, Scores, scores_of

aten = torch.ops.aten


@dataclass(frozen=True)
class _Attention:
    """Values, added up by probabilities.

    Attributes:
        scores: What the probabilities are made of.
        value: Of shape (..., keys, width).
        result: The node that yields the sums.
    """

    scores: Scores
    value: fx.Node
    result: fx.Node


def use_operator(program: Program, edit: Edit) -> Counter[str]:
    """Replaces products and a softmax by the operator where it means the same."""
    found: Counter[str] = Counter()
    for node in program.find(aten.softmax.int):
        attention = _attention(program, node)
        if attention is None or not _fits(program, attention):
            continue
        with edit.together(f"{attention.result.name} -> attention") as permitted:
            if not permitted:
                break
            _replace(program, edit, attention)
        found["attention"] += 1
    return found


def _attention(program: Program, softmax: fx.Node) -> _Attention | None:
    """The attention whose probabilities a softmax yields to nothing else."""
    value, dtype = softmax.meta["val"], argument(softmax, "dtype")
    last = argument(softmax, "dim") in (-1, value.dim() - 1)
    scores = scores_of(program, softmax.args[0])
    if scores is None or not last or dtype not in (None, scores.query.meta["val"].dtype):
        return None
    user = next(iter(softmax.users)) if len(softmax.users) == 1 else None
    if user is None or user.target not in PRODUCTS or user.args[0] is not softmax:
        return None
    taken: Any = user.args[1]
    return _Attention(scores, taken, user) if taken is not softmax else None


def _fits(program: Program, attention: _Attention) -> bool:
    """Whether the operator takes these shapes and layouts, and means the same."""
    scores = attention.scores
    query, flipped, value = (
        node.meta["val"] for node in (scores.query, scores.flipped, attention.value)
    )
    return (
        scores.scale > 0
        and _alike(query, flipped.transpose(-2, -1), value)
        and (scores.mask is None or _mask_fits(program, scores.mask, query))
        and (scores.choice is None or _choice_fits(program, scores, query))
    )


def _alike(*tensors: torch.Tensor) -> bool:
    """Whether sizes differ in rows alone, and the numbers of a row lie side by side.

    Elsewhere torch's kernels would be slower than what was written.
    """
    kinds = {
        (t.dtype, t.device, t.dim(), *map(str, t.shape[:-2]), str(t.shape[-1])) for t in tensors
    }
    close = all(str(tensor.stride(-1)) == "1" for tensor in tensors)
    first = tensors[0]
    return len(kinds) == 1 and close and first.is_floating_point() and first.dim() > 2


def _mask_fits(program: Program, mask: fx.Node, query: torch.Tensor) -> bool:
    value = mask.meta["val"]
    fits = value.dtype is query.dtype and value.dim() in (2, query.dim())
    return fits and leaves_keys(program, mask)


def _choice_fits(program: Program, scores: Scores, query: torch.Tensor) -> bool:
    assert scores.choice is not None
    fits = scores.choice.meta["val"].dim() in (2, query.dim())
    return fits and chooses_keys(program, scores.choice, scores.chosen)


def _replace(program: Program, edit: Edit, attention: _Attention) -> None:
    scores, result = attention.scores, attention.result
    seen = layout.is_seen(program, result)
    for scaling, source in scores.scalings.items():
        edit.redirect(scaling, source)
    flipped = edit.call(
        aten.transpose.int, _unscaled(scores, scores.flipped), -2, -1, before=result
    )
    new = edit.call(
        aten.scaled_dot_product_attention.default,
        _unscaled(scores, scores.query),
        flipped,
        attention.value,
        _mask(edit, attention),
        scale=scores.scale,
        before=result,
    )
    # a product lies in memory in order, what the operator yields may not
    edit.redirect(result, edit.call(aten.contiguous.default, new, before=result) if seen else new)


def _unscaled(scores: Scores, node: fx.Node) -> fx.Node:
    while node in scores.scalings:
        node = scores.scalings[node]
    return node


def _mask(edit: Edit, attention: _Attention) -> fx.Node | None:
    """The mask as the operator takes it: booleans are true where scores count."""
    scores = attention.scores
    if scores.choice is None or scores.chosen:
        return scores.choice or scores.mask
    return edit.call(aten.logical_not.default, scores.choice, before=attention.result)
