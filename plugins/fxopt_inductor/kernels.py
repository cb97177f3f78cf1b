"""Which kernels the code that Inductor wrote really calls, read from its text."""

from __future__ import annotations

import re

from fxopt.plugin import Kernel

# What a call is, by a part of its name, first match first.
_KINDS = (
    ("convolution", "Convolution"),
    ("qconv", "Convolution"),
    ("attention", "Attention"),
    ("lstm", "Recurrent"),
    ("rnn", "Recurrent"),
    ("gru", "Recurrent"),
    ("linear", "MatMul"),
    ("mm", "MatMul"),
)
HEAVY_KINDS = frozenset(kind for _, kind in _KINDS)

_PRECISIONS = {
    "float64": "f64",
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "int8": "int8",
    "uint8": "int8",
}

_CALL = re.compile(
    r"^\s+(?:\w+ = )?((?:torch\.ops|aten|extern_kernels|inductor_ops)\.[\w.]+|cpp_\w+)\((.*)$"
)
# The three ways in which the text tells of a tensor: a frozen weight, an allocation, a check.
_DTYPES = (
    re.compile(r"^(\w+) = None  # device\(.*?\) torch\.(\w+) "),
    re.compile(r"^\s+(\w+) = empty_strided_\w+\(.*torch\.(\w+)\)$"),
    re.compile(r"^\s+assert_tensor_metadata\((\w+), .*?\), torch\.(\w+), "),
)
_ALIAS = re.compile(r"^\s+(\w+) = (?:reinterpret_tensor\()?(\w+)(?:;|,|$)")


def read_kernels(code: str) -> tuple[Kernel, ...]:
    """The calls in a module that Inductor wrote, in order.

    The precision is the dtype of a call's first operand whose dtype the text tells.

    Args:
        code: Text of the module.
    """
    dtypes = _dtypes_of(code.splitlines())
    matches = (match for line in _body(code) if (match := _CALL.match(line)))
    return tuple(_kernel(match[1], match[2], dtypes) for match in matches)


def is_frozen(code: str) -> bool:
    """Whether weights became constants of the code."""
    return "_frozen_param" in code


def _body(code: str) -> list[str]:
    """The lines of the function ``call``."""
    start = code.find("def call(")
    if start < 0:
        return []
    lines = code[start:].splitlines()[1:]
    end = next((i for i, line in enumerate(lines) if re.match(r"\s*return\b", line)), len(lines))
    return lines[:end]


def _dtypes_of(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        for pattern in _DTYPES:
            if match := pattern.match(line):
                found[match[1]] = match[2]
        if (alias := _ALIAS.match(line)) and alias[2] in found:
            found[alias[1]] = found[alias[2]]
    return found


def _kernel(name: str, arguments: str, dtypes: dict[str, str]) -> Kernel:
    operands = re.findall(r"\w+", arguments)
    dtype = next((dtypes[operand] for operand in operands if operand in dtypes), "")
    return Kernel(_short(name), _kind(name), _PRECISIONS.get(dtype, dtype or "unknown"))


def _short(name: str) -> str:
    return name.removeprefix("torch.ops.").removesuffix(".default")


def _kind(name: str) -> str:
    if name.startswith("cpp_fused"):
        return "Fused"
    return next((kind for part, kind in _KINDS if part in name.lower()), "Other")
