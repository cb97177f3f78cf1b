"""The readable form of a program, for people, dumps, diffs and golden tests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

if TYPE_CHECKING:
    from fxopt.ir.program import Program

_DTYPES = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
    torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip


def describe_value(value: Any) -> str:
    """``f32[s0, 3, 224, 224]`` for a tensor; nested for tuples; the value itself otherwise."""
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        return f"{_DTYPES.get(value.dtype, str(value.dtype))}[{sizes}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(describe_value(item) for item in value)})"
    return str(value)


def describe_target(program: Program, node: fx.Node) -> str:
    """What a node calls: ``conv1: Conv2d(3, 64, ...)`` or ``aten.relu.default``."""
    if node.op == "call_module":
        leaf = program.leaf(node)
        return f"{node.target}: {type(leaf).__name__}({leaf.extra_repr()})"
    if node.op == "get_attr":
        return f"attribute {node.target}"
    return (
        str(getattr(node.target, "__name__", node.target))
        if callable(node.target) and not isinstance(node.target, torch._ops.OpOverload)
        else str(node.target)
    )


def program_text(program: Program) -> str:
    """One line a node, in order: ``%name = target(arguments) -> value``."""
    lines = [_line(program, node) for node in program.graph.nodes]
    return "\n".join(lines) + "\n"


def _line(program: Program, node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"%{node.name} = input -> {describe_value(node.meta.get('val'))}"
    if node.op == "output":
        return f"return {_arguments(node.args[0])}"
    parts = [_arguments(arg) for arg in node.args]
    parts += [f"{key}={_arguments(value)}" for key, value in node.kwargs.items()]
    call = "" if node.op == "get_attr" else f"({', '.join(parts)})"
    value = describe_value(node.meta.get("val"))
    return f"%{node.name} = {describe_target(program, node)}{call} -> {value}"


def _arguments(arg: Any) -> str:
    if isinstance(arg, fx.Node):
        return f"%{arg.name}"
    if isinstance(arg, (tuple, list)):
        return f"[{', '.join(_arguments(item) for item in arg)}]"
    return str(arg)


def program_fingerprint(program: Program) -> str:
    """A digest of structure and weights: equal programs have equal ones across processes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(program_text(program).encode())
    for name, tensor in sorted(_weights(program.module).items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)  # a copy takes longer than this
    return digest.hexdigest()


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors by name; a state_dict would leave out buffers that are not persistent."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}
