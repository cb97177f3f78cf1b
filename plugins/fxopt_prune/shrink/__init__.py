"""Removes units of a program: weights get smaller, layers and sizes follow."""

from fxopt_prune.shrink.dead import may_be_zero, spread_over_rows, zero_units
from fxopt_prune.shrink.shrink import remove
from fxopt_prune.shrink.zeros import zeroed

__all__ = ["may_be_zero", "remove", "spread_over_rows", "zero_units", "zeroed"]
