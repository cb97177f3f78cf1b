"""Empty caches for each candidate, so that its build time is that of a first build."""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLES = {"FXOPT_CACHE_DIR": "fxopt", "TORCHINDUCTOR_CACHE_DIR": "inductor"}


def empty_caches(folder: Path) -> None:
    """Lets fxopt and Inductor start with nothing, in ``folder``.

    They stay there: code that is compiled later, when a candidate is called again, has to be
    found. What is compiled already goes on running.
    """
    from torch._inductor.utils import clear_caches

    for variable, name in _VARIABLES.items():
        (folder / name).mkdir(parents=True)
        os.environ[variable] = str(folder / name)
    clear_caches()
