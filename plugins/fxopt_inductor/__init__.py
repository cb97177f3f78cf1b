"""The Inductor backend: torch's own compiler, with the weights frozen into the code."""

from collections.abc import Sequence

from fxopt.plugin import Backend, hookimpl
from fxopt_inductor.backend import Inductor

__all__ = ["Inductor"]


@hookimpl
def fxopt_backends() -> Sequence[type[Backend]]:
    """Offers :class:`Inductor`."""
    return [Inductor]
