"""Symbolic sizes as text and back, and the values of placeholders, which are made of them.

An expression is read by walking its syntax tree, never by evaluating text.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fxopt.ir.saving.values import UnsavableError, decode, encode, torch_constant

if TYPE_CHECKING:
    import sympy
    from torch.fx.experimental.symbolic_shapes import ShapeEnv


class SizeWriter:
    """Writes sizes, and collects the symbols in them."""

    def __init__(self) -> None:
        self._symbols: dict[str, dict[str, Any]] = {}

    def placeholder(self, value: Any) -> dict[str, Any]:
        """The form in a file of the ``meta["val"]`` of a placeholder.

        Raises:
            UnsavableError: It is neither a strided tensor, nor a size, nor a plain value.
        """
        if isinstance(value, torch.Tensor):
            return {"tensor": self._tensor(value)}
        if isinstance(value, torch.SymInt):
            return {"size": self.size(value)}
        return {"value": encode(value)}

    def size(self, value: int | torch.SymInt) -> int | str:
        """A number, or the text of an expression."""
        if not isinstance(value, torch.SymInt):
            return int(value)
        expression, env = value.node.expr, value.node.shape_env
        assert env is not None
        if expression.is_number:
            return int(expression)
        for symbol in expression.free_symbols:
            self._symbols[str(symbol)] = _describe(symbol, env)
        text = str(expression)
        if str(_parse(text, {str(s): s for s in expression.free_symbols})) != text:
            raise UnsavableError(f"the size {text}")
        return text

    def symbols(self) -> dict[str, dict[str, Any]]:
        """What is known of each symbol written so far."""
        return self._symbols

    def _tensor(self, value: torch.Tensor) -> dict[str, Any]:
        if value.layout is not torch.strided:
            raise UnsavableError(f"a tensor of the layout {value.layout}")
        return {
            "dtype": str(value.dtype).removeprefix("torch."),
            "device": str(value.device),
            "sizes": [self.size(size) for size in value.shape],
            "strides": [self.size(stride) for stride in value.stride()],
        }


class SizeReader:
    """Reads sizes back, in a new shape environment and fake mode.

    Args:
        symbols: What :meth:`SizeWriter.symbols` said.
    """

    def __init__(self, symbols: Mapping[str, Mapping[str, Any]]) -> None:
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        self._env = ShapeEnv()
        self._mode = FakeTensorMode(shape_env=self._env, allow_non_fake_inputs=True)
        self._symbols = {name: _declare(name, known, self._env) for name, known in symbols.items()}

    def placeholder(self, data: Mapping[str, Any]) -> Any:
        """The ``meta["val"]`` of a placeholder; tensors are fake."""
        ((kind, content),) = data.items()
        if kind == "value":
            return decode(content)
        if kind == "size":
            return self.size(content)
        with self._mode:
            return torch.empty_strided(
                [self.size(size) for size in content["sizes"]],
                [self.size(stride) for stride in content["strides"]],
                dtype=torch_constant(content["dtype"], torch.dtype),
                device=content["device"],
            )

    def size(self, data: int | str) -> int | torch.SymInt:
        """The number or expression that was written."""
        if isinstance(data, int):
            return data
        expression = _parse(data, self._symbols)
        hints = {s: self._env.backed_var_to_val.get(s) for s in expression.free_symbols}
        backed = None not in hints.values()
        hint = int(expression.xreplace(hints)) if backed else None
        size: int | torch.SymInt = self._env.create_symintnode(expression, hint=hint)
        return size

    @contextmanager
    def numbering(self, text: str) -> Iterator[None]:
        """Lets sizes that depend on data take the numbers that they have in ``text``.

        Such sizes are numbered as they come up, and a program that was changed has gaps there.
        """
        env = self._env
        taken = {str(symbol) for symbol in env.var_to_range}
        numbers = [int(word[1:]) for word in _words(text) if _unbacked(word) and word not in taken]
        before = env.unbacked_symint_counter
        env.unbacked_symint_counter = min(numbers, default=before)
        yield
        env.unbacked_symint_counter = max(before, env.unbacked_symint_counter)


def _words(text: str) -> list[str]:
    return "".join(char if char.isalnum() else " " for char in text).split()


def _unbacked(word: str) -> bool:
    return word[:1] == "u" and word[1:].isdigit()


def _describe(symbol: sympy.Symbol, env: ShapeEnv) -> dict[str, Any]:
    hint = env.backed_var_to_val.get(symbol)
    bounds = env.var_to_range.get(symbol)
    ends = (bounds.lower, bounds.upper) if bounds is not None else (None, None)
    return {
        "hint": None if hint is None else int(hint),
        "range": [int(end) if end is not None and end.is_Integer else None for end in ends],
        "positive": bool(symbol.is_positive),
    }


def _declare(name: str, known: Mapping[str, Any], env: ShapeEnv) -> sympy.Symbol:
    import sympy
    from torch.utils._sympy.numbers import int_oo

    assumptions = {"positive": True} if known["positive"] else {}
    symbol = sympy.Symbol(name, integer=True, **assumptions)
    if known["hint"] is not None:
        env.add_backed_var_to_val(symbol, int(known["hint"]))
    low, high = known["range"]
    lower = -int_oo if low is None else sympy.Integer(low)
    upper = int_oo if high is None else sympy.Integer(high)
    env.constrain_symbol_range(symbol, lower, upper)
    if _unbacked(name):
        env.unbacked_symint_counter = max(env.unbacked_symint_counter, int(name[1:]) + 1)
    return symbol


def _parse(text: str, symbols: Mapping[str, sympy.Symbol]) -> sympy.Expr:
    """The expression that sympy prints as ``text``.

    Raises:
        ValueError: It is anything but arithmetic on known symbols.
    """
    return _build(ast.parse(text, mode="eval").body, symbols)


def _build(tree: ast.expr, symbols: Mapping[str, sympy.Symbol]) -> sympy.Expr:
    import sympy

    if isinstance(tree, ast.Constant) and type(tree.value) is int:
        return sympy.Integer(tree.value)
    if isinstance(tree, ast.Name) and tree.id in symbols:
        return symbols[tree.id]
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_build(tree.operand, symbols)
    if isinstance(tree, ast.BinOp) and type(tree.op) in _BINARY:
        return _BINARY[type(tree.op)](_build(tree.left, symbols), _build(tree.right, symbols))
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.keywords:
        arguments = [_build(argument, symbols) for argument in tree.args]
        return _function(tree.func.id)(*arguments)
    raise ValueError(f"no expression of sizes: {ast.unparse(tree)}")


def _floor_divide(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    from torch.utils._sympy.functions import FloorDiv

    return FloorDiv(left, right)


def _power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    if not (exponent.is_Integer and 0 <= exponent <= _LARGEST_POWER):
        raise ValueError(f"no power of a size: {exponent}")
    return base**exponent


_LARGEST_POWER = 16  # more would be no size, and could take forever to compute

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: _power,
    ast.FloorDiv: _floor_divide,
}

_FUNCTIONS = ("Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "Max", "Min",
              "ModularIndexing")  # fmt: skip


def _function(name: str) -> Callable[..., Any]:
    from torch.utils._sympy import functions

    if name not in _FUNCTIONS:
        raise ValueError(f"sizes are not computed with {name}")
    found: Callable[..., Any] = getattr(functions, name)
    return found
