"""The text form of passes: ``name{key=value,key=value},name``. A recipe is such a text."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fxopt.errors import SettingError
from fxopt.passes.base import Pass

_BARE = re.compile(r"[A-Za-z_][\w.\-*/]*")
# A quoted text, or else one character.
_TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.""", re.DOTALL)
_WORDS = {"true": True, "false": False, "none": None}


def parse_passes(text: str, known: Mapping[str, type[Pass]]) -> list[Pass]:
    """Builds the passes that ``text`` names.

    Args:
        text: Such as ``"prune{ratio=0.3},fold_bn"``; spaces do not matter.
        known: The classes by name.

    Raises:
        SettingError: An unknown pass or setting, a value of the wrong type, or broken syntax.
    """
    return [_build(item, known) for item in split_outside_brackets(text) if item]


def format_passes(passes: Iterable[Pass]) -> str:
    """The text that :func:`parse_passes` reads back; settings at their default are left out."""
    return ",".join(format_pass(item) for item in passes)


def format_pass(item: Pass) -> str:
    """The text form of one pass."""
    settings = [
        f"{field.name}={_format_value(getattr(item, field.name))}"
        for field in _settings(type(item))
        if getattr(item, field.name) != _default(field)
    ]
    return item.info.name + (f"{{{','.join(settings)}}}" if settings else "")


def default_settings(cls: type[Pass]) -> list[str]:
    """The settings of a pass as a recipe writes them, each ``key=value`` with its default.

    One that has no default, and must be given, is ``key=<type>``.
    """
    hints = typing.get_type_hints(cls)
    return [f"{field.name}={_format_default(field, hints)}" for field in _settings(cls)]


def _format_default(field: dataclasses.Field[Any], hints: Mapping[str, Any]) -> str:
    default = _default(field)
    if default is dataclasses.MISSING:
        return f"<{_kind(hints[field.name]).removeprefix('a ')}>"
    return _format_value(default)


def make_pass(cls: type[Pass], settings: Mapping[str, Any]) -> Pass:
    """Builds a pass from settings, each checked for its name and type.

    Raises:
        SettingError: There is no such setting, or not with such a value.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in _settings(cls)]
    for key, value in settings.items():
        if key not in names:
            raise _unknown(f"setting of {cls.info.name}", key, names)
        if not _fits(value, hints[key]):
            raise SettingError(
                f"{cls.info.name}: {key}={_format_value(value)} is not {_kind(hints[key])}",
                hint=_listed(key, value, hints[key]),
            )
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{cls.info.name}: {error}") from error


def _listed(key: str, value: Any, wanted: Any) -> str | None:
    """How to write a single value where several are taken; None where that is not the mistake."""
    return f"write {key}={_format_value((value,))}" if _fits((value,), wanted) else None


def split_outside_brackets(text: str) -> list[str]:
    """Splits at commas that stand in no bracket and no quotes.

    Raises:
        SettingError: Brackets do not match.
    """
    items, depth, item = [], 0, ""
    for token in _TOKEN.findall(text):
        depth += (token in "{[(") - (token in "}])")
        if depth < 0:
            break
        if token == "," and depth == 0:
            items.append(item.strip())
            item = ""
        else:
            item += token
    if depth:
        raise SettingError(f"the brackets in {text!r} do not match")
    return [*items, item.strip()]


def _build(item: str, known: Mapping[str, type[Pass]]) -> Pass:
    match = re.fullmatch(r"\s*([\w\-]+)\s*(?:\{(.*)\})?\s*", item, re.DOTALL)
    if match is None:
        raise SettingError(f"cannot read {item!r}", hint="write name{key=value,key=value}")
    name, body = match.groups()
    if name not in known:
        raise _unknown("pass", name, list(known))
    pairs = [pair for pair in split_outside_brackets(body or "") if pair]
    settings = [_parse_setting(name, pair) for pair in pairs]
    for key, count in Counter(key for key, _ in settings).items():
        if count > 1:
            raise SettingError(f"{name}: the setting {key!r} is given {count} times")
    return make_pass(known[name], dict(settings))


def _parse_setting(name: str, pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise SettingError(f"{name}: cannot read {pair!r}", hint="write key=value")
    return key.strip(), _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if text.startswith("[") and text.endswith("]"):
        return tuple(_parse_value(item) for item in split_outside_brackets(text[1:-1]) if item)
    if _BARE.fullmatch(text):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise SettingError(f"cannot read the value {text!r}", hint="quote texts") from error


def _format_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{','.join(_format_value(item) for item in value)}]"
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return repr(value)


def _settings(cls: type[Pass]) -> list[dataclasses.Field[Any]]:
    if not dataclasses.is_dataclass(cls):
        return []
    return [field for field in dataclasses.fields(cls) if field.init]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, (tuple, list)) and all(_fits(item, args[0]) for item in value)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _kind(hint: Any) -> str:
    """What fits a type, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        words = [arg for arg in args if typing.get_origin(arg) is typing.Literal]
        choices = tuple(word for arg in words for word in typing.get_args(arg))
        others = [_kind(arg) for arg in args if arg not in words]
        return " or ".join([*others, _kind(typing.Literal[choices])] if choices else others)
    if hint is None or hint is type(None):
        return "none"
    return f"a {hint if args else getattr(hint, '__name__', hint)}"


def _unknown(kind: str, name: str, names: list[str]) -> SettingError:
    close = difflib.get_close_matches(name, names, n=1)
    known = ", ".join(sorted(names)) or "none"
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {known}"
    return SettingError(f"unknown {kind} {name!r}", hint=hint)
