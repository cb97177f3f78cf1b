"""From a file to a program. Nothing in the file is executed, imported at will, or believed."""

from __future__ import annotations

import keyword
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import fx

from fxopt.errors import FxoptError, SavingError
from fxopt.ir.program import Program
from fxopt.ir.saving.container import read_container, read_document
from fxopt.ir.saving.modules import ModuleReader
from fxopt.ir.saving.sizes import SizeReader
from fxopt.ir.saving.specs import load_spec
from fxopt.ir.saving.storing import KIND
from fxopt.ir.saving.targets import find_function
from fxopt.ir.saving.tensors import TensorReader
from fxopt.ir.saving.values import decode
from fxopt.ir.shapes import infer
from fxopt.ir.signature import Signature


def load_program(
    path: str | os.PathLike[str], *, packages: Collection[str] = (), pageable: bool = False
) -> Program:
    """Reads a program that :func:`save_program` wrote.

    Values of nodes are inferred anew, so they are right whatever the file says. Functions come
    from a closed set; classes of leaves are those of torch.nn and subclasses of LeafModule.

    Args:
        path: The file.
        packages: Top-level packages, besides torch and fxopt, that the file may name to import
            classes of leaves from, or operators of the same name; such as those of plugins.
        pageable: Whether large weights should lie in files of their own, without a name, so that
            their memory can be given back while nothing reads them; it takes as much disk space.

    Raises:
        SavingError: The file cannot be read, is damaged, is none of these, is of a newer version,
            or needs something that is not here or not in ``packages``.
    """
    document, stored = read_container(path, KIND, pageable=pageable)
    with _explained(path):
        program = _build(document, stored, packages)
        program.verify()
    return program


def load_beside(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`save_program` was given to keep beside the program; of any form, if foreign.

    Raises:
        SavingError: The file cannot be read, is damaged, or is none of these.
    """
    with _explained(path):
        return dict(read_document(path, KIND).get("beside") or {})


def _build(document: Mapping[str, Any], stored: Any, packages: Collection[str]) -> Program:
    tensors = TensorReader(document["tensors"], stored)
    module = ModuleReader(document["modules"], tensors, packages).root(document["title"])
    graph = _Graph(module, SizeReader(document["symbols"]), packages)
    for entry in document["nodes"]:
        graph.add(entry)
    module.graph = graph.finished()
    signature = document["signature"]
    specs = [load_spec(signature[key], packages) for key in ("inputs", "outputs")]
    notes = tuple(str(note) for note in document["notes"])
    return Program(module, Signature(specs[0], specs[1], bool(signature["batch"])), notes)


class _Graph:
    """The graph under construction."""

    def __init__(
        self, module: fx.GraphModule, sizes: SizeReader, packages: Collection[str]
    ) -> None:
        self._module = module
        self._sizes = sizes
        self._packages = packages
        self._graph = fx.Graph()
        self._nodes: dict[str, fx.Node] = {}

    def add(self, entry: Mapping[str, Any]) -> None:
        """Adds a node, with its value."""
        name, op = _identifier(entry["name"]), entry["op"]
        args = tuple(decode(arg, self._reference) for arg in entry["args"])
        kwargs = {_identifier(k): decode(v, self._reference) for k, v in entry["kwargs"].items()}
        node = self._graph.create_node(op, self._target(entry), args, kwargs, name)
        if node.name != name or name in self._nodes:
            raise ValueError(f"{name!r} cannot be the name of a node")
        self._nodes[name] = node
        if "source" in entry:
            node.meta["source"] = str(entry["source"])
        if op == "placeholder":
            node.meta["val"] = self._sizes.placeholder(entry["input"])
        elif op != "output":
            with self._sizes.numbering(str(entry["value"])):
                node.meta["val"] = infer(self._module, node)

    def finished(self) -> fx.Graph:
        """The graph, checked."""
        self._graph.lint()
        return self._graph

    def _target(self, entry: Mapping[str, Any]) -> Any:
        op, target = entry["op"], str(entry["target"])
        if op == "call_function":
            return find_function(target, self._packages)
        if op == "placeholder":
            return _identifier(target)
        if op in ("call_module", "get_attr"):
            return target  # the names of the module tree are checked, and infer() finds it there
        if op == "output":
            return "output"
        raise ValueError(f"a node cannot be a {op}")

    def _reference(self, tag: str, name: str) -> fx.Node:
        if tag != "node":
            raise ValueError(f"an argument of the unknown kind {tag!r}")
        return self._nodes[name]


def _identifier(name: str) -> str:
    """A name that may become part of generated code."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is no name of a node or an argument")
    return name


@contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = error.what if isinstance(error, FxoptError) else f"{error}"
        if isinstance(error, KeyError):
            reason = f"it lacks {error}"
        raise SavingError(f"{path} cannot be loaded: {reason}") from error
