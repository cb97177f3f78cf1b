"""Checks of what a pass says of itself; they run no pass."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterator

from fxopt.errors import FxoptError
from fxopt.passes import STAGES, Exact, Lossy, Pass, PassInfo, format_pass, parse_passes
from fxopt.testing.subject import DeclarationCheck, Subject, require, require_none


def is_frozen_dataclass(subject: Subject) -> None:
    """A pass is a frozen dataclass, so that a recipe can name it by its settings."""
    cls = type(subject.item)
    require(issubclass(cls, Pass), f"{cls.__name__} is no subclass of fxopt.plugin.Pass")
    frozen = "__dataclass_params__" in vars(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(
        frozen, f"{cls.__name__} is no frozen dataclass", "decorate it: @dataclass(frozen=True)"
    )


def declares_itself(subject: Subject) -> None:
    """``info`` is a PassInfo whose names are tuples of texts, and whose facts exist."""
    info = getattr(type(subject.item), "info", None)
    if not isinstance(info, PassInfo):
        require(False, "info is no PassInfo", "set the class attribute info = PassInfo(...)")
        return
    require_none(_problems(info))
    known = subject.known_facts()
    unknown = [name for name in (*info.requires, *info.provides) if name not in known]
    require_none(
        (f"nobody declares the fact {name}" for name in unknown),
        "return it from the hook fxopt_facts, or give it to check_pass as facts=",
    )


def _problems(info: PassInfo) -> Iterator[str]:
    if info.stage not in STAGES:
        yield f"there is no stage {info.stage!r}"
    if not isinstance(info.fidelity, (Exact, Lossy)):
        yield "fidelity is neither Exact(...) nor Lossy()"
    for name in ("requires", "provides", "after", "before", "needs", "preserves"):
        value = getattr(info, name)
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            yield f"{name} is no tuple of texts: {value!r}"
    if info.name in (*info.after, *info.before):
        yield "it is before or after itself"


def has_defaults(subject: Subject) -> None:
    """Every setting has a default, so that the name alone is a recipe."""
    missing = [
        field.name
        for field in dataclasses.fields(subject.item)  # type: ignore[arg-type]
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    require_none(f"the setting {name} has no default" for name in missing)
    type(subject.item)()


def text_form_round_trips(subject: Subject) -> None:
    """The text form reads back as an equal pass; so does that of the defaults."""
    cls = type(subject.item)
    for item in (subject.item, cls()):
        text = format_pass(item)
        try:
            again = parse_passes(text, {item.info.name: cls})
        except FxoptError as error:
            require(False, f"{text!r} cannot be read back: {error.what}")
            return
        require(again == [item], f"{text!r} reads back as {again}")


def settings_are_typed(subject: Subject) -> None:
    """Every setting has a type that a text can be checked against."""
    hints = typing.get_type_hints(type(subject.item))
    fields = dataclasses.fields(subject.item)  # type: ignore[arg-type]
    require_none(f"the setting {f.name} has no type" for f in fields if f.name not in hints)


def can_be_copied(subject: Subject) -> None:
    """A pass can be copied and hashed: it is a value."""
    require(copy.deepcopy(subject.item) == subject.item, "a deep copy is not equal to the pass")
    try:
        hash(subject.item)
    except TypeError as error:
        require(False, f"the pass cannot be hashed: {error}", "use tuples for lists of values")


DECLARATION_CHECKS: tuple[DeclarationCheck, ...] = (
    is_frozen_dataclass,
    declares_itself,
    has_defaults,
    settings_are_typed,
    text_form_round_trips,
    can_be_copied,
)
