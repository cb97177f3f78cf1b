"""The public functions."""

from fxopt.api.entry import capture, optimize

__all__ = ["capture", "optimize"]
