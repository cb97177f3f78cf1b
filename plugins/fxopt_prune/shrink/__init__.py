"""Removes units of a program: weights get smaller, layers and sizes follow."""

from fxopt_prune.shrink.dead import may_be_zero, rows_to_run, zero_units
from fxopt_prune.shrink.shrink import remove
from fxopt_prune.shrink.zeros import zeroed

__all__ = ["may_be_zero", "remove", "rows_to_run", "zero_units", "zeroed"]
