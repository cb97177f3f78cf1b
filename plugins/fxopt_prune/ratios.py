"""Ratios of single layers, as settings write them: ``name=ratio``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fxopt.plugin import is_named


def parse_ratios(layers: Sequence[str]) -> dict[str, float]:
    """The ratios by pattern.

    Raises:
        ValueError: A text has another form, or a ratio is not from 0 to less than 1.
    """
    pairs = [text.rpartition("=") for text in layers]
    try:
        ratios = {name: float(ratio) for name, _, ratio in pairs}
    except ValueError as error:
        raise ValueError(f"layers={layers} must be texts such as layer4*=0.5") from error
    if not all(name and 0 <= ratio < 1 for name, ratio in ratios.items()):
        raise ValueError(f"layers={layers}: ratios must be at least 0 and less than 1")
    return ratios


def format_ratios(ratios: Mapping[str, float]) -> tuple[str, ...]:
    """The texts that :func:`parse_ratios` reads."""
    return tuple(f"{name}={ratio!r}" for name, ratio in ratios.items())


def own_ratio(names: Collection[str], ratios: Mapping[str, float]) -> float | None:
    """The first ratio whose pattern matches one of the names; None where none does."""
    for pattern, ratio in ratios.items():
        if any(is_named(name, [pattern]) for name in names):
            return ratio
    return None


def step_ratio(ratio: float, part: float) -> float:
    """What goes in a part of all steps, each of which takes the same share of what is left."""
    return float(1 - (1 - ratio) ** part)
