"""When candidates are compared at other batch sizes: those that build slowly, while they build."""

import contextlib
import threading
from dataclasses import dataclass, field

import pytest

from fxopt.pipeline.assignment import whole
from fxopt.pipeline.compare import Comparison
from fxopt.pipeline.isolation.records import TrialResult
from fxopt.pipeline.lowering import exact_version
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.sizes import OtherSizes
from fxopt.plugin import Backend, BackendInfo
from tests.building import small_cnn

PATIENCE = 20.0


class Runtime(Backend):
    info = BackendInfo("runtime", ("cpu",))

    def lower(self, program, inputs, target):
        raise AssertionError("must not be called")


class SlowRuntime(Runtime):
    info = BackendInfo("slow", ("cpu",), builds_slowly=True)


class Worker:
    """Answers a trial once it is told to, or closed."""

    def __init__(self, error=0.0):
        self.error = error
        self.begun, self.go = threading.Event(), threading.Event()
        self.trials, self.closed = 0, False

    @contextlib.contextmanager
    def pack(self, *what):
        yield None

    def trial(self, parcel, assignment, target, *, which, **options):
        self.trials += 1
        self.begun.set()
        assert self.go.wait(PATIENCE)
        if self.closed:
            return TrialResult("died", "its worker was ended")
        return TrialResult("ran", errors=tuple(Comparison(self.error, "") for _ in which))

    def close(self):
        self.closed = True
        self.go.set()


@dataclass
class Job:
    isolation: Worker = field(default_factory=Worker)
    examples: tuple = ((), ())
    seconds_left: float = PATIENCE
    target: object = None


def candidate(backend):
    return Candidate(exact_version(small_cnn(), [[], []]), whole(backend))


@pytest.mark.parametrize(("error", "wrong"), [(0.0, None), (1.0, "at another batch size: output")])
def test_one_that_builds_slowly_is_compared_meanwhile(error, wrong):
    job, slow = Job(Worker(error)), candidate(SlowRuntime())
    sizes = OtherSizes(job)
    with sizes.compared_meanwhile(slow):
        assert job.isolation.begun.wait(PATIENCE)  # the trial runs during the block
        job.isolation.go.set()
    found = sizes.wrong(slow)
    assert found is None if wrong is None else found.startswith(wrong)
    assert job.isolation.trials == 1


def test_one_that_builds_fast_is_compared_when_asked_for():
    job, fast = Job(), candidate(Runtime())
    sizes = OtherSizes(job)
    with sizes.compared_meanwhile(fast):
        assert not job.isolation.trials
    job.isolation.go.set()
    assert sizes.wrong(fast) is None
    assert job.isolation.trials == 1


def test_without_other_sizes_nothing_is_compared():
    job, slow = Job(examples=((),)), candidate(SlowRuntime())
    sizes = OtherSizes(job)
    with sizes.compared_meanwhile(slow):
        pass
    assert sizes.wrong(slow) is None
    assert not job.isolation.trials


def test_an_interrupt_while_building_ends_the_worker():
    job = Job()

    def interrupted():
        with OtherSizes(job).compared_meanwhile(candidate(SlowRuntime())):
            assert job.isolation.begun.wait(PATIENCE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert job.isolation.closed
