"""fxopt's own rows: exact, bf16 and int8, with all backends or with torch's alone."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import torch
from rivals import Inputs
from rows import OWN, TORCH_ONLY
from torch import nn

import fxopt
from fxopt.cost import find_target
from fxopt.registry import default_registry

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"passes": "cleanup,fold_bn", "max_drift": 0.05},
    "int8": {"passes": "cleanup,fold_bn,quantize"},
}
_DYNAMIC = ",quantize_dynamic"  # after the static pass, which leaves recurrent layers in float

_TORCH_BACKENDS = ("eager", "inductor", "onednn")


def own_name(kind: str, precision: str) -> str:
    return kind if precision == "fp32" else f"{kind} {precision}"


class Own:
    """A call of the optimized model, and the report that came with it.

    Args:
        model: The user's model.
        inputs: What it is optimized for, and calibrated on as the rivals are.
        kind: ``fxopt`` or ``fxopt torch-only``.
        precision: ``fp32``, ``bf16`` or ``int8``.
        time_limit: As of :func:`fxopt.optimize`.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, kind: str, precision: str, time_limit: float | None
    ) -> None:
        assert kind in (OWN, TORCH_ONLY)
        settings = dict(SETTINGS[precision])
        if precision == "int8":
            settings["calibration"] = [inputs]
            if any(isinstance(layer, nn.RNNBase) for layer in model.modules()):
                settings["passes"] += _DYNAMIC
        if kind == TORCH_ONLY:
            settings["backends"] = torch_backends()
        self.inputs = inputs
        self.fast = fxopt.optimize(model, inputs, progress=_log, time_limit=time_limit, **settings)
        print(self.fast.report, file=sys.stderr)

    def __call__(self) -> torch.Tensor:
        output: torch.Tensor = self.fast(*self.inputs)
        return output

    def report(self) -> dict[str, Any]:
        """What the tables need of the report, as plain data."""
        report = self.fast.report
        passes = [{"name": p.name, "status": p.status, "seconds": p.seconds} for p in report.passes]
        regions = [asdict(region) for region in report.regions]
        return {"seconds": report.seconds, "passes": passes, "regions": regions}


def torch_backends() -> list[str]:
    """The backends that need no package besides torch, of those that can be used here."""
    usable, _ = default_registry().available_backends(find_target("cpu"))
    names = {backend.info.name for backend in usable}
    return [name for name in _TORCH_BACKENDS if name in names]


def _log(line: str) -> None:
    print(f"    {line}", file=sys.stderr, flush=True)
