"""Inductor's first step is taken ahead of its second one, and both give what one would."""

import json

import pytest
import torch
from torch import nn

from fxopt.backends.scratch import find_files, keep_files, use_scratch
from fxopt.cost import find_target
from fxopt.errors import BackendError
from fxopt.frontend import capture_program
from fxopt_inductor import Inductor, backend
from fxopt_inductor.deferred import Deferred
from fxopt_inductor.flat import flat_module
from fxopt_inductor.linear_kernels import faster_as_convolutions

CPU = find_target("cpu")
pytestmark = pytest.mark.skipif(Inductor().unavailable() is not None, reason="no toolchain")


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def steps(monkeypatch):
    """What is done of each way to compile."""
    taken = []
    finish, whole = Deferred.finish, torch._inductor.compile

    def finished(self):
        taken.append("second step")
        return finish(self)

    def compiled(*arguments, **options):
        taken.append("all at once")
        return whole(*arguments, **options)

    monkeypatch.setattr(Deferred, "finish", finished)
    monkeypatch.setattr(torch._inductor, "compile", compiled)
    return taken


@pytest.fixture
def lowering():
    x = torch.randn(4, 3, 8, 8)
    program = capture_program(net(), (x,), {})

    def make(**settings):
        return Inductor(**settings).lower(program, (x,), CPU), program, x

    return make


@pytest.mark.parametrize("cpp_wrapper", [False, True], ids=["python", "c++"])
def test_two_steps_give_the_same_as_one(lowering, steps, cpp_wrapper):
    code, program, x = lowering(cpp_wrapper=cpp_wrapper)
    at_once = code.compile((x,))
    code.prepare((x,))
    in_steps = code.compile((x,))
    assert steps == ["all at once", "second step"]
    with torch.no_grad():
        expected = program(x)[0]
        torch.testing.assert_close(in_steps(x)[0], expected)
        assert torch.equal(in_steps(x)[0], at_once(x)[0])
    assert in_steps.kernels() == at_once.kernels() != ()
    assert in_steps.precisions() == at_once.precisions()


def test_the_second_step_finds_the_code_of_another_compilation(lowering, steps):
    from torch._dynamo.utils import counters

    def found():
        return counters["inductor"]["fxgraph_cache_hit"]

    code, _, x = lowering()
    code.compile((x,))
    before = found()
    code.prepare((x,))
    assert found() == before
    code.compile((x,))
    assert steps == ["all at once", "second step"]
    assert found() == before + 1


def test_weights_stay_as_they_are(lowering):
    code, program, x = lowering()
    before = {name: tensor.clone() for name, tensor in program.module.state_dict().items()}
    code.prepare((x,))
    code.compile((x,))
    assert all(torch.equal(before[n], t) for n, t in program.module.state_dict().items())


def test_other_sizes_than_were_prepared_are_compiled_as_ever(lowering, steps):
    code, program, x = lowering()
    code.prepare((x,))
    fewer = code.compile((x[:2],))
    assert steps == ["all at once"]
    with torch.no_grad():
        torch.testing.assert_close(fewer(x[:2])[0], program(x[:2])[0])


def test_what_was_prepared_serves_once(lowering, steps):
    code, _, x = lowering()
    code.prepare((x,))
    code.compile((x,))
    code.compile((x,))
    assert steps == ["second step", "all at once"]


def test_where_the_second_step_fails_all_is_compiled(lowering, steps, monkeypatch):
    code, program, x = lowering()
    code.prepare((x,))

    def fails(self):
        raise RuntimeError("another torch")

    monkeypatch.setattr(Deferred, "finish", fails)
    with pytest.warns(UserWarning, match="compiled anew.*another torch"):
        executable = code.compile((x,))
    assert steps == ["all at once"]
    with torch.no_grad():
        torch.testing.assert_close(executable(x)[0], program(x)[0])


def test_code_is_not_called_before_it_is_made(lowering):
    _, program, x = lowering()
    with torch.no_grad():
        put_off = Deferred(flat_module(program, (x,)), [x], {"freezing": True})
        with pytest.raises(RuntimeError, match="before its code is made"):
            put_off._compiled(x)


def test_what_a_worker_measures_is_waited_for(tmp_path, monkeypatch):
    x = torch.randn(64, 96)
    program = capture_program(nn.Linear(96, 48).eval(), (x,), {})
    module = flat_module(program, (x,))
    code = Inductor().lower(program, (x,), CPU)
    with use_scratch(tmp_path):
        assert faster_as_convolutions(module, patience=0.0) is None
        measured = faster_as_convolutions(module)
        assert faster_as_convolutions(module, patience=0.0) == measured
        (kept,) = tmp_path.glob("*/ratios.json")
        kept.write_text(json.dumps([0.1]))
        assert len(faster_as_convolutions(module, patience=0.0)) == 1
        kept.unlink()
        kept.parent.rmdir()
        monkeypatch.setattr(backend, "_PATIENCE", 0.0)
        with pytest.raises(BackendError, match="still being measured"):
            code.prepare((x,))
        keep_files("inductor-linears-of-others", lambda folder: None)
        with pytest.raises(BackendError, match="not known"):
            code.prepare((x,))


def test_files_are_found_that_another_has_left(tmp_path):
    with use_scratch(tmp_path):
        assert find_files("key") is None
        kept = keep_files("key", lambda folder: (folder / "file").touch())
        assert find_files("key") == kept == tmp_path / "key"
    assert find_files("key") is None
