"""Rewrites an exported module so that it computes in int8, and in bfloat16 where asked to."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import fx

from fxopt.plugin import Kernel
from fxopt_inductor.lowp.form import Form
from fxopt_inductor.lowp.grid import AnyGrid, ChannelGrid, Grid, grid_of
from fxopt_inductor.lowp.heavy import (
    follows_in_bf16,
    kernel_of,
    only_for_products,
    takes_bf16,
)
from fxopt_inductor.lowp.layers import QuantLayer, quant_layer
from fxopt_inductor.lowp.moves import moved, on_codes, works_on_codes
from fxopt_inductor.lowp.operations import Addend, Layer, Result
from fxopt_inductor.lowp.packed import packed_layer
from fxopt_inductor.lowp.rows import rounded_rows, write_rows
from fxopt_inductor.lowp.sums import plan_sums
from fxopt_inductor.lowp.tail import Sum, Tail, find_tail
from fxopt_inductor.lowp.values import Value
from fxopt_inductor.lowp.writer import KERNEL, Writer

aten = torch.ops.aten


def rewrite(module: fx.GraphModule, form: Form) -> fx.GraphModule:
    """The same function on int8 operators, as far as there are such.

    A layer computes in int8 if its weights are stored so and its input is rounded row by row, or by
    a fake quantizer, maybe with something in between that only moves values. Behind a fake
    quantizer, its operator applies the activation that follows, and gives uint8 where all that
    follows is rounded. All fake quantizers become explicit conversions, for a compiler to fuse with
    their neighbours.

    Args:
        module: A flat module with fixed sizes; it is not changed.
        form: Which ways of writing are taken.
    """
    return _Rewriter(module, form).run()


class _Rewriter:
    def __init__(self, module: fx.GraphModule, form: Form) -> None:
        self._module = module
        self._form = form
        self._writer = Writer(form.reads_bytes)
        self._values: dict[fx.Node, Value] = {}
        self._grids: dict[fx.Node, AnyGrid | None] = {}
        self._planned = plan_sums(module, self._grid_of, form)
        self._additions = {planned.sum.add for planned in self._planned.values()}
        self._sums: dict[fx.Node, tuple[Layer, Sum]] = {}

    def run(self) -> fx.GraphModule:
        for node in self._module.graph.nodes:
            if node.op == "output":
                return self._writer.finish(fx.map_arg(node.args[0], self._full))
            if node not in self._values and node.target is not aten._assert_tensor_metadata.default:
                self._visit(node)
        raise AssertionError("a graph without output")

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._values[node] = Value(full=self._writer.copy(node, {}))
        elif node.op == "get_attr":
            self._values[node] = Value(full=self._constant(node))
        elif node in self._sums:
            self._write_sum(*self._sums[node])
        elif not (
            self._rounds(node) or self._layer(node) or self._packed(node) or self._moves(node)
        ):
            self._compute(node)

    def _constant(self, node: fx.Node) -> fx.Node:
        path = str(node.target)
        return self._writer.constant(path, attrgetter(path)(self._module))

    def _grid_of(self, node: fx.Node) -> AnyGrid | None:
        if node not in self._grids:
            useless = only_for_products(node)
            self._grids[node] = None if useless else grid_of(self._module, node)
        return self._grids[node]

    def _stored_grid(self, node: fx.Node) -> AnyGrid | None:
        """Its grid, if a layer is to round to that itself: what it stores will not be read slowly.

        Where codes are only moved, it is taken that a layer comes next.
        """
        grid = self._grid_of(node)
        if grid is None or self._form.reads_bytes:
            return grid
        return grid if all(self._takes_codes(user, grid) for user in node.users) else None

    def _takes_codes(self, node: fx.Node, grid: AnyGrid) -> bool:
        if node.op != "call_function":
            return False
        if node in self._additions:
            return True
        if moved(node):
            return works_on_codes(node, self._form.compiled)
        layer = quant_layer(self._module, node)
        return layer is not None and _fits(layer, grid)

    def _full(self, node: fx.Node) -> fx.Node:
        return self._values[node].as_full(self._writer)

    # -- rounding

    def _rounds(self, node: fx.Node) -> bool:
        grid = self._grid_of(node)
        if grid is None and not only_for_products(node):
            return False
        source = self._values[node.args[0]]  # type: ignore[index]
        if grid is None:
            self._values[node] = source
            return True
        self._values[node] = Value(codes=source.as_codes(self._writer, grid), grid=grid)
        return True

    # -- layers

    def _layer(self, node: fx.Node) -> bool:
        layer = quant_layer(self._module, node)
        if layer is None:
            return False
        source = node.args[0]
        assert isinstance(source, fx.Node)
        value = self._values[source]
        if layer.dims == 0 and (rows := rounded_rows(source)) is not None:
            codes, scale = map(self._full, rows)
            written = write_rows(self._writer, layer, codes, scale, source.meta["val"].shape)
            self._values[node] = Value(full=written)
            return True
        if value.grid is None or not _fits(layer, value.grid):
            return False
        codes, shape = value.as_codes(self._writer, value.grid), source.meta["val"].shape
        whole = Layer.of(layer, codes, shape, value.grid)
        if (planned := self._planned.get(node)) is not None:
            self._sums[planned.sum.add] = (whole, planned.sum)
            # both are computed with the addition, and nothing else asks for them
            end = planned.tail.end
            self._values[end] = self._values[next(iter(end.users))] = Value()
            return True
        tail = find_tail(node, layer, self._stored_grid)
        if isinstance(tail.grid, ChannelGrid):
            whole = replace(whole, layer=whole.layer.with_output_scales(tail.grid.scales))
        written = whole.write(self._writer, self._result(tail), self._form.rows, None)
        self._values[tail.end] = self._result_value(written, tail)
        return True

    def _packed(self, node: fx.Node) -> bool:
        """Weights of four bits, whose product is fast in bfloat16 alone."""
        form = self._form
        layer = packed_layer(self._module, node) if form.bf16 or not form.compiled else None
        if layer is None:
            return False
        source = node.args[0]
        assert isinstance(source, fx.Node)
        shape = source.meta["val"].shape
        self._values[node] = Value(low=layer.write(self._writer, self._low(source), shape))
        return True

    def _write_sum(self, layer: Layer, found: Sum) -> None:
        other = self._values[found.other]
        assert isinstance(other.grid, Grid)
        addend = Addend(other.as_codes(self._writer, other.grid), other.grid)
        written = layer.write(self._writer, self._result(found.tail), False, addend)
        self._values[found.tail.end] = self._result_value(written, found.tail)

    def _result(self, tail: Tail) -> Result:
        if isinstance(tail.grid, ChannelGrid):
            return Result(tail.op, torch.uint8, 1.0, tail.grid.zero_point)
        if tail.grid is not None:
            return Result(tail.op, torch.uint8, tail.grid.scale, tail.grid.zero_point)
        return Result(tail.op, torch.bfloat16 if self._is_low(tail) else torch.float32)

    def _result_value(self, written: fx.Node, tail: Tail) -> Value:
        if tail.grid is not None:
            return Value(codes=written, grid=tail.grid)
        return Value(low=written) if self._is_low(tail) else Value(full=written)

    def _is_low(self, tail: Tail) -> bool:
        """Whether a float result is given in bfloat16; what the user sees is not."""
        return self._form.bf16 and all(user.op != "output" for user in tail.end.users)

    # -- what computes nothing

    def _moves(self, node: fx.Node) -> bool:
        sources = moved(node) if node.op == "call_function" else None
        if not sources:
            return False
        values = [self._values[source] for source in sources]
        grid = values[0].grid
        if not isinstance(grid, Grid) or any(value.grid != grid for value in values):
            grid = None
        if grid is not None and works_on_codes(node, self._form.compiled):
            codes = [value.as_codes(self._writer, grid) for value in values]
            moved_codes = self._move(node, dict(zip(sources, codes, strict=True)))
            on_codes(moved_codes, grid.zero_point, self._form.pools)
            self._values[node] = Value(codes=moved_codes, grid=grid)
        elif all(value.is_low for value in values):
            low = self._move(node, {s: v.low for s, v in zip(sources, values, strict=True)})
            self._values[node] = Value(low=low)
        else:
            self._compute(node)
            self._values[node].grid = grid
        return True

    def _move(self, node: fx.Node, inputs: dict[fx.Node, Any]) -> fx.Node:
        rest = {arg: self._full(arg) for arg in node.all_input_nodes if arg not in inputs}
        return self._writer.copy(node, inputs | rest)

    # -- all the rest

    def _compute(self, node: fx.Node) -> None:
        low = self._form.bf16 and (takes_bf16(node) or self._follows(node))
        form = self._low if low else self._full
        copy = self._writer.copy(node, {arg: form(arg) for arg in node.all_input_nodes})
        kernel = kernel_of(node, low)
        if kernel is not None:
            copy.meta[KERNEL] = kernel
        self._values[node] = Value(low=copy) if low else Value(full=copy)

    def _follows(self, node: fx.Node) -> bool:
        given = [self._values[arg] for arg in node.all_input_nodes]
        return follows_in_bf16(node) and bool(given) and all(value.is_low for value in given)

    def _low(self, node: fx.Node) -> fx.Node:
        value = node.meta.get("val")
        floats = isinstance(value, torch.Tensor) and value.dtype is torch.float32
        return self._values[node].as_low(self._writer) if floats else self._full(node)


def is_quantized(module: fx.GraphModule) -> bool:
    """Whether there are layers with integer weights in an exported module."""
    return any(
        quant_layer(module, node) is not None or packed_layer(module, node) is not None
        for node in module.graph.nodes
    )


def heavy_kernels(module: fx.GraphModule) -> dict[str, Kernel]:
    """The heavy operations of a module by the names of their nodes, in order.

    Args:
        module: A flat module, rewritten or as it was exported.
    """
    found = {node.name: node.meta.get(KERNEL) or kernel_of(node) for node in module.graph.nodes}
    return {name: kernel for name, kernel in found.items() if kernel is not None}


def _fits(layer: QuantLayer, grid: AnyGrid) -> bool:
    """Whether the operators compute a layer on codes of this grid."""
    return isinstance(grid, Grid) or layer.is_depthwise
