"""The side of the caller: hands programs and backends to a worker, and outlives it."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fxopt.backends.scratch import use_scratch
from fxopt.cost import Target
from fxopt.errors import PluginError
from fxopt.ir import Program
from fxopt.ir.saving.values import UnsavableError
from fxopt.pipeline.assignment import Assignment
from fxopt.pipeline.isolation.folder import SCRATCH, LockedFolder
from fxopt.pipeline.isolation.parcel import Parcel, make_parcel
from fxopt.pipeline.isolation.plugins import registry_with
from fxopt.pipeline.isolation.process import WorkerDiedError, WorkerProcess
from fxopt.pipeline.isolation.records import (
    TrialResult,
    TurnResult,
    assignment_to_json,
    result_from_json,
    target_to_json,
    turn_from_json,
)

_FORGET_SECONDS = 60.0


class Isolation:
    """Tries backends in a worker process, which is started when it is first needed.

    The worker stays for later trials; one that died is replaced. It may be used from several
    threads, whose trials take turns. It ends with :meth:`close`, at interpreter exit, or when this
    process is gone, and its files with it.

    Args:
        plugins: Modules with plugins to know besides the installed ones, for tests and notebooks.
    """

    def __init__(self, plugins: Sequence[str] = ()) -> None:
        self._plugins = tuple(plugins)
        self._turn = threading.Lock()
        self._sharing = 0
        self._held = _Held()
        self._obstacle = _platform_obstacle()
        self._finalizer = weakref.finalize(self, _Held.release, self._held)

    def warm_up(self) -> None:
        """Starts the worker in the background, where it is not running yet."""
        if self._turn.acquire(blocking=False):
            try:
                known = self._held.process
                if (worker := self._worker()) is not known:
                    worker.give_way()
            except OSError:  # the first trial will say so
                pass
            finally:
                self._turn.release()

    @contextmanager
    def shared_files(self) -> Iterator[None]:
        """Lets backends keep files between the trials and builds within; they go afterwards."""
        try:
            folder = self._held.folder() / SCRATCH
        except OSError:
            yield
            return
        self._sharing += 1
        try:
            with use_scratch(folder):
                yield
        finally:
            self._sharing -= 1
            if not self._sharing:
                shutil.rmtree(folder, ignore_errors=True)

    def pack(
        self,
        program: Program,
        examples: Sequence[Sequence[Any]],
        reference: Sequence[Sequence[Any]],
    ) -> Parcel:
        """Writes what trials are about to files, once for all backends.

        Args:
            program: What to lower; it is not changed.
            examples: Flat inputs, for one or more batch sizes; the first are timed.
            reference: What the flat outputs should be.

        Returns:
            The parcel; its files go when it is left as a context manager, or with the isolation.
        """
        if self._obstacle:
            return Parcel(Path(), Path(), obstacle=self._obstacle)
        try:
            return make_parcel(self._held.folder(), program, examples, reference)
        except OSError as error:
            return Parcel(Path(), Path(), obstacle=str(error))

    def trial(
        self,
        parcel: Parcel,
        assignment: Assignment,
        target: Target,
        *,
        timeout: float,
        tolerance: float | None = None,
        which: Sequence[int] = (0,),
        timed: bool = True,
        also: Sequence[int] = (),
        within: float = math.inf,
        keep: str = "",
    ) -> TrialResult:
        """Builds, runs, compares and measures in the worker.

        Args:
            parcel: As of :meth:`pack`.
            assignment: Which backend takes what.
            target: What is lowered for.
            timeout: Seconds for it all; the start of a worker does not count.
            tolerance: Error beyond which there is nothing to measure or keep; None to do so anyway.
            which: Numbers of the examples to run; some backends compile for each.
            timed: Whether to measure, on the first one of those.
            also: Numbers of examples to run then, if it is fast, or was not measured.
            within: Milliseconds up to which it is.
            keep: A key under which the worker keeps what was right, for :meth:`turn`.

        Returns:
            What came of it. Nothing that a backend does is raised here.
        """
        if parcel.obstacle:
            return TrialResult("not isolated", parcel.obstacle)
        with self._turn:
            if self._obstacle:
                return TrialResult("not isolated", self._obstacle)
            try:
                request = self._request(parcel, assignment, target)
                request |= {"tolerance": tolerance, "which": list(which), "timed": timed}
                request |= {"also": list(also), "within": within}
                result = self._try(request | {"keep": keep}, timeout)
            except (UnsavableError, PluginError, ImportError, OSError) as error:
                return TrialResult("not isolated", str(error))
            if result.kept:
                self._held.kept.add(keep)
            return result

    def holds(self, key: str) -> bool:
        """Whether the worker still has what it kept under this key."""
        return key in self._held.kept

    def turn(self, key: str, target: Target, *, timeout: float, calls: int = 5) -> TurnResult:
        """Times what the worker has kept: a turn of a race, which others may have elsewhere.

        Args:
            key: Of a trial.
            target: As of that.
            timeout: Seconds, after which the worker is taken to hang.
            calls: How many are timed; of slow ones, fewer.

        Returns:
            The timings, or why there are none. Where the worker died, nothing is kept any more.
        """
        with self._turn:
            if not self.holds(key):
                return TurnResult(reason=f"{key} is lost", lost=True)
            request = self._environment(target) | {"turn": key, "calls": calls}
            try:
                return turn_from_json(self._ask(request, timeout))
            except WorkerDiedError as error:
                return TurnResult(reason=error.reason)
            except OSError as error:  # the worker is gone, and no other can be started
                return TurnResult(reason=str(error), lost=True)

    def forget(self, keys: Sequence[str]) -> None:
        """Lets go of what the worker has kept under these keys."""
        with self._turn, contextlib.suppress(WorkerDiedError, OSError):
            held = [key for key in keys if self.holds(key)]
            if held:
                self._held.kept.difference_update(held)
                self._ask({"forget": held}, _FORGET_SECONDS)

    def close(self) -> None:
        """Ends the worker, also in the middle of a trial, and removes all files."""
        if self._turn.acquire(blocking=False):
            try:
                self._held.release()
            finally:
                self._turn.release()
        elif self._held.process is not None:
            self._held.process.kill()  # whose trial it was will free the rest

    def __enter__(self) -> Isolation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- internals ---------------------------------------------------------------------------

    def _request(self, parcel: Parcel, assignment: Assignment, target: Target) -> dict[str, Any]:
        return {
            "program": str(parcel.program),
            "examples": str(parcel.examples),
            "imports": parcel.imports,
            "shares": assignment_to_json(assignment, _registry(self._plugins)),
            **self._environment(target),
        }

    def _environment(self, target: Target) -> dict[str, Any]:
        return {
            "target": target_to_json(target),
            "variables": dict(os.environ),
            "matmul_precision": torch.get_float32_matmul_precision(),
        }

    def _try(self, request: dict[str, Any], timeout: float) -> TrialResult:
        try:
            return result_from_json(self._ask(request, timeout))
        except WorkerDiedError as error:
            if error.started:
                return TrialResult("died", error.reason, log=error.log)
            self._obstacle = error.reason  # it would not start the next time either
            return TrialResult("not isolated", error.reason, log=error.log)

    def _ask(self, request: dict[str, Any], timeout: float) -> Any:
        worker = self._worker()
        try:
            return worker.ask(request, timeout)["result"]
        except BaseException:  # such as Ctrl-C: nobody would wait for the answer
            self._held.kept.clear()
            worker.end()
            raise

    def _worker(self) -> WorkerProcess:
        held = self._held
        held.forget_parent()
        if held.process is not None and not held.process.alive:
            held.process.end()
            held.process = None
        if held.process is None:
            held.kept.clear()
            held.process = WorkerProcess(held.folder(), self._plugins)
        return held.process


@functools.cache
def shared_isolation(second: bool = False) -> Isolation:
    """The isolation whose worker serves all calls in a process, or another one beside it."""
    return Isolation()


_registry = functools.cache(registry_with)


class _Held:
    """What must not be left behind: a process and a folder of files."""

    def __init__(self) -> None:
        self.process: WorkerProcess | None = None
        self.kept: set[str] = set()
        self._folder: LockedFolder | None = None
        self._owner = os.getpid()

    def folder(self) -> Path:
        """The folder, made on first use."""
        self.forget_parent()
        if self._folder is None or not self._folder.path.exists():
            self._folder = LockedFolder()
        return self._folder.path

    def forget_parent(self) -> None:
        """In a fork of the process that began it: lets go of what belongs to that one."""
        if self._owner != os.getpid():
            self.process = self._folder = None
            self.kept = set()
            self._owner = os.getpid()

    def release(self) -> None:
        """Ends the process and removes the files."""
        if self._owner != os.getpid():
            return
        self.kept.clear()
        if self.process is not None:
            self.process.end()
            self.process = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


def _platform_obstacle() -> str:
    if os.name != "posix":
        return "backends are tried in a process of their own on POSIX systems alone"
    return "" if sys.executable else "it is not known which Python this is"
