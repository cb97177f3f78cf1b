"""The editor: the only way to change a program, so that its metadata stays right."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxopt.ir.result import PassResult
from fxopt.ir.shapes import infer

if TYPE_CHECKING:
    from fxopt.ir.program import Program

Target = nn.Module | Callable[..., Any]


class Edit:
    """Changes a program inside a ``with`` block; on leaving it, the graph is tidy again.

    New nodes get their value, the source line and the name of what they replace. What a rewrite
    leaves unused is removed, together with its modules. Weights may be changed freely: a pass is
    always given a program of its own.

    One call of :meth:`replace`, :meth:`redirect` or :meth:`set_arguments` is one rewrite. Under
    ``program.rewrite_limit`` further rewrites are left undone, which is how ``fxopt bisect``
    finds the guilty one; so a rewrite must be right on its own.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._graph = program.graph
        self._before = len(program.graph.nodes)
        self._rewrites: list[str] = []
        self._refused: list[str] = []
        self._loose: list[fx.Node] = []
        self._stale: set[fx.Node] = set()
        self._open = False

    def __enter__(self) -> Edit:
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        if error is None:
            self._finish()

    @property
    def exhausted(self) -> bool:
        """Whether the rewrite limit is reached, so that further rewrites do nothing."""
        limit = self._program.rewrite_limit
        return limit is not None and len(self._rewrites) >= limit

    def call(self, target: Target, *args: Any, before: fx.Node, **kwargs: Any) -> fx.Node:
        """Adds a node that calls ``target``, in front of the node ``before``.

        Args:
            target: An operator overload, or a module (which gets a free name near ``before``).
            *args: Its arguments: nodes and constants.
            before: Where it goes, and whose source line it takes over.
            **kwargs: Its keyword arguments.
        """
        with self._graph.inserting_before(before):
            node = self._create(target, args, kwargs, origin=before, name=None)
        self._loose.append(node)
        return node

    def constant(self, tensor: torch.Tensor, *, before: fx.Node, name: str = "constant") -> fx.Node:
        """Adds a buffer to the program and a node in front of ``before`` that reads it."""
        path = self._free_name(name)
        owner = self._owner(path)
        owner.register_buffer(path.rpartition(".")[2], tensor)
        with self._graph.inserting_before(before):
            node = self._graph.get_attr(path)
        self._annotate(node, before)
        self._loose.append(node)
        return node

    def replace(self, node: fx.Node, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        """Replaces ``node`` by a call of ``target``; all users take the new node instead.

        A module takes over the qualified name of the module that it replaces, if nothing else
        calls that one.
        """
        if not self._permit(node, f"{node.name} -> {_name_of(target)}"):
            return node
        name = str(node.target) if node.op == "call_module" else None
        with self._graph.inserting_before(node):
            new = self._create(target, args, kwargs, origin=node, name=name)
        self._take_over(node, new)
        return new

    def redirect(self, node: fx.Node, other: fx.Node) -> None:
        """Lets all users of ``node`` use ``other``, which must come before them, instead."""
        if self._permit(node, f"{node.name} -> {other.name}"):
            self._take_over(node, other)

    def set_arguments(self, node: fx.Node, *args: Any, **kwargs: Any) -> None:
        """Gives ``node`` other arguments."""
        if self._permit(node, f"{node.name} arguments"):
            self._loose.extend(node.all_input_nodes)
            node.args, node.kwargs = args, kwargs
            self._stale.add(node)

    def remove(self, node: fx.Node) -> None:
        """Removes a node that has no users."""
        if self._permit(node, f"{node.name} removed"):
            self._loose.append(node)

    def refuse(self, node: fx.Node, reason: str) -> None:
        """Records for the report why a candidate was left as it is."""
        self._refused.append(f"{node.name}: {reason}")

    def result(self, summary: str = "", **details: Any) -> PassResult:
        """What the report tells of this edit.

        Args:
            summary: What was done, in a few words; "N rewrites" when left out.
            **details: Numbers or texts for the machine-readable report.
        """
        count = len(self._rewrites)
        return PassResult(
            changed=count > 0,
            nodes_before=self._before,
            nodes_after=len(self._graph.nodes),
            summary=summary or (f"{count} rewrites" if count else "nothing to do"),
            rewrites=tuple(self._rewrites),
            refused=tuple(self._refused),
            details=details,
        )

    # -- internals ---------------------------------------------------------------------------

    def _permit(self, node: fx.Node, what: str) -> bool:
        if not self._open:
            raise RuntimeError("an edit changes its program only inside its with block")
        if self.exhausted:
            return False
        source = node.meta.get("source")
        self._rewrites.append(f"{what} ({source})" if source else what)
        return True

    def _create(
        self,
        target: Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        origin: fx.Node,
        name: str | None,
    ) -> fx.Node:
        if isinstance(target, nn.Module):
            path = self._install(target, origin, name)
            node = self._graph.call_module(path, args, kwargs)
        else:
            node = self._graph.call_function(target, args, kwargs)
        self._annotate(node, origin)
        return node

    def _annotate(self, node: fx.Node, origin: fx.Node) -> None:
        inherited = {key: origin.meta[key] for key in _PROVENANCE if key in origin.meta}
        node.meta = {**inherited, "from": (*origin.meta.get("from", ()), origin.name)}
        node.meta["val"] = infer(self._program.module, node)

    def _install(self, module: nn.Module, origin: fx.Node, name: str | None) -> str:
        module.train(self._program.module.training)
        for existing, child in self._program.module.named_modules(remove_duplicate=False):
            if child is module:
                return str(existing)
        callers = [n for n in self._graph.nodes if n.op == "call_module" and n.target == name]
        path = name if name and len(callers) <= 1 else self._free_name(name or _near(origin))
        self._owner(path).add_module(path.rpartition(".")[2], module)
        return path

    def _owner(self, path: str) -> nn.Module:
        owner: nn.Module = self._program.module
        for atom in path.split(".")[:-1]:
            child = getattr(owner, atom, None)
            if not isinstance(child, nn.Module):
                child = nn.Module()
                owner.add_module(atom, child)
            owner = child
        return owner

    def _free_name(self, wanted: str) -> str:
        taken = {name for name, _ in self._program.module.named_modules(remove_duplicate=False)}
        taken |= set(dict(self._program.module.named_parameters(remove_duplicate=False)))
        taken |= set(dict(self._program.module.named_buffers(remove_duplicate=False)))
        candidates = (f"{wanted}_{i}" if i else wanted for i in range(len(taken) + 2))
        return next(
            name for name in candidates if name not in taken and not _clashes(self._program, name)
        )

    def _take_over(self, old: fx.Node, new: fx.Node) -> None:
        users = list(old.users)
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self._stale.update(user for user in users if user is not new)
        self._loose.append(old)

    def _finish(self) -> None:
        self._erase_loose()
        self._update_values()
        self._drop_unused_modules()
        self._graph.lint()
        self._program.module.recompile()

    def _erase_loose(self) -> None:
        while self._loose:
            node = self._loose.pop()
            gone = node._erased or node.op in ("placeholder", "output")
            if gone or node.users:
                continue
            self._loose.extend(node.all_input_nodes)
            self._stale.discard(node)
            self._graph.erase_node(node)

    def _update_values(self) -> None:
        for node in self._graph.nodes:
            if node not in self._stale or node.op == "output":
                continue
            value = infer(self._program.module, node)
            if _kind(value) != _kind(node.meta.get("val")):
                self._stale.update(node.users)
            node.meta["val"] = value

    def _drop_unused_modules(self) -> None:
        used = {str(n.target) for n in self._graph.nodes if n.op in ("call_module", "get_attr")}
        _prune(self._program.module, "", used)


_PROVENANCE = ("source", "stack_trace", "nn_module_stack")


def _name_of(target: Target) -> str:
    return type(target).__name__ if isinstance(target, nn.Module) else str(target)


def _near(origin: fx.Node) -> str:
    return str(origin.target) if origin.op == "call_module" else origin.name


def _clashes(program: Program, name: str) -> bool:
    return hasattr(program.module, name.partition(".")[0]) and "." not in name


def _kind(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(str(size) for size in value.shape), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_kind(item) for item in value)
    return str(value)


def _prune(module: nn.Module, prefix: str, used: set[str]) -> None:
    """Removes below ``module`` each tensor and module that no path of ``used`` leads to."""
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if path in used:
            continue
        if any(other.startswith(f"{path}.") for other in used):
            _prune(child, f"{path}.", used)
        else:
            delattr(module, name)
    for name in [*module._parameters, *module._buffers]:
        if f"{prefix}{name}" not in used:
            delattr(module, name)
