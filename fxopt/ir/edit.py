"""The editor: the only way to change a program, so that its metadata stays right."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxopt.errors import ProgramError
from fxopt.ir.ops import is_aten
from fxopt.ir.paths import free_path, prune, put_buffer, put_module
from fxopt.ir.result import PassResult
from fxopt.ir.shapes import infer

if TYPE_CHECKING:
    from fxopt.ir.program import Program

Target = nn.Module | Callable[..., Any]


class Edit:
    """Changes a program inside a ``with`` block; on leaving it, the graph is tidy again.

    New nodes get their value, the source line and the name of what they replace. What a rewrite
    leaves unused is removed, together with its modules. Weights may be changed freely: a pass is
    always given a program of its own. Where the block raises, the rewrites done so far stay, and
    what else it added goes.

    One call of :meth:`replace`, :meth:`redirect` or :meth:`set_arguments` is one rewrite, and so is
    all that happens within :meth:`together`. Under
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
        self._replaced: set[fx.Node] = set()
        self._open = False
        self._together = False

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
            return
        with contextlib.suppress(ProgramError, RuntimeError):  # the block's own error tells more
            self._finish()

    @property
    def exhausted(self) -> bool:
        """Whether the rewrite limit is reached, so that further rewrites do nothing."""
        limit = self._program.rewrite_limit
        return limit is not None and len(self._program.rewrites) >= limit

    def call(self, target: Target, *args: Any, before: fx.Node, **kwargs: Any) -> fx.Node:
        """Adds a node that calls ``target``, in front of the node ``before``.

        Args:
            target: An operator overload, or a module (which gets a free name near ``before``).
            *args: Its arguments: nodes and constants.
            before: Where it goes, and whose source line it takes over.
            **kwargs: Its keyword arguments.
        """
        self._require_open()
        with self._graph.inserting_before(before):
            node = self._create(target, args, kwargs, origin=before, name=None)
        self._loose.append(node)
        return node

    def constant(self, tensor: torch.Tensor, *, before: fx.Node, name: str = "constant") -> fx.Node:
        """Adds a buffer to the program and a node in front of ``before`` that reads it."""
        self._require_open()
        path = free_path(self._program.module, name)
        put_buffer(self._program.module, path, tensor)
        with self._graph.inserting_before(before):
            node = self._graph.get_attr(path)
        self._annotate(node, before)
        self._loose.append(node)
        return node

    def replace(self, node: fx.Node, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        """Replaces ``node`` by a call of ``target``; all users take the new node instead.

        A module takes over the qualified name of the module that it replaces, if nothing else
        uses that one. To put something behind ``node``, use :meth:`call` and :meth:`redirect`.
        """
        if not self._permit(node, f"{node.name} -> {_name_of(target)}"):
            return node
        name = str(node.target) if node.op == "call_module" else None
        with self._graph.inserting_before(node):
            new = self._create(target, args, kwargs, origin=node, name=name)
        self._take_over(node, new)
        return new

    def redirect(self, node: fx.Node, other: fx.Node) -> None:
        """Lets all users of ``node`` use ``other``, which must come before them, instead.

        What ``other`` itself is computed from stays as it is, so ``other`` may be computed from
        ``node``.

        Raises:
            ProgramError: ``other`` is computed from all users of ``node``.
        """
        if node.users and set(node.users) <= _between(node, other):
            raise ProgramError([f"no user of %{node.name} can take %{other.name} instead"])
        if self._permit(node, f"{node.name} -> {other.name}"):
            self._take_over(node, other)

    def set_arguments(self, node: fx.Node, *args: Any, **kwargs: Any) -> None:
        """Gives ``node`` other arguments."""
        if self._permit(node, f"{node.name} arguments"):
            self._loose.extend(node.all_input_nodes)
            node.args, node.kwargs = args, kwargs
            self._stale.add(node)

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[bool]:
        """Many changes that are right only as a whole, as one rewrite.

        Nodes are changed in their order, since the values of those before are what a new node's
        value is inferred from.

        Args:
            what: The rewrite in words.

        Yields:
            Whether it is permitted; if not, nothing must be changed.
        """
        self._require_open()
        if self.exhausted:
            yield False
            return
        self._note(what)
        self._together = True
        try:
            yield True
        finally:
            self._together = False

    def touch(self, node: fx.Node) -> None:
        """Tells that weights of what ``node`` calls or reads may have other shapes now."""
        self._require_open()
        self._stale.add(node)

    def remove(self, node: fx.Node) -> None:
        """Removes a node that has no users, and then what it alone has used.

        Raises:
            ProgramError: It has users, or is an input or the output.
        """
        if node.users or node.op in ("placeholder", "output"):
            raise ProgramError([f"%{node.name} cannot be removed: it is used"])
        if self._permit(node, f"{node.name} removed"):
            self._loose.extend(node.all_input_nodes)
            self._graph.erase_node(node)

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
            summary=summary or _count(count),
            rewrites=tuple(self._rewrites),
            refused=tuple(self._refused),
            details=details,
        )

    # -- internals ---------------------------------------------------------------------------

    def _require_open(self) -> None:
        if not self._open:
            raise RuntimeError("an edit changes its program only inside its with block")

    def _permit(self, node: fx.Node, what: str) -> bool:
        self._require_open()
        if self._together:
            return True
        if self.exhausted:
            return False
        source = node.meta.get("source")
        self._note(f"{what} ({source})" if source else what)
        return True

    def _note(self, rewrite: str) -> None:
        self._rewrites.append(rewrite)
        self._program.rewrites.append(rewrite)  # a pass may edit more than once

    def _create(
        self,
        target: Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        origin: fx.Node,
        name: str | None,
    ) -> fx.Node:
        if not isinstance(target, nn.Module):
            return self._annotate(self._graph.call_function(target, args, kwargs), origin)
        path = self._path_for(target, origin, name)
        earlier = put_module(self._program.module, path, target)
        target.train(self._program.module.training)
        try:
            return self._annotate(self._graph.call_module(path, args, kwargs), origin)
        except ProgramError:
            if earlier is not None:
                put_module(self._program.module, path, earlier)
            raise

    def _annotate(self, node: fx.Node, origin: fx.Node) -> fx.Node:
        """Gives a new node its metadata; one whose arguments do not fit is taken out again."""
        inherited = {key: origin.meta[key] for key in _PROVENANCE if key in origin.meta}
        node.meta = {**inherited, "from": (*origin.meta.get("from", ()), origin.name)}
        try:
            self._update_values(_between(None, node) if self._stale else ())
            node.meta["val"] = infer(self._program.module, node)
        except ProgramError:
            self._graph.erase_node(node)
            raise
        return node

    def _path_for(self, module: nn.Module, origin: fx.Node, name: str | None) -> str:
        """Where ``module`` is already, or else ``name`` if it can be taken, or a free name."""
        for existing, child in self._program.module.named_modules(remove_duplicate=False):
            if child is module:
                return str(existing)
        if name is not None and not self._used_by_others(name, origin):
            return name
        return free_path(self._program.module, name or _near(origin))

    def _used_by_others(self, path: str, origin: fx.Node) -> bool:
        gone = {origin, *self._replaced}
        nodes = (n for n in self._graph.nodes if n.op in ("call_module", "get_attr"))
        return any(f"{n.target}.".startswith(f"{path}.") for n in nodes if n not in gone)

    def _take_over(self, old: fx.Node, new: fx.Node) -> None:
        needed = _between(old, new)
        if _kind(old.meta.get("val")) != _kind(new.meta.get("val")):
            self._stale.update(user for user in old.users if user not in needed)
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in needed)
        self._replaced.add(old)
        self._loose.append(old)

    def _finish(self) -> None:
        self._erase_loose()
        self._update_values(self._stale)
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

    def _update_values(self, among: Collection[fx.Node]) -> None:
        """Infers the values of stale nodes again, and of what they change in turn."""
        for node in self._graph.nodes:
            if node not in self._stale or node not in among or node.op == "output":
                continue
            value = infer(self._program.module, node)
            self._stale.discard(node)
            if _kind(value) != _kind(node.meta.get("val")):
                self._stale.update(node.users)
            node.meta["val"] = value

    def _drop_unused_modules(self) -> None:
        used = {str(n.target) for n in self._graph.nodes if n.op in ("call_module", "get_attr")}
        prune(self._program.module, used)


_PROVENANCE = ("source", "stack_trace", "nn_module_stack")


def _count(rewrites: int) -> str:
    return f"{rewrites} rewrite{'s' * (rewrites > 1)}" if rewrites else "nothing to do"


def _name_of(target: Target) -> str:
    if isinstance(target, nn.Module):
        return type(target).__name__
    return str(target) if is_aten(target) else target.__name__


def _near(origin: fx.Node) -> str:
    return str(origin.target) if origin.op == "call_module" else origin.name


def _between(old: fx.Node | None, new: fx.Node) -> set[fx.Node]:
    """``new`` and all that it is computed from, as far back as ``old`` or the inputs."""
    found, waiting = set(), [new]
    while waiting:
        node = waiting.pop()
        if node not in found and (old is None or old < node):
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _kind(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(str(size) for size in value.shape), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_kind(item) for item in value)
    return str(value)
