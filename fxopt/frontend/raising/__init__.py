"""Raises ATen calls that hold learned parameters to standard `torch.nn` leaf modules."""

from fxopt.frontend.raising.driver import raise_graph

__all__ = ["raise_graph"]
