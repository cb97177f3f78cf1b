"""What a winner names besides itself is tried too."""

import time
from dataclasses import dataclass, replace

import pytest

import fxopt
from fxopt.plugin import Backend, BackendError, BackendInfo
from tests.api.executables import Compile


@dataclass(frozen=True)
class Tunable(Backend):
    """Has a setting that is only worth a try once it has won."""

    info = BackendInfo("tunable", ("cpu",))
    tuned: bool = False
    wrong: bool = False

    @property
    def label(self):
        return "tunable" + " tuned" * self.tuned + " wrong" * self.wrong

    def tunings(self, program, inputs, target, milliseconds):
        return [replace(self, tuned=True), replace(self, tuned=True, wrong=True)]

    def lower(self, program, inputs, target):
        expected = {len(inputs[0]): program.module(*inputs)}

        def call(*given):  # faster than anything that computes
            if len(given[0]) not in expected:
                expected[len(given[0])] = program.module(*given)
            if not self.tuned:
                time.sleep(1e-4)
            return tuple(t * (1 + self.wrong) for t in expected[len(given[0])])

        return Compile(call)


@dataclass(frozen=True)
class Slow(Tunable):
    """Loses unless it is tuned, so nothing of its own asks for that."""

    def lower(self, program, inputs, target):
        if not self.tuned:
            raise BackendError("not like this")
        return super().lower(program, inputs, target)


def test_a_winner_is_tuned(model, large, plugins):
    plugins(backends=[Tunable])
    fast = fxopt.optimize(model, (large,), backends=["tunable"])
    region = fast.report.regions[0]
    tried = {c.backend: c for c in region.candidates}
    assert region.chosen.backend == "tunable tuned"
    assert tried["tunable"].milliseconds > region.chosen.milliseconds
    assert "output error" in tried["tunable tuned wrong"].reason


@pytest.mark.parametrize("on_offer", [True, False])
def test_what_a_winner_names_of_another_backend_is_tried_where_that_is_on_offer(
    model, large, plugins, on_offer
):
    @dataclass(frozen=True)
    class Preview(Tunable):
        info = BackendInfo("preview", ("cpu",))
        label = "preview"

        def tunings(self, program, inputs, target, milliseconds):
            return [Slow(tuned=True)]

    plugins(backends=[Preview, Slow])
    names = ["preview", "tunable"] if on_offer else ["preview"]
    region = fxopt.optimize(model, (large,), backends=names).report.regions[0]
    tried = {candidate.backend for candidate in region.candidates}
    assert region.chosen.backend == ("tunable tuned" if on_offer else "preview")
    assert ("tunable tuned" in tried) == on_offer


def test_a_backend_that_fails_to_say_what_else_to_try_may_still_win(model, large, plugins):
    @dataclass(frozen=True)
    class Speechless(Tunable):
        info = BackendInfo("speechless", ("cpu",))

        def tunings(self, program, inputs, target, milliseconds):
            raise RuntimeError("no idea")

    plugins(backends=[Speechless])
    lines = []
    fast = fxopt.optimize(model, (large,), backends=["speechless"], progress=lines.append)
    assert fast.report.regions[0].chosen.backend == "tunable"  # its label
    assert [line for line in lines if "cannot say what else to try: RuntimeError: no idea" in line]
