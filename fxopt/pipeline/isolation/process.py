"""One worker process, seen from outside: it is started, asked, and ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fxopt.pipeline.isolation import share
from fxopt.pipeline.isolation.wire import GarbageError, Inbox, Message, send

_START_SECONDS = 120.0
_TICK_SECONDS = 0.25
_LARGEST_LOG = 1 << 26
_QUOTED_LINES, _QUOTED_LETTERS = 20, 300

# The path of modules is set before anything is imported, so that no file in the current folder
# is taken for a module of the same name.
_BOOTSTRAP = """\
import sys
sys.path[:] = sys.argv[1].split("\\n")
from fxopt.pipeline.isolation.worker import main
main(sys.argv[2:])
"""


class WorkerDiedError(Exception):
    """The worker gave no answer: it crashed, was too slow, or could not be started.

    Attributes:
        reason: In words.
        log: The last lines that it printed.
        started: Whether it had ever been ready.
        stage: What it was at.
    """

    def __init__(self, reason: str, log: str, started: bool, stage: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log
        self.started = started
        self.stage = stage


class WorkerProcess:
    """A running worker.

    Args:
        folder: Where its log goes; it is removed by the worker if the parent process is killed.
        plugins: Modules with further plugins.

    Raises:
        OSError: No process can be started.
    """

    def __init__(self, folder: Path, plugins: Sequence[str]) -> None:
        self._log = folder / "log"
        self._inbox = Inbox()
        self._ready = self._ended = self._gives_way = False
        self._stage = "starting"
        theirs_in, self._requests = os.pipe()
        theirs_alive, self._alive = os.pipe()  # nothing is written: it closes with this process
        self._answers, theirs_out = os.pipe()
        theirs = (theirs_in, theirs_out, theirs_alive)
        try:
            self._process = _start(self._log, theirs)
        except OSError:
            self._close_pipes()
            raise
        finally:
            for pipe in theirs:
                os.close(pipe)
        with contextlib.suppress(OSError):  # it is gone already: the first request finds out why
            send(self._requests, {"plugins": list(plugins), "folder": str(folder)})

    def give_way(self) -> None:
        """Lets it start in what time others leave, until something is asked of it."""
        self._gives_way = True
        share.give_way(self._process.pid)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def ask(self, request: Message, timeout: float) -> Message:
        """Sends a request and waits for its answer; the start of the process does not count.

        Raises:
            WorkerDiedError: There is no answer. The process has been ended then.
        """
        if self._gives_way:
            share.share_equally(self._process.pid)
            self._gives_way = False
        if not self._ready:
            self._wait("ready", _START_SECONDS)
            self._ready = True
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._log, 0)
        self._stage = "taking the request"
        try:
            send(self._requests, request)
        except OSError:
            self._fail(self._death())
        return self._wait("result", timeout)

    def kill(self) -> None:
        """Kills the process, and whatever it has started; may be called from any thread."""
        if not self._ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kills it and frees what this process holds of it."""
        self.kill()
        if not self._ended:
            self._ended = True
            self._process.wait()
            self._close_pipes()

    def _wait(self, key: str, timeout: float) -> Message:
        end = time.monotonic() + timeout
        while True:
            message = self._next()
            if message is None:
                remaining = end - time.monotonic()
                if remaining <= 0:
                    self._fail(f"no answer after {timeout:g} s, while {self._stage}")
                self._read(min(remaining, _TICK_SECONDS))
            elif key in message:
                return message
            else:
                self._stage = str(message.get("stage", self._stage))

    def _next(self) -> Message | None:
        try:
            return self._inbox.next()
        except GarbageError as error:
            self._fail(f"its process wrote garbage while {self._stage}: {error}")

    def _read(self, seconds: float) -> None:
        """Takes what comes within that time.

        A process that ended is noticed even if one that it has started still holds its pipe.
        """
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if poll.poll(seconds * 1e3):
            data = os.read(self._answers, 1 << 16)
            self._inbox.feed(data)
            if not data:
                self._fail(self._death())
        elif not self.alive:
            self._fail(self._death())
        if self._log_size() > _LARGEST_LOG:
            os.truncate(self._log, 0)

    def _death(self) -> str:
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return f"its process closed the connection while {self._stage}"
        if code >= 0:
            return f"its process ended with exit code {code} while {self._stage}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        memory = " (out of memory?)" if name == "SIGKILL" else ""
        return f"its process died of {name} while {self._stage}{memory}"

    def _fail(self, reason: str) -> NoReturn:
        self.end()
        lines = self._last_lines()
        if lines:
            reason = f"{reason}; it printed last: {lines[-1][:_QUOTED_LETTERS]}"
        raise WorkerDiedError(reason, "\n".join(lines), self._ready, self._stage)

    def _last_lines(self) -> list[str]:
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, self._log_size() - (1 << 16)))
            lines = file.read().decode(errors="replace").splitlines()
            return [line.strip() for line in lines if line.strip()][-_QUOTED_LINES:]
        return []

    def _log_size(self) -> int:
        with contextlib.suppress(OSError):
            return self._log.stat().st_size
        return 0

    def _close_pipes(self) -> None:
        for pipe in (self._requests, self._answers, self._alive):
            os.close(pipe)


def _start(log: Path, pipes: tuple[int, ...]) -> subprocess.Popen[bytes]:
    path = "\n".join(entry or os.getcwd() for entry in sys.path)
    with log.open("ab") as output:  # appending, so that the log can be cut while it is written
        return subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, path, *map(str, pipes)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pipes,
            start_new_session=True,  # a group of its own, which Ctrl-C in the terminal spares
        )
