"""Keeps from the terminal and the machine what is not measured."""

from __future__ import annotations

import logging
import os
import warnings


def quiet() -> None:
    """Turns off warnings, logs, and processes beside this one.

    OpenVINO's converter reports on its use from a process of its own each time, which in a spawned
    process imports torch before it does so; it does not where it takes itself to be in CI.
    """
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["CI"] = "true"
