"""What a backend names for the case that it fails is tried then, and only then."""

from dataclasses import dataclass, replace

import pytest
import torch

import fxopt
import fxopt.api.workers as workers_module
from fxopt.pipeline.isolation import Isolation
from fxopt.plugin import BackendError, BackendInfo
from fxopt_inductor import Inductor
from tests.api.test_winner_tuned import Tunable
from tests.backends.support import needs_inductor
from tests.pipeline.bad_backends import Spared


def tried(fast):
    return {c.backend: c.reason for c in fast.report.regions[0].candidates}


@pytest.fixture(scope="module")
def isolation():
    with Isolation(plugins=("tests.pipeline.bad_backends",)) as made:
        made.warm_up()
        yield made


@pytest.fixture
def isolated(monkeypatch, plugins, isolation):
    plugins(backends=[Spared])
    monkeypatch.setenv("FXOPT_ISOLATION", "1")
    monkeypatch.setattr(workers_module, "shared_isolation", lambda: isolation)


@pytest.mark.parametrize("failure", ["raises", "is wrong", "crashes"])
def test_the_spare_of_what_failed_in_the_worker_may_win(
    model, large, isolated, monkeypatch, failure
):
    monkeypatch.setattr(Spared, "first", failure)
    fast = fxopt.optimize(model, (large,), backends=["spared"])
    found = tried(fast)
    assert found[f"spared that {failure}"]
    assert found["spared that is right"] == ""
    with torch.no_grad():
        assert (fast(large) - model(large)).abs().max() < 1e-4


def test_nothing_is_tried_in_the_place_of_what_works(model, large, isolated, monkeypatch):
    monkeypatch.setattr(Spared, "first", "is slow")
    assert "spared that is right" not in tried(fxopt.optimize(model, (large,), backends=["spared"]))


@dataclass(frozen=True)
class Fragile(Tunable):
    """Works once it is careful."""

    info = BackendInfo("fragile", ("cpu",))
    careful: bool = False

    @property
    def label(self):
        return "careful" if self.careful else "fragile"

    def tunings(self, program, inputs, target, milliseconds):
        return []

    def spare(self):
        return replace(self, careful=True)

    def lower(self, program, inputs, target):
        if not self.careful:
            raise BackendError("broken")
        return super().lower(program, inputs, target)


def test_the_spare_of_what_failed_in_this_process_may_win(model, large, plugins):
    plugins(backends=[Fragile])
    region = fxopt.optimize(model, (large,), backends=["fragile"]).report.regions[0]
    reasons = {c.backend: c.reason for c in region.candidates if c.backend != "torch"}
    assert reasons == {"fragile": "broken", "careful": ""}
    assert region.chosen.backend == "careful"


def test_a_backend_without_a_spare_fails_once(model, large, plugins):
    @dataclass(frozen=True)
    class Hopeless(Fragile):
        info = BackendInfo("hopeless", ("cpu",))

        def spare(self):
            return None

    plugins(backends=[Hopeless])
    assert "careful" not in tried(fxopt.optimize(model, (large,), backends=["hopeless"]))


@needs_inductor
def test_where_calls_cannot_be_compiled_they_stay_python(model, x, monkeypatch):
    compile_ = torch._inductor.compile

    def without_wrapper(*args, options, **kwargs):
        if options["cpp_wrapper"]:
            raise RuntimeError("no C++ for this operator")
        return compile_(*args, options=options, **kwargs)

    monkeypatch.setattr(torch._inductor, "compile", without_wrapper)
    found = tried(fxopt.optimize(model, (x,), backends=["inductor"]))
    assert "no C++ for this operator" in found["inductor c++"]
    assert found["inductor"] == ""


def test_python_is_what_is_left_where_c_plus_plus_fails():
    assert Inductor(cpp_wrapper=True, precision="bf16").spare() == Inductor(precision="bf16")
    assert Inductor().spare() is None
