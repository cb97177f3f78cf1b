"""What a plugin must fulfil before anything of it is used."""

from __future__ import annotations

import dataclasses
import inspect
import traceback
import typing
from collections.abc import Iterable
from typing import Any

import pluggy

from fxopt import hookspecs
from fxopt.analysis import Fact
from fxopt.backends import Backend, BackendInfo
from fxopt.errors import PluginError
from fxopt.passes import Pass, PassInfo
from fxopt.registry.records import Origin, Plugin

_GUIDE = "see fxopt/hookspecs.py for the hooks, and docs/writing-a-pass.md"


def inspect_plugin(module: object, origin: Origin) -> Plugin:
    """Calls the hooks of one plugin and checks what they return.

    Each plugin gets a pluggy manager of its own, so one that fails leaves nothing behind.

    Args:
        module: The module, or an object with hook methods.
        origin: Where it comes from.

    Raises:
        PluginError: A hook is unknown, takes the wrong arguments or raises, or something that
            it returns is not what it has to be.
    """
    manager = _manager(module, origin)
    plugin = Plugin(
        origin,
        passes=tuple(_check_pass(item) for item in _offered(manager, "fxopt_passes")),
        backends=tuple(_check_backend(item) for item in _offered(manager, "fxopt_backends")),
        facts=tuple(_check_fact(item) for item in _offered(manager, "fxopt_facts")),
    )
    if len(plugin.names()) == 1:
        raise PluginError("it offers neither passes, nor backends, nor facts", hint=_GUIDE)
    return plugin


def _manager(module: object, origin: Origin) -> pluggy.PluginManager:
    _check_marks(module)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, name=origin.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_one_line(error), hint=_GUIDE) from error
    return manager


def _check_marks(module: object) -> None:
    """A hook without its marker would be passed over in silence."""
    for name in dir(module):
        value = getattr(module, name, None)
        marked = hasattr(value, f"{hookspecs.PROJECT}_impl")
        if name.startswith(f"{hookspecs.PROJECT}_") and inspect.isroutine(value) and not marked:
            raise PluginError(f"{name} is not marked as a hook", hint="put @hookimpl above it")


def _offered(manager: pluggy.PluginManager, hook: str) -> list[Any]:
    try:
        return [item for result in getattr(manager.hook, hook)() for item in result]
    except Exception as error:  # a plugin may raise anything; it must not stop the others
        raise PluginError(
            f"{hook} raises {describe(error)}",
            hint="update the plugin, or tell its author: a hook returns a list, whatever is there",
        ) from error


def _check_pass(cls: Any) -> type[Pass]:
    _check_class(cls, Pass, PassInfo, "fxopt_passes")
    return typing.cast(type[Pass], cls)


def _check_backend(cls: Any) -> type[Backend]:
    _check_class(cls, Backend, BackendInfo, "fxopt_backends")
    _require(_no_settings_needed(cls), f"{cls.__name__} has a field without default", "give it one")
    return typing.cast(type[Backend], cls)


def _check_fact(fact: Any) -> Fact:
    _require(isinstance(fact, Fact), f"fxopt_facts offers {fact!r}", "offer instances of Fact")
    return typing.cast(Fact, fact)


def _check_class(cls: Any, base: type, info: type, hook: str) -> None:
    is_class = isinstance(cls, type) and issubclass(cls, base)
    _require(is_class, f"{hook} offers {cls!r}", f"offer subclasses of {base.__name__}")
    name = cls.__name__
    settings = cls.__dict__.get("__dataclass_params__")  # not inherited: a base's would not do
    _require(
        settings is not None and settings.frozen,
        f"{name} is not a frozen dataclass",
        f"put @dataclass(frozen=True) above class {name}",
    )
    _require(
        isinstance(getattr(cls, "info", None), info),
        f"{name} has no class attribute info",
        f"declare it: info = {info.__name__}(name=...)",
    )
    _require(
        "info" not in {field.name for field in dataclasses.fields(cls)},
        f"{name} declares info as a setting",
        "write `info = ...` without a type annotation",
    )
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    _require(not missing, f"{name} does not define {', '.join(missing)}", f"define it in {name}")
    _check_annotations(cls)


def _check_annotations(cls: type) -> None:
    """Settings are checked against their types, so those must be known."""
    try:
        typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise PluginError(
            f"the types of the settings of {cls.__name__} cannot be read: {error}",
            hint="annotate settings with types that the module imports at run time",
        ) from error


def _no_settings_needed(cls: Any) -> bool:
    parameters: Iterable[inspect.Parameter] = inspect.signature(cls).parameters.values()
    return all(parameter.default is not parameter.empty for parameter in parameters)


def _require(holds: bool, error: str, hint: str) -> None:
    if not holds:
        raise PluginError(error, hint=hint)


def describe(error: BaseException) -> str:
    """The error in one line, with the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    written = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    place = f" ({written[-1].filename}:{written[-1].lineno})" if written else ""
    return f"{type(error).__name__}: {_one_line(error)}{place}"


def _one_line(error: BaseException) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
