"""Which kernels the code that Inductor wrote really calls, read from its text.

The text is Python, or C++ with ``cpp_wrapper``. Before the call of a library's kernel a comment
names the nodes of our graph that it computes, so those calls can be given the names of layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from fxopt.plugin import Kernel

# What a call is, by a part of its name, first match first.
_KINDS = (
    ("int4", "MatMul"),
    ("qlinear_pointwise", "MatMul"),
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
# Kernels that Inductor writes itself are named after all that went into them. Those that compute
# matrix products have a part of this name, as C++ by itself, or inside the text of the kernel.
_IN_CPP = re.compile(r"\b(cpp_fused\w*?)_micro_gemm")
_IN_PYTHON = re.compile(r"^(cpp_fused\w+) = async_compile", re.MULTILINE)
_INT8 = re.compile(r"qconv|qlinear")
_INT4 = "int4"

_CALL = re.compile(
    r"^\s+(?:\w+ = )?((?:torch\.ops|aten|extern_kernels|inductor_ops)\.[\w.]+|cpp_\w+)\((.*)$"
)
_CPP_CALL = re.compile(r"^\s+AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_cpu_+(\w+)\((.*)$")
_SOURCES = re.compile(r"^\s+(?:#|//) Topologically Sorted Source Nodes: \[(.*?)\]")
# The ways in which the text tells of a tensor: a frozen weight, an allocation, a check.
_DTYPES = (
    re.compile(r"^(?P<name>\w+) = None  # device\(.*?\) torch\.(?P<dtype>\w+) "),
    re.compile(r"^\s+(?P<name>\w+) = empty_strided_\w+\(.*torch\.(?P<dtype>\w+)\)$"),
    re.compile(r"^\s+assert_tensor_metadata\((?P<name>\w+), .*?\), torch\.(?P<dtype>\w+), "),
    re.compile(
        r"^\s+AOTI\w+\(aoti_torch_empty_strided\(.*_dtype_(?P<dtype>\w+), .*&(?P<name>\w+)_h"
    ),
)
_ALIAS = re.compile(r"^\s+(\w+) = (?:reinterpret_tensor\()?(\w+)(?:;|,|$)")


@dataclass(frozen=True)
class _Call:
    kernel: Kernel
    sources: tuple[str, ...]


def read_kernels(code: str, layers: Mapping[str, Kernel] | None = None) -> tuple[Kernel, ...]:
    """The calls in a module that Inductor wrote, in order.

    The precision is int8 for operators of that name; else the dtype of a call's first operand
    whose dtype the text tells; else what the graph says.

    Args:
        code: Text of the module.
        layers: The heavy operations of the graph by the names of their nodes. Calls that compute
            them are given their names and kinds, and come first, in the order of the graph.
    """
    layers = layers or {}
    found, loose = _by_name(_calls(code), layers)
    # Where the comment names only what was fused, or a layer before, or there is none, what is left
    # is matched in order.
    unnamed = [each.kernel for each in loose if each.is_heavy and not each.again]
    again = [each.kernel for each in loose if each.again]
    both = [each.kernel for each in loose if each.is_heavy or each.again]
    left = {name: layer for name, layer in layers.items() if name not in found}
    called = next((each for each in (unnamed, again, both) if _correspond(left, each)), [])
    pairs = zip(left.items(), called, strict=False)
    found |= {name: _named(layer, kernel) for (name, layer), kernel in pairs}
    taken = bool(called) and called is not again
    rest = [each.kernel for each in loose if not each.again and not (taken and each.is_heavy)]
    return (*(found[name] for name in layers if name in found), *rest)


@dataclass(frozen=True)
class _Loose:
    """A call that names no layer, or only those that others have named before."""

    kernel: Kernel
    again: bool

    @property
    def is_heavy(self) -> bool:
        return self.kernel.kind in HEAVY_KINDS


def _by_name(
    calls: Iterable[_Call], layers: Mapping[str, Kernel]
) -> tuple[dict[str, Kernel], list[_Loose]]:
    """The layers that calls name, and the calls that name none of their own."""
    found: dict[str, Kernel] = {}
    loose: list[_Loose] = []
    for call in calls:
        # a comment may name what comes before as well, where that is only viewed in between
        computed = [s for s in call.sources if s in layers and _fits(layers[s], call.kernel)]
        if found.keys() >= set(computed):
            loose.append(_Loose(call.kernel, again=bool(computed)))
        found |= {source: _named(layers[source], call.kernel) for source in computed}
    return found, loose


def _correspond(layers: Mapping[str, Kernel], called: list[Kernel]) -> bool:
    """Whether kernels can be those of layers, one by one."""
    if len(layers) != len(called):
        return False
    return all(_fits(a, b) for a, b in zip(layers.values(), called, strict=True))


def _fits(layer: Kernel, called: Kernel) -> bool:
    """Whether a kernel can be that of a layer; int8 convolutions may run as products."""
    if layer.precision == "int8" or called.precision == "int8":
        return layer.precision == called.precision
    return layer.kind == called.kind


def _templates(code: str) -> frozenset[str]:
    """Names of the kernels that Inductor wrote and that compute matrix products."""
    names = set(_IN_CPP.findall(code))
    pieces = _IN_PYTHON.split(code)[1:]
    texts = zip(pieces[::2], pieces[1::2], strict=True)
    return frozenset(names | {name for name, text in texts if "micro_gemm" in text})


def is_frozen(code: str) -> bool:
    """Whether weights became constants of the code."""
    return "_frozen_param" in code


def _named(layer: Kernel, called: Kernel) -> Kernel:
    known = called.precision != "unknown"
    return replace(layer, precision=called.precision) if known else layer


def _calls(code: str) -> Iterator[_Call]:
    dtypes, templates = _dtypes_of(code.splitlines()), _templates(code)
    sources: tuple[str, ...] = ()
    for line in _body(code):
        if comment := _SOURCES.match(line):
            sources = tuple(comment[1].split(", "))
        if match := _CALL.match(line) or _CPP_CALL.match(line):
            kernel = _kernel(match[1], match[2], dtypes)
            if kernel.name.startswith("cpp_fused") and kernel.name not in templates:
                kernel = replace(kernel, kind="Fused", precision=_dtype(match[2], dtypes))
            yield _Call(kernel, () if kernel.name.startswith("cpp_") else sources)
            sources = ()


def _body(code: str) -> list[str]:
    """The lines of the function that calls the kernels."""
    for start, end in (
        ("void inductor_entry_impl(", re.compile(r"^\}")),
        ("def call(", re.compile(r"\s*return\b")),
    ):
        if start in code:
            lines = code[code.find(start) :].splitlines()[1:]
            last = next((i for i, line in enumerate(lines) if end.match(line)), len(lines))
            return lines[:last]
    return []


def _dtypes_of(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        for pattern in _DTYPES:
            if match := pattern.match(line):
                found[match["name"]] = match["dtype"]
        if (alias := _ALIAS.match(line)) and alias[2] in found:
            found[alias[1]] = found[alias[2]]
    return found


def _kernel(name: str, arguments: str, dtypes: dict[str, str]) -> Kernel:
    precision = "int8" if _INT8.search(name) else _dtype(arguments, dtypes)
    precision = "int4" if _INT4 in name else precision
    short = name.removeprefix("torch.ops.").removesuffix(".default")
    return Kernel(short, _kind(name), precision)


def _dtype(arguments: str, dtypes: dict[str, str]) -> str:
    """The dtype of the first operand whose dtype is known."""
    operands = re.findall(r"\w+", arguments)
    dtype = next((dtypes[operand] for operand in operands if operand in dtypes), "unknown")
    return _PRECISIONS.get(dtype, dtype)


def _kind(name: str) -> str:
    return next((kind for part, kind in _KINDS if part in name.lower()), "Other")
