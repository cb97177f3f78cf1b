"""What all tests share."""

import copy
import functools
import math
import sys

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

import fxopt.api.parts
import fxopt.backends.pages
import fxopt.cost


def pytest_collection_modifyitems(items):
    """Files with slow tests begin, so that at the end no process waits for another's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def patches():
    """Made before any fixture of a module, and undone at the end."""
    with pytest.MonkeyPatch.context() as patches:
        yield patches


@pytest.fixture(scope="session", autouse=True)
def in_this_process(patches):
    """Backends are not tried in a worker first, but for the tests of just that: it costs time."""
    patches.setenv("FXOPT_ISOLATION", "0")


@pytest.fixture(scope="session", autouse=True)
def no_pauses(patches):
    """Latencies may be rough here; pauses and warm-ups before bursts are most of what they cost."""
    measuring = sys.modules[fxopt.cost.measure.__module__]
    patches.setattr(measuring, "_PAUSE_SECONDS", 0.0)
    patches.setattr(measuring, "_WARM_UP_MS", 0.0)


@pytest.fixture(scope="session", autouse=True)
def parts_stay(patches):
    """Whether parts pay is for the test of just that: those of tests are too small to."""
    patches.setattr(fxopt.api.parts, "_SLOWER", math.inf)


@pytest.fixture(scope="session", autouse=True)
def one_onnx_registry(patches):
    """torch parses the source of some 500 operators for each export, most of what one takes."""
    build = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(**settings):
        registry = copy.copy(build(**settings))
        registry.functions = {name: [*found] for name, found in registry.functions.items()}
        return registry  # exports register operators of their own

    patches.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))


@pytest.fixture(scope="session", autouse=True)
def cache_of_all(patches, tmp_path_factory):
    """The user's cache is not for tests, nor for fixtures of a module."""
    patches.setenv("FXOPT_CACHE_DIR", str(tmp_path_factory.mktemp("fxopt_cache")))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what one test measures from the others."""
    folder = tmp_path / "fxopt_cache"
    monkeypatch.setenv("FXOPT_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    """Nobody asks for large pages, but in the tests of just that: looking for them costs time."""
    monkeypatch.setattr(fxopt.backends.pages, "_anonymous", list)
