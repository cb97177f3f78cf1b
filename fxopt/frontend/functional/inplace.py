"""In-place operations and the functional expressions that compute the same value."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from fxopt.errors import CaptureError
from fxopt.frontend.functional.infer import emit
from fxopt.frontend.source import source_of

aten = torch.ops.aten


def written_argument(node: Node) -> Node | None:
    """The tensor that a call writes to, None for a functional call.

    Raises:
        CaptureError: The call writes to several tensors, or to one that is not its first argument.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return None
    written = [i for i, a in enumerate(schema.arguments) if a.alias_info and a.alias_info.is_write]
    target = node.args[0] if node.args else None
    if written != [0] or not isinstance(target, Node) or _changes_shape(node):
        raise refusal(node, f"{node.target} cannot be made functional")
    return target


def _changes_shape(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.inplace_view in tags and node.target is not aten.detach_.default


def refusal(node: Node, what: str) -> CaptureError:
    """An error about an in-place operation, with the user's line."""
    hint = "write this line of the model without in-place operations"
    return CaptureError(what, where=source_of(node), hint=hint)


def functional_value(graph: Graph, node: Node, old: Node) -> Node:
    """Adds the calls that compute what an in-place call would write.

    Args:
        graph: The graph, at the insertion point.
        node: The in-place call.
        old: The current value of the tensor that it writes to.

    Returns:
        The new value, of the old one's shape and dtype.
    """
    if node.target in (aten.copy_.default, aten.fill_.Tensor):
        return _fit(graph, node, _as_tensor(node.args[1]), old)
    if node.target is aten.fill_.Scalar:
        return emit(graph, node, aten.full_like.default, (old, node.args[1]))
    if node.target is aten.zero_.default:
        return emit(graph, node, aten.zeros_like.default, (old,))
    args = (old, *node.args[1:])
    new = emit(graph, node, functional_overload(node), args, dict(node.kwargs))
    return _fit(graph, node, new, old)


def functional_overload(node: Node) -> Any:
    """The overload `add.Tensor` for `add_.Tensor`.

    Raises:
        CaptureError: There is none.
    """
    namespace, name = node.target._schema.name.split("::")  # type: ignore[union-attr]
    packet = getattr(getattr(torch.ops, namespace), _functional_name(name), None)
    found = getattr(packet, node.target._overloadname, None)  # type: ignore[union-attr]
    if found is None or found._schema.is_mutable:
        raise refusal(node, f"{node.target} has no functional form")
    return found


def _functional_name(name: str) -> str:
    if name.startswith("__i"):  # __ior__ -> __or__
        return "__" + name[3:]
    return name.removesuffix("_")


def _as_tensor(value: Any) -> Node:
    assert isinstance(value, Node)
    return value


def _fit(graph: Graph, node: Node, new: Node, old: Node) -> Node:
    """Casts and broadcasts: an in-place call never changes the dtype or shape of its target."""
    have, want = new.meta["val"], old.meta["val"]
    if have.device != want.device:
        return emit(graph, node, aten.copy.default, (old, new))
    if have.dtype != want.dtype:
        new = emit(graph, node, aten.to.dtype, (new, want.dtype))
    if have.shape != want.shape:
        new = emit(graph, node, aten.expand.default, (new, _sizes(graph, node, old)))
    return new


def _sizes(graph: Graph, node: Node, old: Node) -> list[Any]:
    sizes = old.meta["val"].shape
    return [
        size if isinstance(size, int) else emit(graph, node, aten.sym_size.int, (old, i))
        for i, size in enumerate(sizes)
    ]
