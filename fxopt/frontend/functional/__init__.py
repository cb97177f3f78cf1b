"""Makes a graph functional: no operation writes to its arguments."""

from fxopt.frontend.functional.rewrite import functionalize

__all__ = ["functionalize"]
