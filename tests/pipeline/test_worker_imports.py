"""An idle worker imports what the backends will need, and stops when it is asked for something."""

import os
import sys

import pytest

from fxopt.pipeline.isolation.imports import import_while_idle, wanted
from fxopt.registry import load_registry


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Two modules that import, and one between them that does not."""
    for name, text in (("first_one", ""), ("broken_one", "1 / 0"), ("last_one", "")):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield ["first_one", "broken_one", "no_such_one", "last_one"]
    for name in ("first_one", "last_one"):
        sys.modules.pop(name, None)


def imported():
    return [name for name in ("first_one", "broken_one", "last_one") if name in sys.modules]


def test_what_fails_to_import_is_passed_over(pipe, modules):
    import_while_idle(modules, pipe[0])
    assert imported() == ["first_one", "last_one"]


def test_a_request_stops_it(pipe, modules):
    os.write(pipe[1], b"something")
    import_while_idle(modules, pipe[0])
    assert imported() == []


def test_a_parent_that_is_gone_stops_it(modules):
    reading, writing = os.pipe()
    os.close(writing)
    import_while_idle(modules, reading)
    os.close(reading)
    assert imported() == []


def test_backends_say_what_they_need():
    names = list(wanted(load_registry()))
    assert {"torch._inductor.graph", "openvino", "onnxruntime"} <= set(names)
    assert len(names) == len(set(names))
