"""Removes units of a program: weights get smaller, layers and sizes follow."""

from fxopt_prune.shrink.dead import zero_units
from fxopt_prune.shrink.shrink import remove
from fxopt_prune.shrink.zeros import zeroed

__all__ = ["remove", "zero_units", "zeroed"]
