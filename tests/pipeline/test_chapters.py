"""What shrinks a network is judged after the training that makes up for it."""

import time
from dataclasses import dataclass

import pytest
import torch

from fxopt.passes import Exact, Lossy, Milder, Pass, PassInfo
from fxopt.pipeline.chapters import chapters
from tests.building import small_cnn
from tests.pipeline.support import Coarsen, ReluModules, SwapAdd, run, same_weights, weights

STEPS = [0.4, 0.2, 0.1, 0.05]


@dataclass(frozen=True)
class Shrink(Coarsen):
    """Costs quality; in this test by rounding."""

    step: float = 0.5
    info = PassInfo("shrink", "structure", Lossy())

    def milder(self, program, context):
        return Milder([type(self)(step) for step in STEPS if step < self.step])


@dataclass(frozen=True)
class Mend(Pass):
    """Brings weights nearer to those of the original, by a share of the way."""

    share: float = 0.9
    info = PassInfo("mend", "recover", Lossy())
    runs = []

    def run(self, program, context):
        self.runs.append(self.share)
        wanted = dict(context.original.module.named_parameters())
        with torch.no_grad(), program.edit() as edit, edit.together("mended") as permitted:
            for name, parameter in program.module.named_parameters() if permitted else ():
                parameter.lerp_(wanted[name], self.share)
        return edit.result()


@dataclass(frozen=True)
class Broken(Mend):
    info = PassInfo("broken", "recover", Lossy())

    def run(self, program, context):
        raise RuntimeError("no")


@pytest.fixture(autouse=True)
def mended():
    Mend.runs.clear()
    return Mend.runs


def drift_after(*passes):
    return run(passes, small_cnn()).records[-1].drift


def statuses(found):
    return {record.name: record.status for record in found.records}


def test_what_is_mended_is_judged_once_it_is():
    alone, both = drift_after(Shrink()), drift_after(Shrink(), Mend())
    assert both < 0.5 * alone
    found = run([Shrink(), Mend()], small_cnn(), max_drift=0.7 * alone)
    assert statuses(found) == {"shrink": "applied", "mend": "applied"}
    assert [record.drift for record in found.records] == pytest.approx([alone, both])
    assert Mend.runs[-1:] == [0.9]


def test_alone_it_is_judged_at_once():
    alone = drift_after(Shrink())
    found = run([Shrink(step=0.5)], small_cnn(), max_drift=0.5 * alone)
    assert found.records[0].text != "shrink"  # a milder setting


def test_less_is_shrunk_where_mending_is_not_enough(mended):
    limit = drift_after(Shrink(0.2), Mend()) * 1.3
    assert drift_after(Shrink(0.4), Mend()) > limit
    mended.clear()
    found = run([Shrink(), Mend(), SwapAdd()], small_cnn(), max_drift=limit)
    shrink = found.records[0]
    assert (shrink.status, shrink.text) == ("applied", "shrink{step=0.2}")
    assert "mend takes" in shrink.details["milder"]
    assert found.records[1].drift <= limit
    assert len(mended) <= 4  # each setting that is tried is mended
    expected = run([Shrink(0.2), Mend()], small_cnn()).program
    assert same_weights(found.program, weights(expected))


def test_where_nothing_is_enough_all_is_rolled_back():
    program = small_cnn()
    found = run([Shrink(), Mend(0.1), SwapAdd()], program, max_drift=1e-6)
    assert statuses(found)["shrink"] == statuses(found)["mend"] == "rolled back"
    assert "max_drift" in found.records[0].reason
    assert "with shrink" in found.records[1].reason
    assert same_weights(found.program, weights(program))


def test_a_pass_that_cannot_mend_leaves_the_verdict_to_the_one_before():
    alone = drift_after(Shrink())
    found = run([Shrink(), Broken()], small_cnn(), max_drift=2 * alone)
    assert statuses(found) == {"shrink": "applied", "broken": "rolled back"}
    found = run([Shrink(), Broken()], small_cnn(), max_drift=0.01 * alone)
    assert statuses(found) == {"shrink": "rolled back", "broken": "rolled back"}


def test_a_score_is_judged_then_too():
    program = small_cnn()
    wanted = dict(program.module.named_parameters())

    def evaluate(module):
        own = dict(module.named_parameters())
        pairs = [(own[name], tensor) for name, tensor in wanted.items() if name in own]
        return -max(float((one - other).detach().abs().max()) for one, other in pairs)

    found = run([Shrink(), Mend()], program, evaluate=evaluate, max_drop=0.1)
    assert statuses(found) == {"shrink": "applied", "mend": "applied"}
    found = run([Shrink(), Mend(0.1)], program, evaluate=evaluate, max_drop=0.02)
    assert found.records[0].text != "shrink" or found.records[0].status == "rolled back"


def names(passes):
    return [[item.info.name for item in chapter] for chapter in chapters(passes)]


@dataclass(frozen=True)
class Tidy(ReluModules):
    info = PassInfo("tidy", "structure", Exact())


def test_where_chapters_begin_and_end():
    shrink, mend, tidy, late = Shrink(), Mend(), Tidy(), Coarsen(0.1)
    assert names([]) == []
    assert names([tidy, shrink, late]) == [["tidy"], ["shrink"], [late.info.name]]
    assert names([mend, late]) == [["mend"], [late.info.name]]
    assert names([tidy, mend]) == [["tidy"], ["mend"]]
    assert names([tidy, shrink, tidy, mend, Broken(), late]) == [
        ["tidy"], ["shrink", "tidy", "mend", "broken"], [late.info.name]
    ]  # fmt: skip


@dataclass(frozen=True)
class SlowlyMend(Mend):
    info = PassInfo("slowly_mend", "recover", Lossy())

    def run(self, program, context):
        time.sleep(0.5)
        return super().run(program, context)


def test_the_time_of_what_shrinks_is_its_own():
    shrink, mend = run([Shrink(), SlowlyMend()], small_cnn()).records
    assert mend.seconds > 0.5
    assert shrink.seconds < mend.seconds
