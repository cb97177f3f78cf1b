"""A plugin whose backends do in their process whatever a native runtime may do there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from fxopt.plugin import Backend, BackendInfo, Executable, Kernel, Lowering, hookimpl


@dataclass(frozen=True)
class Runs(Executable):
    backend: Bad
    module: torch.fx.GraphModule

    def __call__(self, *inputs):
        with torch.no_grad():
            outputs = self.module(*inputs)
        if self.backend.what == "exits when it runs":
            os._exit(3)
        if self.backend.path and Path(self.backend.path).exists():
            self.backend.fail_late()
        if self.backend.what == "is slow":
            time.sleep(0.01)
        if self.backend.what == "is wrong":
            outputs = tuple(output * 1.5 for output in outputs)
        if self.backend.what == "is wrong at other sizes" and len(inputs[0]) != 2:
            outputs = tuple(output + 1 for output in outputs)
        if self.backend.what == "fails at other sizes" and len(inputs[0]) != 2:
            raise RuntimeError("no such size")
        if self.backend.what == "gives another shape":
            outputs = tuple(output[:1] for output in outputs)
        if self.backend.what == "writes to its input":
            inputs[0].add_(1)
        return outputs

    def kernels(self):
        return (Kernel("all", "Everything", f"f{self.backend.bits}"),)


@dataclass(frozen=True)
class Lowers(Lowering):
    backend: Bad
    program: object

    def prepare(self, inputs):
        if self.backend.what == "waits to be prepared":
            Path(self.backend.path, "prepared").touch()
        if self.backend.what == "cannot be prepared":
            raise RuntimeError("not yet")

    def compile(self, inputs):
        self.backend.act()
        return Runs(self.backend, self.program.module)


@dataclass(frozen=True)
class Bad(Backend):
    """Attributes: what: how it behaves; bits: a setting to hand over."""

    what: str = "is right"
    bits: Literal[16, 32] = 32
    path: str = ""
    setting: object = None
    info = BackendInfo(name="bad", targets=("cpu",))

    def unsupported(self, program, target):
        return "it does not like it" if self.what == "supports nothing" else None

    def lower(self, program, inputs, target):
        return Lowers(self, program)

    def act(self):
        getattr(self, self.what.replace(" ", "_"), lambda: None)()

    def fail_late(self):
        """What it does in calls after the trial: when its file is there."""
        if self.what == "exits later":
            os._exit(4)
        if self.what == "raises later":
            raise RuntimeError("out of handles")

    def crashes(self):
        print("about to read address 0", file=sys.stderr, flush=True)
        ctypes.string_at(0)

    def calls_exit(self):
        sys.exit("enough")

    def raises(self):
        raise RuntimeError("no such kernel\nsecond line")

    def hangs_with_the_lock(self):
        """As native code does that never gives the interpreter back."""
        Path(self.path).write_text(str(os.getpid()))
        ctypes.PyDLL(None).pause()

    def hangs_with_children(self):
        child = subprocess.Popen(["sleep", "1000"])
        Path(self.path).write_text(str(child.pid))
        time.sleep(1000)

    def hangs(self):
        time.sleep(1000)

    def prints(self):
        for descriptor in (1, 2):
            os.write(descriptor, b"\x00garbage\xff\n" * 20000)
        os.system("echo from a shell")

    def meets(self):
        """Goes on once another one has come to the same folder."""
        Path(self.path, str(self.bits)).touch()
        self.waits_for_two()

    def is_counted(self):
        Path(self.path, str(os.getpid())).touch()

    def waits_for_two(self):
        end = time.monotonic() + 20
        while len(list(Path(self.path).iterdir())) < 2:
            if time.monotonic() > end:
                raise RuntimeError("alone")
            time.sleep(0.01)

    def waits_to_be_prepared(self):
        end = time.monotonic() + 20
        while not Path(self.path, "prepared").exists():
            if time.monotonic() > end:
                raise RuntimeError("nobody prepares")
            time.sleep(0.01)

    def counts_threads(self):
        raise RuntimeError(f"{torch.get_num_threads()} threads")

    def tells_a_variable(self):
        raise RuntimeError(f"{self.path} is {os.environ.get(self.path)}")


@dataclass(frozen=True)
class Fleet(Bad):
    """Offers all kinds of behaviour as variants, one of them right."""

    info = BackendInfo(name="fleet", targets=("cpu",))

    @property
    def label(self):
        return f"fleet that {self.what}"

    def variants(self, program, target, exact):
        return [Fleet(what) for what in ("crashes", "hangs", "raises", "is wrong", "is right")]


@dataclass(frozen=True)
class Spared(Bad):
    """Has a right one in the place of what fails.

    Attributes:
        first: What its only variant does; set by tests.
    """

    first: ClassVar[str] = "is right"
    info = BackendInfo(name="spared", targets=("cpu",))

    @property
    def label(self):
        return f"spared that {self.what}"

    def variants(self, program, target, exact):
        return [Spared(self.first)]

    def spare(self):
        return Spared("is right")


@dataclass(frozen=True)
class Named(Bad):
    """Goes by its behaviour in reports."""

    info = BackendInfo(name="named", targets=("cpu",))

    @property
    def label(self):
        return self.what


@dataclass(frozen=True)
class Slow(Bad):
    """Takes its time to build."""

    info = BackendInfo(name="slow", targets=("cpu",), builds_slowly=True)


@hookimpl
def fxopt_backends():
    return [Bad, Fleet, Named, Slow, Spared]
