"""Programs built by hand, so that tests of what lies below capture do without it."""

from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from fxopt.ir import Program, Signature
from fxopt.ir.shapes import infer

aten = torch.ops.aten


class Builder:
    """Adds nodes one by one; each gets its value by inference, with a symbolic batch.

    Args:
        **modules: What ``call_module`` nodes may call, by qualified name, dots written as ``__``.
    """

    def __init__(self, **modules: nn.Module) -> None:
        self.root = nn.Module()
        for name, module in modules.items():
            *owners, last = name.split("__")
            owner = self.root
            for atom in owners:
                if not hasattr(owner, atom):
                    owner.add_module(atom, nn.Module())
                owner = owner.get_submodule(atom)
            owner.add_module(last, module)
        self.module = fx.GraphModule(self.root, fx.Graph())
        for name, child in self.root._modules.items():  # named_children() hides second names
            self.module.add_module(name, child)
        self.graph = self.module.graph
        self.mode = FakeTensorMode(shape_env=ShapeEnv())

    def input(self, name: str, *sizes: int, dtype: torch.dtype = torch.float32) -> fx.Node:
        """A placeholder; its first size is symbolic."""
        node = self.graph.placeholder(name)
        sizes_of = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (len(sizes) - 1)
        context = StatelessSymbolicContext(
            dynamic_sizes=sizes_of, constraint_sizes=[None] * len(sizes)
        )
        node.meta["val"] = self.mode.from_tensor(
            torch.zeros(sizes, dtype=dtype), symbolic_context=context
        )
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function, or of the module with this qualified name."""
        if isinstance(target, str):
            node = self.graph.call_module(target, args, kwargs)
        else:
            node = self.graph.call_function(target, args, kwargs)
        node.meta["source"] = f"model.py:{len(self.graph.nodes)}"
        node.meta["val"] = infer(self.module, node)
        return node

    def attribute(self, path: str, tensor: torch.Tensor | None = None) -> fx.Node:
        """A read of a tensor, which is registered on the root if it is given."""
        if isinstance(tensor, nn.Parameter):
            self.module.register_parameter(path, tensor)
        elif tensor is not None:
            self.module.register_buffer(path, tensor)
        node = self.graph.get_attr(path)
        node.meta["val"] = infer(self.module, node)
        return node

    def program(self, *outputs: fx.Node) -> Program:
        """The program that returns ``outputs``: one as it is, several as a tuple."""
        self.graph.output(outputs)
        self.module.recompile()
        inputs = sum(node.op == "placeholder" for node in self.graph.nodes)
        in_spec = pytree.tree_structure((tuple(range(inputs)), {}))
        out_spec = pytree.tree_structure(0 if len(outputs) == 1 else tuple(outputs))
        return Program(self.module.eval(), Signature(in_spec, out_spec, batch=True))


def small_cnn() -> Program:
    """conv - relu - conv, the sum of both, mean, linear; 20 outputs."""
    torch.manual_seed(0)
    b = Builder(
        stem=nn.Conv2d(3, 8, 3, padding=1),
        body__conv=nn.Conv2d(8, 8, 3, padding=1),
        head=nn.Linear(8, 20),
    )
    stem = b.call("stem", b.input("x", 2, 3, 8, 8))
    relu = b.call(aten.relu.default, stem)
    conv = b.call("body.conv", relu)
    both = b.call(aten.add.Tensor, conv, relu)
    mean = b.call(aten.mean.dim, both, [2, 3])
    return b.program(b.call("head", mean))


def image(batch: int = 2) -> torch.Tensor:
    """An input of :func:`small_cnn`."""
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
