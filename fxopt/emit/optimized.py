"""What ``fxopt.optimize`` returns: a GraphModule with the user's signature, and its report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import fx, nn
from torch.fx.graph import PythonCode

from fxopt.backends import LoweredModule
from fxopt.emit.calling import adopt_signature
from fxopt.emit.guard import InputGuard
from fxopt.errors import FxoptError
from fxopt.ir import Program
from fxopt.report import Report

REGION = "fxopt_region"
PYTHON = "fxopt_python"
_GUARD = "fxopt_guard"
_REPORT = "fxopt_report"
SOURCE = "fxopt_source"

# Modules that fxopt puts around the user's have names that begin so; state_dict leaves them out.
_OURS = "fxopt_"


@runtime_checkable
class Picklable(Protocol):
    """What a module was made from, as far as it takes to pickle the module by it."""

    def reduce(self, module: OptimizedModule) -> tuple[Any, ...]:
        """What ``__reduce__`` of ``module`` returns."""


class OptimizedModule(fx.GraphModule):
    """An optimized model: called as the original is, at any batch size, from any thread.

    It is meant for inference. In training mode, or where a gradient is asked for, lowered regions
    run as the torch program that they were lowered from.
    """

    def recompile(self) -> PythonCode:
        """Makes ``forward`` anew after a change of the graph."""
        code = super().recompile()
        # fx wraps each call, to print the generated line that raised; our errors say more, and
        # the wrapper takes 10 microseconds where the caches are cold.
        type(self).__call__ = nn.Module.__call__  # type: ignore[method-assign]
        return code

    @property
    def report(self) -> Report:
        """What was done, what was refused and why, and what it cost in quality."""
        report = self.meta.get(_REPORT)
        if not isinstance(report, Report):
            raise FxoptError("this module has no report", hint="fxopt.optimize returns one with it")
        return report

    @property
    def recipe(self) -> str:
        """The passes that were applied, as text; give it to ``passes=`` to repeat them."""
        return self.report.recipe

    def attach(self, report: Report) -> OptimizedModule:
        """Keeps ``report`` with the module, through copies too."""
        self.meta[_REPORT] = report
        return self

    def lowered(self) -> list[LoweredModule]:
        """The regions that run as lowered code."""
        return [module for module in self.modules() if isinstance(module, LoweredModule)]

    def __reduce__(self) -> tuple[Any, ...]:
        # compiled code has no form that other processes could read
        source = self.meta.get(SOURCE)
        if isinstance(source, Picklable):
            return source.reduce(self)
        return _restored, (*super().__reduce__(), self.meta)

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        """The weights under the user's own names, wherever they live in the graph."""
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for key in list(state):
            value = state.pop(key)
            own = key.startswith(prefix)
            state[prefix + public_name(key.removeprefix(prefix)) if own else key] = value
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Untouched weights are shared with the user's model, which loading must not change.
        unshare(self)
        for key in super().state_dict():
            if prefix + public_name(key) in state_dict:
                state_dict[prefix + key] = state_dict.pop(prefix + public_name(key))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _restored(
    rebuild: Callable[..., fx.GraphModule], parts: tuple[Any, ...], meta: dict[str, Any]
) -> OptimizedModule:
    """What was pickled: fx would make a plain GraphModule of it, and forget ``meta``."""
    plain = rebuild(*parts)
    module = OptimizedModule(plain, plain.graph, "OptimizedModule")
    module.training = plain.training
    module.meta.update(meta)
    return module


def emit(program: Program, names: Sequence[str] = ()) -> OptimizedModule:
    """A module that runs ``program`` and is called as the user's model is.

    Args:
        program: Its module is shared, not copied.
        names: Names of the positional arguments of the user's ``forward``.
    """
    root, graph = guarded(program, names)
    return OptimizedModule(root, graph, "OptimizedModule").train(program.module.training)


def guarded(program: Program, names: Sequence[str] = ()) -> tuple[nn.Module, fx.Graph]:
    """The modules and graph of a program with a check of its inputs and the user's signature."""
    graph = copy.deepcopy(program.graph)
    root = nn.Module()
    for name, child in program.module.named_children():
        root.add_module(name, child)
    for name, parameter in program.module.named_parameters(recurse=False):
        root.register_parameter(name, parameter)
    for name, buffer in program.module.named_buffers(recurse=False):
        persistent = name not in program.module._non_persistent_buffers_set
        root.register_buffer(name, buffer, persistent=persistent)
    _add_guard(root, graph, InputGuard(program))
    adopt_signature(graph, program.signature, names)
    return root, graph


def _add_guard(root: nn.Module, graph: fx.Graph, guard: InputGuard) -> None:
    """Checks the inputs first: in the region that takes them all, or else in a node of its own."""
    placeholders = tuple(node for node in graph.nodes if node.op == "placeholder")
    takers = list(placeholders[-1].users) if placeholders else []
    if len(takers) == 1 and takers[0].args == placeholders and takers[0].op == "call_module":
        region = root.get_submodule(takers[0].target)
        if isinstance(region, LoweredModule):
            region.check_with(guard.forward)
            return
    root.add_module(_GUARD, guard)
    if placeholders:
        with graph.inserting_after(placeholders[-1]):
            graph.call_module(_GUARD, placeholders)


class PythonModel(nn.Module):
    """The part of a model that stayed Python: a copy whose captured parts are replaced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.fxopt_model = model

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.fxopt_model(*args, **kwargs)


def emit_python(model: nn.Module) -> OptimizedModule:
    """Wraps a Python model, some of whose submodules may be optimized ones."""
    graph = fx.Graph()
    args = graph.create_node("placeholder", "*args")
    kwargs = graph.create_node("placeholder", "**kwargs")
    graph.output(graph.call_module(PYTHON, (args, kwargs)))
    root = nn.Module()
    root.add_module(PYTHON, PythonModel(model))
    module = OptimizedModule(root, graph, "OptimizedModule")
    return module.train(model.training)


def unshare(module: nn.Module) -> None:
    """Gives ``module`` weights of its own; tied ones stay tied."""
    memo: dict[int, Any] = {}
    for child in module.modules():
        for name, parameter in child._parameters.items():
            child._parameters[name] = copy.deepcopy(parameter, memo)
        for name, buffer in child._buffers.items():
            child._buffers[name] = copy.deepcopy(buffer, memo)


def public_name(key: str) -> str:
    """The user's own name of a weight, wherever it lives in a graph."""
    return ".".join(part for part in key.split(".") if not part.startswith(_OURS))
