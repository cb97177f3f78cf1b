"""The public functions."""

from fxopt.api.optimize import capture, optimize

__all__ = ["capture", "optimize"]
