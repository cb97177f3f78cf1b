"""Large pages: for what was allocated inside and is in use, with its contents as they were."""

import mmap
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxopt.backends import LoweredModule, pages
from fxopt.backends.pages import _added, large_pages
from fxopt.backends.smaps import Mapping
from fxopt.frontend import capture_program
from fxopt.plugin import Target
from fxopt_eager import Eager

SIZE = 32 << 20
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = pytest.mark.skipif(
    not _SETTING.exists() or "[never]" in _SETTING.read_text(), reason="no large pages here"
)


@pytest.fixture(autouse=True)
def small_pages():
    """Large ones are asked for here."""


def private():
    return mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def used(memory):
    memory.write(b"\x5a" * SIZE)
    return memory


def figure(name, memory):
    """Kilobytes of a kind in the mapping that holds ``memory``."""
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            within = low <= address < high
        elif within and first == f"{name}:":
            return int(line.split()[1])
    raise AssertionError("the memory is not mapped")


def test_what_is_allocated_inside_is_enlarged_and_holds_what_it_held():
    with large_pages():
        memory = used(private())
    assert figure("AnonHugePages", memory) >= SIZE // 2 >> 10
    memory.seek(0)
    assert memory.read() == b"\x5a" * SIZE


def mapped(start, end, resident):
    return Mapping(start, end, "rw-p", "", resident)


@pytest.mark.parametrize(
    ("before", "resident", "added"),
    [
        ([], 90, [(100, 200)]),
        ([], 70, []),  # most of it is only reserved
        ([(100, 200, 100)], 100, []),
        ([(100, 160, 60)], 95, [(160, 200)]),  # it grew
        ([(140, 200, 0)], 40, [(100, 140)]),  # downwards
        ([(120, 130, 10), (150, 190, 40)], 100, [(100, 120), (130, 150), (190, 200)]),  # joined
        ([(120, 130, 10), (150, 190, 40)], 80, []),
        ([(10, 90, 80), (300, 400, 100)], 90, [(100, 200)]),  # elsewhere
    ],
)
def test_what_was_there_before_is_no_part_of_it(before, resident, added):
    assert _added(mapped(100, 200, resident), [mapped(*each) for each in before]) == added


def test_what_is_reserved_is_not_filled():
    with large_pages():
        memory = private()
    assert figure("Rss", memory) < SIZE // 2 >> 10


def test_an_error_inside_goes_through():
    with pytest.raises(ValueError, match="mine"), large_pages():
        raise ValueError("mine")


@pytest.mark.skipif(
    _SETTING.exists() and "[always]" in _SETTING.read_text(), reason="all memory has large pages"
)
def test_other_systems_and_kernels_are_left_alone(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        with large_pages():
            memory = used(private())
    monkeypatch.setattr("fxopt.backends.pages._anonymous", list)
    with large_pages():
        other = used(private())
    assert figure("AnonHugePages", memory) == figure("AnonHugePages", other) == 0


@pytest.mark.parametrize(("many_bytes", "asked"), [(0, [3]), (1 << 20, [4, 3])])
def test_lowered_code_asks_for_them_where_they_pay(monkeypatch, many_bytes, asked):
    entered = []
    monkeypatch.setattr(pages, "large_pages", lambda: entered.append(len(batch)) or large_pages())
    monkeypatch.setattr(pages, "_MANY_BYTES", many_bytes)
    monkeypatch.setattr(pages, "_MANY_USES", 3.5)  # a row of the batch uses each weight once
    x = torch.randn(4, 3)
    program = capture_program(nn.Linear(3, 3, bias=False), (x,), {})
    target = Target("cpu", torch.device("cpu"), 1)
    lowered = LoweredModule(program, Eager(), target)
    for batch in (x, x, torch.randn(3, 3)):
        torch.testing.assert_close(lowered(batch)[0], program(batch)[0])
    assert entered == asked


def test_so_does_what_is_prepared_for_it(monkeypatch):
    """Its weights may be packed then."""
    entered = []
    monkeypatch.setattr(pages, "large_pages", lambda: entered.append("asked") or large_pages())
    x = torch.randn(4, 3)
    program = capture_program(nn.Linear(3, 3, bias=False), (x,), {})
    LoweredModule(program, Eager(), Target("cpu", torch.device("cpu"), 1)).prepare(x)
    assert entered == ["asked"]
