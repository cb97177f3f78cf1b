"""The public functions."""

from fxopt.api.entry import capture, optimize
from fxopt.api.saving import load, save

__all__ = ["capture", "load", "optimize", "save"]
