"""The worker process: ``python -m fxopt.pipeline.isolation.worker REQUESTS ANSWERS ALIVE``.

It reads requests from one pipe and writes answers to another. What runtimes print goes to its
standard output, which is a log file. It ends when the other end of a third pipe is gone, also in
the middle of a call that does not return.
"""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import importlib
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from fxopt.backends.scratch import use_scratch
from fxopt.pipeline.isolation.examine import Kept, Stage, examine, forget_program, time_kept
from fxopt.pipeline.isolation.folder import SCRATCH
from fxopt.pipeline.isolation.plugins import registry_with
from fxopt.pipeline.isolation.wire import Inbox, Message, receive, send
from fxopt.registry import Registry

# What loading a program imports; done before the first request, whose time is limited.
_NEEDED = ("torch._dynamo", "torch.fx.experimental.symbolic_shapes")


def main(arguments: Sequence[str]) -> None:
    """Answers requests until there are no more.

    Args:
        arguments: Numbers of the three pipes.
    """
    requests, answers, alive = map(int, arguments)
    for pipe in (requests, answers, alive):
        os.set_inheritable(pipe, False)  # else a compiler that is still running keeps them open
    _be_the_first_to_go()
    inbox = Inbox()
    greeting = receive(requests, inbox)
    if greeting is None:
        return
    try:
        registry = registry_with(greeting["plugins"])
        for name in _NEEDED:
            importlib.import_module(name)
        send(answers, {"ready": True})
        gc.freeze()  # what is imported stays, and need not be looked at again
        with use_scratch(Path(greeting["folder"]) / SCRATCH):
            _serve(partial(receive, requests, inbox), answers, alive, registry)
    except BrokenPipeError:
        pass  # the parent has gone in the meantime
    shutil.rmtree(greeting["folder"], ignore_errors=True)
    _end_group()


def _serve(
    next_request: Callable[[], Message | None], answers: int, alive: int, registry: Registry
) -> None:
    kept: Kept = {}

    def stage(what: str) -> None:
        send(answers, {"stage": what})

    while (request := next_request()) is not None:
        with _dying_with(alive):
            send(answers, {"result": _answer(request, registry, stage, kept)})
            if "forget" in request:
                gc.collect()  # nobody waits for it


def _answer(
    request: dict[str, Any], registry: Registry, stage: Stage, kept: Kept
) -> dict[str, Any]:
    """What comes of a request: a trial, a turn of what was kept, or to keep less."""
    if "program" in request:
        return dataclasses.asdict(examine(request, registry, stage, kept))
    forget_program()  # the trials are over for now
    if "turn" in request:
        return dataclasses.asdict(time_kept(request, stage, kept))
    for key in request["forget"]:
        kept.pop(key, None)
    return {}


@contextmanager
def _dying_with(pipe: int) -> Iterator[None]:
    """Inside, the kernel ends this whole process group as soon as the pipe's other end closes.

    No thread could do that while a runtime holds the interpreter's lock. Nothing is ever written
    to that pipe, so that the signal has no other cause: one for a request that was just read may
    come later than the request.
    """
    flags = fcntl.fcntl(pipe, fcntl.F_GETFL)
    asynchronous = getattr(os, "O_ASYNC", getattr(fcntl, "FASYNC", 0))
    with suppress(OSError):  # where pipes have no such signal, the end is noticed afterwards
        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(pipe, fcntl.F_SETFL, flags | asynchronous)
    if _is_closed(pipe):
        raise BrokenPipeError
    try:
        yield
    finally:
        fcntl.fcntl(pipe, fcntl.F_SETFL, flags)


def _is_closed(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _be_the_first_to_go() -> None:
    """Where memory runs out, Linux is to end this process and its compilers, not the caller's."""
    with suppress(OSError):  # other systems have no such file
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_group() -> None:
    """Ends also what runtimes have started and left behind."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
