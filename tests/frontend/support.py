"""What the frontend's tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxopt.frontend import capture_program
from fxopt.ir import Program


def randn(*size: int) -> torch.Tensor:
    """Double-precision noise."""
    return torch.randn(*size, dtype=torch.float64)


def captured(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    """Captures a model in double precision, checks it, and that the model was left alone."""
    model.double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    program = capture_program(model, args, kwargs)
    program.verify()
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert_agrees(program, model, *args, **kwargs)
    return program


def assert_agrees(program: Program, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Compares a program with the model in eval mode, to 1e-12 in double precision."""
    training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(*args, **kwargs)
        actual = program.call(*args, **kwargs)
    model.train(training)
    assert type(actual) is type(expected)
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    for have, want in pairs:
        torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-12)


def leaves(program: Program) -> dict[str, str]:
    """The called leaf modules: name to class name, in the order of the graph."""
    nodes = [node for node in program.nodes if node.op == "call_module"]
    return {str(node.target): type(program.leaf(node)).__name__ for node in nodes}


def functions(program: Program) -> list[str]:
    """The called functions, in the order of the graph."""
    return [str(n.target) for n in program.nodes if n.op == "call_function"]
