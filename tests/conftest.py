"""What all tests share."""

import math
import sys

import pytest

import fxopt.api.parts
import fxopt.cost


def pytest_collection_modifyitems(items):
    """Files with slow tests begin, so that at the end no process waits for another's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Backends are not tried in a worker first, but for the tests of just that: it costs time."""
    monkeypatch.setenv("FXOPT_ISOLATION", "0")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Latencies may be rough here, and the pauses between bursts are most of what they cost."""
    monkeypatch.setattr(sys.modules[fxopt.cost.measure.__module__], "_PAUSE_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def parts_stay(monkeypatch):
    """Whether parts pay is for the test of just that: those of tests are too small to."""
    monkeypatch.setattr(fxopt.api.parts, "_SLOWER", math.inf)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what one test measures from the others, and from the user's cache."""
    folder = tmp_path / "fxopt_cache"
    monkeypatch.setenv("FXOPT_CACHE_DIR", str(folder))
    return folder
