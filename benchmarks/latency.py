"""fxopt beside its rivals, all in one run: latency and output error in fp32, bf16 and int8.

Usage:
    python benchmarks/latency.py --batch 1,8 --torch-only --max-autotune --out study.json
    python benchmarks/latency.py --batch 8 --like 1 --torch-only --out study.json
    python benchmarks/latency.py resnet18 --precision int8 --rivals 'openvino*,onnxruntime*'
    python benchmarks/peak.py study.json                 adds the distance to the machine's limit
    python benchmarks/latency.py --render study.json     writes benchmarks/results/latency.md

Each model and batch size runs in a process of its own. With --out, one that the file has is
skipped (--redo runs it again), and the file is written after each, so that a study can go on later
and on another machine: what is judged are ratios within a case. With --like, rivals are not built
that the file has as failed or far behind at that batch size. All candidates of a model are built
first, then timed in turns in bursts, with a pause before each burst so that one rival's
spinning threads do not slow the next one. A rival that fails, or is not built within --limit
seconds, is a row with a remark.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from machine import describe_machine, letter, machine_text, revision
from quiet import quiet
from render import case_table, render, render_verdicts
from rows import PRECISIONS, Results, Row, load
from study import BUILDING, Options, far_behind, run, suited
from zoo import MODELS

PAGE = Path(__file__).parent / "results" / "latency.md"


def main() -> None:
    arguments = _arguments()
    if arguments.render:
        arguments.page.write_text(render(load(arguments.render)))
        print(f"wrote {arguments.page}")
        return
    quiet()
    arguments.revision = revision()  # of the files that are about to run, not of later ones
    results = _opened(arguments.out)
    arguments.machine = results.place(describe_machine())
    print(f"{letter(arguments.machine)}: {machine_text(results.machines[arguments.machine])}")
    for name in arguments.models:
        for batch in arguments.batch:
            _study(name, batch, arguments, results)
    print(f"\n{render_verdicts(results)}")


def _study(name: str, batch: int, arguments: argparse.Namespace, results: Results) -> None:
    options = replace(_options(arguments), left_out=_left_out(name, arguments, results))
    print(f"\n{name}, batch {batch}", flush=True)
    if not arguments.redo and results.has(name, batch, suited(name, options)):
        print("in the file already")
        return
    rows = _run_apart(name, batch, options)
    if not rows:
        print("its process crashed: no results")
        return
    where = {"revision": arguments.revision, "machine": arguments.machine}
    results.put([replace(row, **where) for row in rows], options.precisions)
    print(case_table(results.of(name, batch, arguments.machine)), flush=True)
    if arguments.out:
        results.save(arguments.out)


def _left_out(name: str, arguments: argparse.Namespace, results: Results) -> dict[str, str]:
    """The rivals that an earlier run of the same model, at the size of --like, gives no chance."""
    known = results.of(name, arguments.like) if arguments.like is not None else []
    return far_behind(known) if known else {}


def _run_apart(name: str, batch: int, options: Options) -> list[Row]:
    """Runs one case in a process of its own: the next one finds nothing compiled or kept.

    A candidate that crashes the process while it is built is left out, and the case begun anew.
    """
    rows, culprit = _run_once(name, batch, options)
    while culprit:
        print(f"{culprit} crashed the process; once more without it", flush=True)
        left_out = {**options.left_out, culprit: "crashed the process"}
        options = replace(options, left_out=left_out)
        rows, culprit = _run_once(name, batch, options)
    return rows


def _run_once(name: str, batch: int, options: Options) -> tuple[list[Row], str]:
    """The rows, or none and the name of what crashed the process while it was built."""
    spawn = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        try:
            with ProcessPoolExecutor(1, mp_context=spawn, initializer=quiet) as process:
                case = process.submit(_without_gradients, name, batch, options, Path(folder))
                return case.result(), ""
        except BrokenProcessPool:
            building = Path(folder) / BUILDING
            return [], building.read_text() if building.exists() else ""


def _without_gradients(name: str, batch: int, options: Options, folder: Path) -> list[Row]:
    with torch.no_grad():
        return run(name, batch, options, folder)


def _opened(path: Path | None) -> Results:
    """The results to go on with."""
    return Results() if path is None or not path.exists() else load(path)


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        precisions=tuple(arguments.precision),
        rivals=tuple(arguments.rivals),
        torch_only=arguments.torch_only,
        max_autotune=arguments.max_autotune,
        rounds=arguments.rounds,
        limit=arguments.limit,
        time_limit=arguments.time_limit,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="*", default=MODELS, help="names in the zoo; by default all of the study")
    add("--batch", type=_sizes, default=[1], help="batch sizes, such as 1,8")
    add("--precision", type=_precisions, default=list(PRECISIONS), help="such as fp32,int8")
    add("--rivals", type=_words, default=["*"], help="patterns of names, such as 'torch*,openvino'")
    add("--torch-only", action="store_true", help="add fxopt without optional runtimes")
    add("--max-autotune", action="store_true", help="add the rivals that tune for minutes")
    add(
        "--like",
        type=int,
        metavar="BATCH",
        help="only rivals that came near before at that size",
    )
    add("--rounds", type=int, default=8, help="turns of each candidate")
    add("--limit", type=float, default=600.0, help="seconds to build a rival; 0 is no limit")
    add("--time-limit", type=float, help="seconds given to fxopt.optimize")
    add("--out", type=Path, help="a JSON file of results to write, or to go on with")
    add("--redo", action="store_true", help="run again what the file has")
    add("--render", type=Path, metavar="JSON", help="only write the page from such a file")
    add("--page", type=Path, default=PAGE, help="where to write it")
    return parser.parse_args()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _sizes(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _precisions(text: str) -> list[str]:
    words = _words(text)
    unknown = set(words) - set(PRECISIONS)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {PRECISIONS}")
    return words


if __name__ == "__main__":
    main()
