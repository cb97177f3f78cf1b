"""The registry: every pass, backend and fact by name, and who brings it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from fxopt.analysis import Fact
from fxopt.backends import Backend
from fxopt.cost import Target
from fxopt.errors import BackendError, InputError, PluginError, SettingError
from fxopt.passes import Pass, parse_passes
from fxopt.registry.checks import describe, inspect_plugin
from fxopt.registry.records import Clash, Kind, Origin, Plugin, Problem


class Registry:
    """What the plugins offer.

    Args:
        plugins: Those that passed their checks.
        problems: Those that did not.
    """

    def __init__(self, plugins: Iterable[Plugin] = (), problems: Iterable[Problem] = ()) -> None:
        self._plugins: list[Plugin] = []
        self._problems = list(problems)
        self._clashes: list[Clash] = []
        self._owners: dict[tuple[Kind, str], Origin] = {}
        self._passes: dict[str, type[Pass]] = {}
        self._backends: dict[str, type[Backend]] = {}
        self._facts: dict[str, Fact] = {}
        for plugin in plugins:
            self._add(plugin)

    @property
    def passes(self) -> Mapping[str, type[Pass]]:
        """The passes by name."""
        return MappingProxyType(self._passes)

    @property
    def backends(self) -> Mapping[str, type[Backend]]:
        """The backends by name, usable on this machine or not."""
        return MappingProxyType(self._backends)

    @property
    def facts(self) -> Mapping[str, Fact]:
        """The facts by name."""
        return MappingProxyType(self._facts)

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The plugins in use."""
        return tuple(self._plugins)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The plugins that are skipped, and passes that name a fact which nobody declares."""
        return (*self._problems, *self._undeclared_facts())

    @property
    def clashes(self) -> tuple[Clash, ...]:
        """Names that two plugins bring; of each, only the first one's is in the mappings."""
        return tuple(self._clashes)

    def check(self) -> None:
        """Makes sure that every name has one owner; all lookups begin with this.

        Raises:
            PluginError: Two plugins bring something of the same name; it names both.
        """
        for clash in self._clashes:
            raise clash.error()

    def register(self, plugin: object, name: str) -> Plugin:
        """Adds a plugin that is not installed, such as a module of a notebook or a test.

        Args:
            plugin: A module, or any object with hook methods.
            name: What to call it.

        Raises:
            PluginError: It fails a check, or brings a name that is taken. Nothing is added then.
        """
        found = inspect_plugin(plugin, Origin(name, module=getattr(plugin, "__name__", "")))
        clashes = self._clashes_of(found)
        if clashes:
            raise clashes[0].error()
        self._add(found)
        return found

    def owner(self, kind: Kind, name: str) -> str:
        """Who brings the pass, backend or fact called ``name``, in words.

        Raises:
            PluginError: Nobody does.
        """
        if (kind, name) not in self._owners:
            raise PluginError(f"no plugin brings a {kind} named {name!r}")
        return str(self._owners[kind, name])

    def providers(self, fact: str) -> tuple[str, ...]:
        """Names of the passes that declare to provide ``fact``, sorted."""
        self.check()
        return tuple(sorted(n for n, cls in self._passes.items() if fact in cls.info.provides))

    def parse(self, text: str) -> list[Pass]:
        """The passes that ``text`` names, such as ``"prune{ratio=0.3},fold_bn"``.

        Raises:
            SettingError: There is no such pass or setting, or the text cannot be read.
            PluginError: Two plugins bring something of the same name.
        """
        self.check()
        try:
            return parse_passes(text, self._passes)
        except SettingError as error:
            raise SettingError(
                error.what, where=error.where, hint=self._mention_problems(error.hint)
            ) from error

    def available_backends(
        self, target: Target, only: Sequence[str] | None = None
    ) -> tuple[list[Backend], list[tuple[str, str]]]:
        """The backends that can be tried for ``target`` on this machine.

        Args:
            target: What is lowered for.
            only: Names of those to try; all by default. One that is named must be usable.

        Returns:
            The usable backends, in the order of ``only`` or else by name, and the name of each
            other one with the reason why it is not.

        Raises:
            InputError: ``only`` is empty or names a backend that no plugin brings.
            BackendError: ``only`` names one that cannot be used here; says how to install it.
            PluginError: Two plugins bring something of the same name.
        """
        self.check()
        names = sorted(self._backends) if only is None else self._known_backends(only)
        reasons = {name: _unusable(self._backends[name], target) for name in names}
        for name, reason in reasons.items():
            if reason is not None and only is not None:
                hint = self._backends[name].info.extra or None
                raise BackendError(f"backend {name!r} cannot be used: {reason}", hint=hint)
        usable = [self._backends[name]() for name, reason in reasons.items() if reason is None]
        return usable, [(name, reason) for name, reason in reasons.items() if reason is not None]

    # -- internals ---------------------------------------------------------------------------

    def _add(self, plugin: Plugin) -> None:
        self._clashes += self._clashes_of(plugin)
        self._plugins.append(plugin)
        for key in plugin.names():
            self._owners.setdefault(key, plugin.origin)
        for cls in plugin.passes:
            self._passes.setdefault(cls.info.name, cls)
        for backend in plugin.backends:
            self._backends.setdefault(backend.info.name, backend)
        for fact in plugin.facts:
            self._facts.setdefault(fact.name, fact)

    def _clashes_of(self, plugin: Plugin) -> list[Clash]:
        owners, clashes = dict(self._owners), []
        for kind, name in plugin.names():
            if (kind, name) in owners:
                clashes.append(Clash(kind, name, owners[kind, name], plugin.origin))
            owners.setdefault((kind, name), plugin.origin)
        return clashes

    def _undeclared_facts(self) -> list[Problem]:
        """Facts that passes name but nobody declares: a misspelt one would never be checked."""
        problems = []
        for plugin in self._plugins:
            for cls in plugin.passes:
                named = (*cls.info.requires, *cls.info.provides)
                for fact in sorted({fact for fact in named if fact not in self._facts}):
                    error = f"the pass {cls.info.name} names the fact {fact!r}, which is declared"
                    hint = _close(fact, self._facts) or "declare it in fxopt_facts"
                    problems.append(Problem(plugin.origin, f"{error} nowhere", hint, skipped=False))
        return problems

    def _known_backends(self, only: Sequence[str]) -> list[str]:
        if isinstance(only, str) or not only:
            raise InputError(
                f"backends={only!r} names no backends",
                hint=f"give a list, such as backends={sorted(self._backends)}",
            )
        for name in only:
            if name not in self._backends:
                known = f"there are: {', '.join(sorted(self._backends)) or 'none'}"
                hint = self._mention_problems(_close(name, self._backends) or known)
                raise InputError(f"unknown backend {name!r}", hint=hint)
        return list(dict.fromkeys(only))

    def _mention_problems(self, hint: str | None) -> str | None:
        skipped = [problem.origin.name for problem in self._problems]
        if not skipped:
            return hint
        note = f"plugins that could not be loaded: {', '.join(skipped)}; see `fxopt plugins`"
        return f"{hint}; {note}" if hint else note


def _close(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _unusable(cls: type[Backend], target: Target) -> str | None:
    if target.name not in cls.info.targets:
        return f"it lowers to {', '.join(cls.info.targets)}, not to {target.name}"
    try:
        return cls().unavailable()
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the others go on
        return f"its check for what it needs raises {describe(error)}"
