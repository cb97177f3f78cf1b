"""What is compared at other batch sizes before it is kept, and what on its first use there."""

import contextlib
import copy
from dataclasses import dataclass, field

import pytest
import torch

from fxopt.cost import find_target
from fxopt.emit import emit
from fxopt.pipeline.assignment import whole
from fxopt.pipeline.compare import Comparison
from fxopt.pipeline.isolation.records import TrialResult
from fxopt.pipeline.lowering import exact_version
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.first_use import compare_on_first_use
from fxopt.pipeline.lowering.sizes import wrong_elsewhere
from fxopt.plugin import Backend, BackendInfo, Executable, Lowering
from tests.building import image, small_cnn

CPU = find_target("cpu")


@dataclass(frozen=True)
class Runtime(Backend):
    """Off by a factor at any batch size but two."""

    off: float = 1.0

    info = BackendInfo("runtime", ("cpu",))

    def lower(self, program, inputs, target):
        runtime = self

        class Code(Executable):
            def __init__(self, factor):
                self.factor = factor

            def __call__(self, *inputs):
                with torch.no_grad():
                    return tuple(self.factor * each for each in program.module(*inputs))

        class Lowered(Lowering):
            def compile(self, inputs):
                return Code(1.0 if len(inputs[0]) == 2 else runtime.off)

        return Lowered()


class SlowRuntime(Runtime):
    info = BackendInfo("slow", ("cpu",), builds_slowly=True)


@dataclass
class Worker:
    error: float = 0.0
    trials: list = field(default_factory=list)

    @contextlib.contextmanager
    def pack(self, *what):
        yield None

    def trial(self, parcel, assignment, target, *, which, **options):
        self.trials.append(list(which))
        return TrialResult("ran", errors=tuple(Comparison(self.error, "") for _ in which))


@dataclass
class Job:
    isolation: Worker | None = field(default_factory=Worker)
    examples: tuple = ((), ())
    seconds_left: float = 20.0
    target: object = None


def candidate(backend):
    return Candidate(exact_version(small_cnn(), [[], []]), whole(backend))


@pytest.mark.parametrize(("error", "wrong"), [(0.0, None), (1.0, "at another batch size: output")])
def test_one_that_builds_fast_is_compared_in_the_worker(error, wrong):
    job = Job(Worker(error))
    found = wrong_elsewhere(candidate(Runtime()), job)
    assert found is None if wrong is None else found.startswith(wrong)
    assert job.isolation.trials == [[1]]


@pytest.mark.parametrize(("backend", "examples"), [(SlowRuntime(), ((), ())), (Runtime(), ((),))])
def test_nothing_is_compared_of_what_builds_slowly_or_without_other_sizes(backend, examples):
    job = Job(Worker(1.0), examples)
    assert wrong_elsewhere(candidate(backend), job) is None
    assert not job.isolation.trials


def test_what_was_right_in_its_trial_is_not_compared_again():
    job, one = Job(Worker(1.0)), candidate(Runtime())
    one.right_elsewhere = True
    assert wrong_elsewhere(one, job) is None
    assert not job.isolation.trials


@pytest.mark.parametrize(("off", "wrong"), [(1.0, False), (1.1, True)])
def test_without_a_worker_it_runs_here(off, wrong):
    program, sizes = small_cnn(), (2, 3)
    flat = [[image(size)] for size in sizes]
    version = exact_version(program, [program(image(size)) for size in sizes])
    one = Candidate(version, whole(Runtime(off)))
    one.module = emit(one.assignment.applied(program, CPU))
    found = wrong_elsewhere(one, Job(None, flat))
    assert (found is not None) is wrong


# -- on first use ----------------------------------------------------------------------------


def lowered(off):
    program = small_cnn()
    module = emit(whole(Runtime(off)).applied(program, CPU))
    compare_on_first_use(module, tolerance=1e-3)
    return program, module


def test_code_that_is_wrong_at_its_first_use_gives_way_to_torch():
    program, module = lowered(1.1)
    torch.testing.assert_close(module(image(2)), *program(image(2)))
    with pytest.warns(UserWarning, match=r"runtime for inputs of 3x\S+ is wrong") as told:
        outputs = [module(image(3)) for _ in range(3)]
    for output in outputs:
        torch.testing.assert_close(output, *program(image(3)))
    assert len(told) == 1
    assert "plain torch runs in its place" in str(told[0].message)


def test_a_copy_compares_too():
    program, module = lowered(1.1)
    with pytest.warns(UserWarning, match="is wrong"):
        found = copy.deepcopy(module)(image(3))
    torch.testing.assert_close(found, *program(image(3)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("off", [1.0, 1.0015])  # twice the tolerance: both may be off, either way
def test_code_that_is_right_stays(off):
    program, module = lowered(off)
    expected = off * program(image(3))[0]
    for _ in range(2):
        torch.testing.assert_close(module(image(3)), expected, rtol=1e-6, atol=1e-6)
