"""Shape and dtype inference: fake values for nodes that an edit adds."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fxopt.errors import ProgramError


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The mode that the values of ``graph`` live in; a new one where there is no tensor yet."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def infer(module: fx.GraphModule, node: fx.Node) -> Any:
    """What ``node`` yields, as fake tensors, from the values of its arguments.

    Raises:
        ProgramError: The call does not accept these arguments.
    """
    if node.op in ("placeholder", "output"):
        return node.meta.get("val")
    mode = fake_mode_of(node.graph)
    try:
        # its decompositions know symbolic sizes where the compiled ones do not, as for an LSTM
        with enable_python_dispatcher():
            return _call(module, node, mode)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        AssertionError,
    ) as error:
        raise ProgramError(
            [f"{node.format_node()} does not accept its arguments: {error}"],
            where=node.meta.get("source"),
        ) from error


def attribute(root: torch.nn.Module, path: str) -> Any:
    """The attribute of ``root`` at a dotted path."""
    for atom in path.split("."):
        root = getattr(root, atom)
    return root


def _call(module: fx.GraphModule, node: fx.Node, mode: FakeTensorMode) -> Any:
    if node.op == "get_attr":
        return _fake(mode, attribute(module, str(node.target)))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
    if node.op != "call_module":
        with mode, torch.no_grad():
            return cast(Any, node.target)(*args, **kwargs)
    leaf = module.get_submodule(str(node.target))
    # Made fake outside of the mode, under which even detach() is a fake operation.
    state: dict[str, torch.Tensor] = {name: _fake(mode, tensor) for name, tensor in _tensors(leaf)}
    with mode, torch.no_grad():
        return torch.func.functional_call(leaf, state, args, kwargs)


def _tensors(leaf: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*leaf.named_parameters(), *leaf.named_buffers()]


def _fake(mode: FakeTensorMode, tensor: torch.Tensor) -> FakeTensor:
    return mode.from_tensor(tensor.detach(), static_shapes=True)
