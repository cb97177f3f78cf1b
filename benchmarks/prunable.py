"""How much of a model zoo can lose channels, and whether the right slices go.

Usage:
    python benchmarks/prunable.py                               torchvision, float64
    python benchmarks/prunable.py --only 'swin*,shufflenet*' --out prunable.json

Each model is pruned structurally at 30 % with the default settings, and runs at two batch sizes.
The strong check: without random units of all groups where zeros do the same, it computes what the
model computes with zeros in their place. Of detection models it is their backbones. Results are
kept in --out, from where a run goes on.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage import LARGEST, Inputs, torchvision_zoo
from tabulate import tabulate
from torch import nn

from fxopt.cost import find_target
from fxopt.errors import FxoptError
from fxopt.frontend import capture_program, with_batch
from fxopt.frontend.comparing import relative_error
from fxopt.ir import Program
from fxopt.passes import Context
from fxopt_prune import Prune
from fxopt_prune.channels import Structure, find_groups
from fxopt_prune.shrink import remove, zeroed

HEADERS = ("model", "groups", "units", "weights gone %", "batches", "error", "seconds", "remark")


@dataclass
class Row:
    """What is reported of one model.

    Attributes:
        name: The model.
        groups: How many groups of units can be removed.
        units: How many units they have.
        gone: The share of the weights that default pruning removes, in percent.
        batches: How many batch sizes the pruned program ran at.
        error: The largest relative error of the strong check; None where outputs are not finite.
        seconds: Of finding and removing, without capture.
        remark: Barriers, or what failed.
    """

    name: str
    groups: int = 0
    units: int = 0
    gone: float = 0.0
    batches: int = 0
    error: float | None = None
    seconds: float = 0.0
    remark: str = ""


def check(name: str, model: nn.Module, inputs: Inputs) -> Row:
    """Prunes a model by default, then compares a random removal with zeros."""
    program = capture_program(model.eval(), *inputs)
    calls = [inputs, with_batch(inputs, 3)] if program.signature.batch else [inputs]
    flat = [program.signature.flatten(*call) for call in calls]
    row = Row(name)
    start = time.perf_counter()
    pruned = program.clone()
    Prune().run(pruned, Context(find_target("cpu")))
    row.seconds = round(time.perf_counter() - start, 1)
    row.gone = round(100 * (1 - pruned.weight_bytes() / program.weight_bytes()), 1)
    row.batches = sum(_runs(pruned, each) for each in flat)
    del pruned  # the largest models need what memory there is
    structure = find_groups(program)
    row.groups, row.units = len(structure.groups), sum(map(len, structure.groups))
    row.error = _strong_check(program, structure, flat)
    counts = Counter(reason.partition(":")[0] for reason in structure.barriers.values())
    row.remark = "; ".join(f"{count} x {reason}" for reason, count in counts.items())
    return row


def _runs(program: Program, flat: Sequence[Any]) -> bool:
    with torch.no_grad():
        outputs = program(*flat)
    return all(bool(y.isfinite().all()) for y in outputs if isinstance(y, torch.Tensor))


def _strong_check(
    program: Program, structure: Structure, flat: list[Sequence[Any]]
) -> float | None:
    random = np.random.default_rng(0)
    units: list[int] = []
    for group in structure.groups:
        if group.exact:
            units += random.choice(group.units, int(0.3 * len(group)), replace=False).tolist()
    twin, smaller = zeroed(program, structure, units), program.clone()
    edit = smaller.edit()
    with edit:
        remove(smaller, edit, find_groups(smaller), units, "random units")
    with torch.no_grad():
        pairs = [pair for each in flat for pair in zip(smaller(*each), twin(*each), strict=True)]
    if not all(bool(expected.isfinite().all()) for _, expected in pairs):
        return None
    return max(relative_error(actual, expected) for actual, expected in pairs)


_TINY = 1e-3


def cases(
    dtype: torch.dtype, largest: int
) -> Iterator[tuple[str, Callable[[], tuple[nn.Module, Inputs]]]]:
    """All models of torchvision; of detection models the backbones."""
    from torchvision.models import get_model_builder

    single = dict(torchvision_zoo(torch.float32, largest))
    suffix = "" if dtype == torch.float64 else ", float32"
    for name, build in torchvision_zoo(dtype, largest):
        kind = get_model_builder(name).__module__.split(".")[2]
        if kind == "detection":
            yield f"{name}, backbone", lambda build=build: _backbone(build, dtype)  # type: ignore[misc]
        elif kind == "optical_flow":  # of which parts are always in float32
            yield f"{name}, float32", lambda name=name: _with_outputs(*single[name]())  # type: ignore[misc]
        else:
            yield f"{name}{suffix}", lambda build=build: _with_outputs(*build())  # type: ignore[misc]


def _backbone(build: Any, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
    model, _ = build()
    return model.backbone, ((torch.randn(1, 3, 320, 352, dtype=dtype),), {})


def _with_outputs(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Some weights of fresh models are zero or nearly so, and would hide all errors."""
    for parameter in model.parameters():
        if parameter.abs().max() < _TINY:
            nn.init.normal_(parameter, std=0.1)
    return model, inputs


def run(patterns: list[str], out: Path | None, dtype: torch.dtype, largest: int) -> list[Row]:
    """Checks every case that the results file does not hold yet, and keeps the file current."""
    rows = [Row(**row) for row in json.loads(out.read_text())] if out and out.exists() else []
    done = {row.name for row in rows}
    for name, build in cases(dtype, largest):
        if name in done or not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            continue
        torch.manual_seed(0)
        try:
            rows.append(check(name, *build()))
        except (FxoptError, RuntimeError, TypeError, ValueError, LookupError) as error:
            text = str(error).splitlines()[0][:100]
            rows.append(Row(name, remark=f"FAILED: {type(error).__name__}: {text}"))
        print(f"  {rows[-1]}", file=sys.stderr, flush=True)
        if out:
            out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        gc.collect()
    return rows


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="*", help="shell patterns of names, with commas between")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--largest", type=int, default=LARGEST, help="parameters of a model")
    parser.add_argument("--out", type=Path, help="JSON of results; models in it are skipped")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = run(options.only.split(","), options.out, getattr(torch, options.dtype), options.largest)
    cells = [list(asdict(row).values()) for row in rows]
    print(tabulate(cells, headers=HEADERS, tablefmt="github", floatfmt=".2g"))


if __name__ == "__main__":
    main()
