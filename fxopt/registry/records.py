"""What is known of a plugin: who it is, what it offers, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxopt.analysis import Fact
from fxopt.backends import Backend
from fxopt.errors import PluginError
from fxopt.passes import Pass

Kind = Literal["plugin", "pass", "backend", "fact"]


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from.

    Attributes:
        name: Its name in the entry-point group, or the one that it was registered under.
        distribution: The installed package that brings it; empty for one registered in process.
        version: That package's version.
        module: The module that the entry point names.
    """

    name: str
    distribution: str = ""
    version: str = ""
    module: str = ""

    def __str__(self) -> str:
        package = f"{self.distribution} {self.version}".strip() or "registered in this process"
        return f"plugin {self.name} ({package})"


@dataclass(frozen=True)
class Plugin:
    """A plugin that passed all checks.

    Attributes:
        origin: Where it comes from.
        passes: The passes that it offers, by class.
        backends: The backends that it offers, by class.
        facts: The facts that it declares.
    """

    origin: Origin
    passes: tuple[type[Pass], ...] = ()
    backends: tuple[type[Backend], ...] = ()
    facts: tuple[Fact, ...] = ()

    @property
    def name(self) -> str:
        """Its name in the entry-point group."""
        return self.origin.name

    @property
    def distribution(self) -> str:
        """The installed package that brings it; empty for one registered in process."""
        return self.origin.distribution

    @property
    def version(self) -> str:
        """That package's version."""
        return self.origin.version

    def names(self) -> tuple[tuple[Kind, str], ...]:
        """Every name that it takes, with what kind of thing bears it."""
        return (
            ("plugin", self.origin.name),
            *(("pass", cls.info.name) for cls in self.passes),
            *(("backend", cls.info.name) for cls in self.backends),
            *(("fact", fact.name) for fact in self.facts),
        )


@dataclass(frozen=True)
class Problem:
    """Why a plugin is skipped, or what its users should know of it.

    Attributes:
        origin: The plugin.
        error: What is wrong.
        hint: What to do about it.
        skipped: Whether nothing of the plugin is used.
    """

    origin: Origin
    error: str
    hint: str
    skipped: bool = True

    def __str__(self) -> str:
        state = "skipped: " if self.skipped else ""
        return f"{self.origin}: {state}{self.error}\n  hint: {self.hint}"


@dataclass(frozen=True)
class Clash:
    """Two things of one kind and one name.

    Attributes:
        kind: What they are.
        name: The name that both bear.
        first: The plugin that has it.
        second: The plugin that wants it too.
    """

    kind: Kind
    name: str
    first: Origin
    second: Origin

    def error(self) -> PluginError:
        """The error to raise; it names both owners."""
        return PluginError(
            f"two plugins bring a {self.kind} named {self.name!r}: {self.first} and {self.second}",
            hint="uninstall one of the two packages, or ask one author for another name",
        )
