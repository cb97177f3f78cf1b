"""Whether two programs are the same, bit for bit, and in words where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import fx, nn

from fxopt.ir import Program
from fxopt.ir.text import describe_target, describe_value

_HEAD = 256
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def difference(before: Program, after: Program) -> str | None:
    """The first difference in graph, tensors, ties or settings of modules; None without one.

    Finer than the fingerprint: it also sees buffers that are not saved, ties, memory formats,
    train and eval modes, and the plain attributes of modules.
    """
    checks = (_graph, _tensors, _ties, _settings)
    return next((found for check in checks for found in check(before, after)), None)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors agree in all that a program can see of them, NaNs included."""
    if one is other:
        return True
    if _kind(one) != _kind(other):
        return False
    first, second = _bytes(one), _bytes(other)
    # most tensors that differ do so at once, and torch.equal always reads all of both
    return torch.equal(first[:_HEAD], second[:_HEAD]) and torch.equal(first, second)


def named_tensors(program: Program) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and attribute that a node reads, under each of its names."""
    module = program.module
    found: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    reads = [node for node in program.graph.nodes if node.op == "get_attr"]
    found.update((str(node.target), program.tensor(node)) for node in reads)
    return found


def describe_node(program: Program, node: fx.Node) -> tuple[str, ...]:
    """All that a node is, as texts to compare: kind, target, arguments and value."""
    target = describe_target(program, node) if node.op != "output" else "output"
    arguments = f"{node.args}{node.kwargs}"
    return node.name, node.op, target, arguments, describe_value(node.meta.get("val"))


def _graph(before: Program, after: Program) -> Iterator[str]:
    for old, new in zip_longest(before.graph.nodes, after.graph.nodes):
        if old is None or new is None:
            count = (len(before.graph.nodes), len(after.graph.nodes))
            yield f"there are {count[1]} nodes where there were {count[0]}"
            return
        if describe_node(before, old) != describe_node(after, new):
            yield f"%{new.name} is not the node %{old.name} of before"


def _tensors(before: Program, after: Program) -> Iterator[str]:
    old, new = named_tensors(before), named_tensors(after)
    for name in sorted(old.keys() ^ new.keys()):
        yield f"the tensor {name} is {'new' if name in new else 'gone'}"
    for name in old:
        if name in new and not same_bits(old[name], new[name]):
            yield f"the tensor {name} is another one"


def _ties(before: Program, after: Program) -> Iterator[str]:
    if _groups(before) != _groups(after):
        yield "other weights are tied"


def _groups(program: Program) -> dict[str, str]:
    """Each name with the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(t), name) for name, t in named_tensors(program).items()}


def _settings(before: Program, after: Program) -> Iterator[str]:
    old = dict(before.module.named_modules(remove_duplicate=False))
    for name, module in after.module.named_modules(remove_duplicate=False):
        if name and name in old and _plain(old[name]) != _plain(module):
            yield f"the settings of {name} are others"


def _plain(module: nn.Module) -> dict[str, Any]:
    settings = {k: repr(v) for k, v in vars(module).items() if _is_plain(v)}
    return {**settings, "type": type(module)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    strides = tensor.stride() if tensor.layout == torch.strided else ()
    kind = (type(tensor), tensor.dtype, tensor.shape, tensor.device, tensor.layout)
    return (*kind, strides, tensor.requires_grad)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.detach()
    if data.layout != torch.strided or data.is_quantized:
        return data.to_dense() if not data.is_quantized else data.int_repr()
    return data.contiguous().reshape(-1).view(torch.uint8)
