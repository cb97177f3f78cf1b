"""Grouped-query attention, of which OpenVINO's front end makes no attention: keys for all heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.plugin import Program

aten = torch.ops.aten

_ATTENTION = aten.scaled_dot_product_attention.default
_HEADS = -3  # (..., heads, tokens, features)


def with_keys_for_all_heads(program: Program) -> Program:
    """The program with keys and values repeated for the heads that share them.

    Args:
        program: It is not changed.
    """
    if not _grouped(program):
        return program
    twin = program.twin()
    with twin.edit() as edit:
        for node, times in _grouped(twin).items():
            query, *shared = node.args[:3]
            repeated = [
                edit.call(aten.repeat_interleave.self_int, each, times, _HEADS, before=node)
                for each in shared
            ]
            others = {key: value for key, value in node.kwargs.items() if key != "enable_gqa"}
            edit.replace(node, _ATTENTION, query, *repeated, *node.args[3:], **others)
    return twin


def _grouped(program: Program) -> dict[fx.Node, int]:
    """Attention with fewer heads of keys than of queries, and how many share each."""
    found = {}
    for node in program.find(_ATTENTION):
        given: tuple[Any, ...] = node.args
        queries, keys = (each.meta["val"].shape[_HEADS] for each in given[:2])
        if node.kwargs.get("enable_gqa") and queries != keys:
            found[node] = queries // keys
    return found
