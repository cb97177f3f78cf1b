"""Which candidate is kept in the end, when what is built at last takes what a test says."""

import importlib
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from fxopt.cost import Latency
from fxopt.emit import emit
from fxopt.pipeline.assignment import whole
from fxopt.pipeline.lowering import exact_version
from fxopt.pipeline.lowering import race as race_module
from fxopt.pipeline.lowering import verify as verify_module
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.lower import _finalists, _second_look
from fxopt.pipeline.lowering.ties import decided_apart
from fxopt.pipeline.lowering.verify import first_right
from fxopt.plugin import Backend, BackendInfo
from fxopt_eager import Eager
from tests.building import image, small_cnn

lower_module = importlib.import_module("fxopt.pipeline.lowering.lower")


@dataclass(frozen=True)
class Runtime(Backend):
    setting: int = 0
    info = BackendInfo("runtime", ("cpu",))

    def lower(self, program, inputs, target):
        raise AssertionError("must not be called")


@dataclass(frozen=True)
class OneByOne(Runtime):
    info = BackendInfo("one_by_one", ("cpu",), node_by_node=True)


@dataclass(frozen=True)
class Another(Runtime):
    info = BackendInfo("another", ("cpu",))


@dataclass(frozen=True)
class Sluggish(Runtime):
    info = BackendInfo("sluggish", ("cpu",), builds_slowly=True)


@dataclass
class Job:
    """Two candidates are refused or accepted by what they are."""

    refused: tuple[Candidate, ...] = ()
    examples = ((),)
    mix = False

    def accept(self, module, outputs):
        return "refused" if module in [c.module for c in self.refused] else None


@pytest.fixture
def candidates():
    version = exact_version(small_cnn(), [[], []])
    return [Candidate(version, whole(Runtime(i))) for i in range(4)]


def timed(candidate, milliseconds, built=True):
    candidate.timed(Latency((milliseconds,)))
    if built:
        candidate.module = emit(candidate.version.program, ())


@pytest.fixture
def builds(monkeypatch):
    """What each candidate takes once it is built here."""
    found = {}

    def build_and_time(candidate, others, before, job):
        timed(candidate, found[candidate.key])
        return before

    monkeypatch.setattr(verify_module, "_build_and_time", build_and_time)
    return found


def test_the_fastest_is_kept(candidates, builds):
    *some, plain = candidates
    for candidate, took in zip(some, (3.0, 1.0, 2.0), strict=True):
        timed(candidate, took)
    assert first_right(candidates, plain, Latency((9.0,)), Job()) is some[1]


@pytest.mark.parametrize(("milliseconds", "given"), [(200.0, None), (400.0, "the first call")])
def test_what_it_returned_when_it_was_built_is_judged_where_calls_are_slow(
    candidates, monkeypatch, milliseconds, given
):
    winner, *_, plain = candidates
    timed(winner, milliseconds)
    winner.outputs = "the first call"
    judged = []
    monkeypatch.setattr(Job, "accept", lambda self, module, outputs: judged.append(outputs))
    assert first_right([winner], plain, Latency((900.0,)), Job()) is winner
    assert judged == [given]


@pytest.mark.parametrize(("milliseconds", "wins"), [(0.98, False), (0.96, True)])
def test_kernels_called_one_by_one_win_by_more_than_chance(candidates, milliseconds, wins):
    compiled, *_, plain = candidates
    stepping = Candidate(compiled.version, whole(OneByOne()))
    timed(compiled, 1.0)
    timed(stepping, milliseconds)
    timed(plain, 9.0)
    found = first_right([stepping, compiled, plain], plain, Latency((9.0,)), Job())
    assert found is (stepping if wins else compiled)


def test_what_turns_out_slower_once_built_waits_for_its_turn(candidates, builds):
    first, second, third, plain = candidates
    timed(first, 1.0)
    timed(second, 2.0, built=False)
    timed(third, 3.0)
    timed(plain, 9.0)
    builds[second.key] = 4.0
    assert first_right(candidates, plain, Latency((9.0,)), Job((first,))) is third
    assert first.record.reason == "refused"


def test_nothing_slower_than_the_original_is_kept(candidates, builds):
    *some, plain = candidates
    for candidate in some:
        timed(candidate, 5.0)
    timed(plain, 6.0)
    assert first_right(candidates, plain, Latency((4.0,)), Job()) is plain


def test_a_second_race_at_another_speed_changes_no_order(candidates, monkeypatch):
    first, second, late, _ = candidates
    timed(first, 1.0)
    timed(second, 1.5)

    def race_apart(racing, job, seconds):  # the machine takes twice as long by now
        assert racing == [first, late]
        assert seconds == race_module._SECONDS_AGAIN < race_module._SECONDS
        first.timed(Latency((2.0,)))
        late.timed(Latency((1.9,)))

    monkeypatch.setattr(race_module, "race_apart", race_apart)
    race_module.race_again([first], [late], [first, second], None)
    assert [c.median for c in (late, first, second)] == [1.9, 2.0, 3.0]


def test_what_leaders_took_in_both_races_counts(candidates, monkeypatch):
    first, second, behind, late = candidates
    for candidate, milliseconds in zip((first, second, behind), (4.0, 1.0, 6.0), strict=True):
        candidate.timed(Latency((milliseconds,) * 3))

    def race_apart(racing, job, seconds):  # at the same speed; the first two have changed places
        for candidate, milliseconds in zip(racing, (1.0, 4.0, 2.0), strict=True):
            candidate.timed(Latency((milliseconds,)))

    monkeypatch.setattr(race_module, "race_apart", race_apart)
    race_module.race_again([first, second], [late], [first, second, behind], None)
    assert [first.latency, second.latency] == [
        Latency((1.0, 4.0, 4.0, 4.0)),
        Latency((4.0, 1.0, 1.0, 1.0)),
    ]
    assert [late.median, behind.median] == [2.0, 6.0]


def test_a_race_that_was_not_held_counts_for_nothing(candidates, monkeypatch):
    first, second, *_ = candidates
    first.timed(Latency((1.0, 2.0)))
    second.timed(Latency((3.0,)))
    monkeypatch.setattr(race_module, "race_apart", lambda racing, job, seconds: None)
    race_module.race_again([first], [], [first, second], None)
    assert [first.latency, second.latency] == [Latency((1.0, 2.0)), Latency((3.0,))]


@pytest.fixture
def slower_by_now(monkeypatch):
    """Races on a machine that takes half as long again as at first; what each took then."""
    took = {}

    def race(racing, job):
        for candidate in racing:
            timed(candidate, 1.5 * took[candidate.key])
        return Latency((15.0,))

    monkeypatch.setattr(race_module, "race", race)
    return took


def test_what_came_late_does_not_make_others_look_fast(candidates, slower_by_now):
    leader, slow, late, plain = candidates
    for candidate, milliseconds in zip(candidates, (9.5, 11.0, 9.0, 10.5), strict=True):
        slower_by_now[candidate.key] = milliseconds
        if candidate is not late:
            timed(candidate, milliseconds)
    others = [leader, slow, plain]
    now = race_module.race_late([late], [leader], others, Latency((10.0,)), None)
    assert [c.median for c in candidates] == pytest.approx([14.25, 16.5, 13.5, 15.75])
    refused = Job(refused=(late, leader))
    assert first_right(candidates, plain, now, refused) is plain


def test_what_is_built_at_last_does_not_make_others_look_fast(
    candidates, slower_by_now, monkeypatch
):
    refused, built_late, slow, plain = candidates
    for candidate, milliseconds in zip(candidates, (8.0, 10.1, 11.0, 10.5), strict=True):
        slower_by_now[candidate.key] = milliseconds
        timed(candidate, milliseconds, built=candidate is not built_late)
    monkeypatch.setattr(verify_module, "build", lambda candidate, job: timed(candidate, 0.0))
    found = first_right(candidates, plain, Latency((10.0,)), Job((refused,)))
    assert found is plain
    assert slow.median == pytest.approx(16.5)


@pytest.mark.parametrize(("milliseconds", "wins"), [(9.0, True), (10.5, False)])
def test_what_came_close_to_the_original_races_again_before_it_is_given_up(
    candidates, slower_by_now, milliseconds, wins
):
    near, far, refused, plain = candidates
    for candidate, took in ((near, 10.5), (far, 13.0), (refused, 10.5)):
        timed(candidate, took)
    refused.note(reason="refused")
    slower_by_now.update({near.key: milliseconds, plain.key: 9.9})  # the others must not race
    timed(plain, 0.0)
    plain.latency = None
    others = [near, far, refused]
    winner, before = _second_look(plain, others, Latency((10.0,)), Job())
    assert winner is (near if wins else plain)
    assert 14.0 < before.median <= 15.0
    assert others[-1] is plain


@pytest.mark.parametrize(
    ("took", "tied"),
    [
        ((100.0, 101.0, 103.9), True),  # another setting of the best one's backend is no rival
        ((100.0, 101.0, 104.1), False),
        ((49.0, 50.0, 49.5), False),
        ((301.0, 310.0, 302.0), False),
    ],
)
def test_two_backends_that_few_turns_do_not_tell_apart_race_again(candidates, took, tied):
    first, same, *_ = candidates
    other = Candidate(first.version, whole(Another()))
    for candidate, milliseconds in zip((first, same, other), took, strict=True):
        timed(candidate, milliseconds, built=False)
    assert decided_apart([same, other, first]) == ([first, other] if tied else [])
    assert decided_apart([first, same]) == decided_apart([]) == []


@pytest.mark.parametrize("tied", [True, False])
def test_only_what_ties_in_the_worker_has_more_turns_there(candidates, monkeypatch, tied):
    first, *_ = candidates
    other = Candidate(first.version, whole(Another()))
    timed(first, 100.0, built=False)
    timed(other, 101.0 if tied else 120.0, built=False)
    races = []
    for name in ("screen_in_rounds", "screen", "race_apart"):
        monkeypatch.setattr(lower_module, name, lambda *_, **__: None)
    monkeypatch.setattr(lower_module, "tunings", lambda *_: [])
    monkeypatch.setattr(lower_module, "race_again", lambda leading, *_: races.append(leading))
    assert lower_module._try_apart([first, other], Job()) == []
    assert races == ([[first, other]] if tied else [])


@pytest.mark.parametrize(("took", "looks_again"), [(400.0, True), (4.0, False)])
def test_where_slow_calls_seem_to_beat_nothing_a_second_look_decides(
    candidates, monkeypatch, took, looks_again
):
    slow, *_, kept = candidates
    timed(slow, took)
    monkeypatch.setattr(lower_module, "_try_apart", lambda candidates, job: [])
    monkeypatch.setattr(lower_module, "_finalists", lambda candidates, job: [slow])
    monkeypatch.setattr(lower_module, "_race_here", lambda *_: Latency((0.99 * took,)))
    monkeypatch.setattr(lower_module, "_second_look", lambda *_: (kept, Latency((7.0,))))
    job = SimpleNamespace(mix=False, argument_names=(), forget=lambda keys: None)
    winner, before = lower_module._choose(slow.version, [slow], job)
    assert (winner is kept) is looks_again
    assert before.median == (7.0 if looks_again else pytest.approx(0.99 * took))


@pytest.mark.parametrize(
    ("first", "same", "other", "slow", "built"),
    [
        (10.0, 10.1, 10.3, True, [0, 2]),  # another setting of a backend is not worth a build
        (10.0, 11.0, 10.3, True, [0, 2]),
        (10.0, 11.0, 10.5, True, [0]),
        (10.0, 11.0, 11.4, False, [0, 2]),  # of what builds fast, more is worth one
        (10.0, 11.0, 11.6, False, [0]),
        (60.0, 62.0, 61.0, False, [0]),
    ],
)
def test_another_backend_that_came_as_close_is_built_too(
    candidates, monkeypatch, first, same, other, slow, built
):
    version = candidates[0].version
    racing = [*candidates[:2], Candidate(version, whole(Sluggish() if slow else Another()))]
    for candidate, took in zip(racing, (first, same, other), strict=True):
        timed(candidate, took, built=False)
    built_here = []

    def build(candidate, job):
        built_here.append(racing.index(candidate))
        candidate.module = emit(version.program, ())

    monkeypatch.setattr(lower_module, "build", build)
    found = _finalists([*racing], Job())
    assert built_here == built
    assert found == [racing[index] for index in built]


@pytest.mark.parametrize(
    ("names", "left", "milliseconds", "rules"),
    [
        (["eager"], 99.0, 1.0, (2.0, None)),
        (["eager", "runtime"], 99.0, 1.0, (5.0, 4)),
        (["eager", "runtime"], 99.0, 301.0, (5.0, 3)),
        (["runtime"], -5.0, 1.0, (2.0, None)),
    ],
)
def test_a_race_is_short_where_nothing_can_be_chosen_or_time_is_up(
    names, left, milliseconds, rules, candidates, monkeypatch
):
    version = candidates[0].version
    kinds = {"eager": Candidate(version, whole(Eager())), "runtime": candidates[0]}
    racing = [kinds[name] for name in names]
    for candidate in racing:
        timed(candidate, milliseconds)
    given = []

    def measure(calls, *, seconds, **rules):
        given.append((seconds, rules.get("fewest")))
        return dict.fromkeys(calls, Latency((1.0,)))

    monkeypatch.setattr(race_module, "measure", measure)
    job = SimpleNamespace(
        original=None,
        examples=([image()],),
        name="net",
        progress=lambda line: None,
        seconds_left=left,
    )
    race_module.race(racing, job)
    assert given == [rules]
