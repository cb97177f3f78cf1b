"""The eager backend: PyTorch's own kernels, one call a node; it takes every program."""

from collections.abc import Sequence

from fxopt.plugin import Backend, hookimpl
from fxopt_eager.backend import Eager

__all__ = ["Eager"]


@hookimpl
def fxopt_backends() -> Sequence[type[Backend]]:
    """Offers :class:`Eager`."""
    return [Eager]
