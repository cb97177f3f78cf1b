"""The backends that need nothing but torch: its compiler, and its int8 operators."""

from collections.abc import Sequence

from fxopt.plugin import Backend, hookimpl
from fxopt_inductor.backend import Inductor
from fxopt_inductor.onednn import OneDNN

__all__ = ["Inductor", "OneDNN"]


@hookimpl
def fxopt_backends() -> Sequence[type[Backend]]:
    """Offers :class:`Inductor` and :class:`OneDNN`."""
    return [Inductor, OneDNN]
