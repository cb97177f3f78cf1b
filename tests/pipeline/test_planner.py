"""The planner: stages, facts, after and before, ties by name; errors that say what to write."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxopt.analysis import Fact
from fxopt.errors import PlanError
from fxopt.passes import STAGES, Exact, Pass, PassInfo, format_pass
from fxopt.pipeline import plan

FACTS = {name: Fact(name, f"{name} is true", lambda program: []) for name in ("f", "g", "h")}


def make(name, stage="simplify", **declared):
    """A pass with one setting, so that it may occur twice."""

    @dataclass(frozen=True)
    class Made(Pass):
        level: int = 0
        info = PassInfo(name, stage, Exact(), **declared)

        def run(self, program, context):
            raise NotImplementedError

    return Made


def order(*passes, holding=(), providers=None):
    return [format_pass(item) for item in plan(passes, FACTS, holding, providers).passes]


def test_stages_come_first():
    given_passes = [make(f"p{index}", stage)() for index, stage in enumerate(reversed(STAGES))]
    assert order(*given_passes) == ["p5", "p4", "p3", "p2", "p1", "p0"]


def test_ties_by_name_then_by_settings():
    a, b = make("a"), make("b")
    assert order(b(), a(level=2), a(), a(level=1)) == ["a", "a{level=1}", "a{level=2}", "b"]


def test_the_same_pass_with_the_same_settings_may_occur_twice():
    a = make("a")
    assert order(a(), a()) == ["a", "a"]


def test_every_provider_precedes_its_requirer():
    needs = make("a", requires=("f",))
    assert order(needs(), make("z", provides=("f",))(), make("y", provides=("f",))()) == [
        "y",
        "z",
        "a",
    ]


def test_facts_are_chained():
    passes = [
        make("a", requires=("g",), provides=("h",))(),
        make("b", requires=("f",), provides=("g",))(),
        make("c", provides=("f",))(),
        make("aa", requires=("h",))(),
    ]
    assert order(*passes) == ["c", "b", "a", "aa"]


def test_a_pass_that_keeps_a_fact_does_not_provide_it():
    keeper = make("keeper", requires=("f",), provides=("f",))
    source = make("source", provides=("f",))
    assert order(keeper(), keeper(level=1), source()) == ["source", "keeper", "keeper{level=1}"]
    with pytest.raises(PlanError, match="keeper requires the fact f"):
        order(keeper(), keeper(level=1))


def test_after_and_before():
    passes = [make("a", after=("c",))(), make("b")(), make("c", after=("absent",))()]
    assert order(*passes) == ["b", "c", "a"]
    assert order(make("a")(), make("z", before=("a",))()) == ["z", "a"]


def test_a_fact_that_holds_orders_only_where_nothing_contradicts():
    provider = make("z", provides=("f",))
    assert order(make("a", requires=("f",))(), provider(), holding={"f"}) == ["z", "a"]
    first = make("a", requires=("f",), before=("z",))
    assert order(first(), provider(), holding={"f"}) == ["a", "z"]
    with pytest.raises(PlanError, match="cannot be put in an order"):
        order(first(), provider())


def test_mutual_needs_are_no_cycle_when_one_holds():
    a = make("a", requires=("f",), provides=("g",))
    b = make("b", requires=("g",), provides=("f",))
    assert order(a(), b(), holding={"f"}) == ["a", "b"]
    assert order(a(), b(), holding={"g"}) == ["b", "a"]


def test_a_cycle_is_listed_with_its_reasons():
    passes = [
        make("a", requires=("f",), provides=("g",))(),
        make("b", requires=("g",))(),
        make("c", provides=("f",), after=("b",))(),
        make("innocent")(),
    ]
    with pytest.raises(PlanError) as caught:
        order(*passes)
    text = str(caught.value)
    assert "a -> b -> c -> a" in text
    assert "a provides g, which b requires" in text
    assert "c declares after=b" in text
    assert "c provides f, which a requires" in text
    assert "innocent" not in text


def test_a_missing_fact_names_meaning_provider_and_what_to_write():
    needs = make("needs", "numeric", requires=("f",))
    with pytest.raises(PlanError) as caught:
        order(needs(level=3), make("other")(), providers={"f": ("giver", "other_giver")})
    text = str(caught.value)
    assert "needs requires the fact f (f is true)" in text
    assert "giver or other_giver can provide it" in text
    assert "write passes='giver,other,needs{level=3}'" in text


def test_a_missing_fact_that_nobody_provides():
    with pytest.raises(PlanError, match="leave needs out, or install a plugin that provides f"):
        order(make("needs", requires=("f",))(), providers={"f": ()})


def test_a_provider_in_a_later_stage_is_too_late():
    needs, late = make("needs", "prepare", requires=("f",)), make("late", "lower", provides=("f",))
    with pytest.raises(PlanError) as caught:
        order(needs(), late(), providers={"f": ("late",)})
    text = str(caught.value)
    assert "late provides it only in the later stage lower" in text
    assert "needs is of the stage prepare" in text
    assert "leave needs out" in text
    with pytest.raises(PlanError, match="write passes='early,needs,late'"):
        order(needs(), late(), providers={"f": ("early", "late")})


def test_a_fact_of_an_earlier_stage_or_of_the_model_will_do():
    needs = make("needs", "numeric", requires=("f",))
    assert order(needs(), make("gives", "prepare", provides=("f",))()) == ["gives", "needs"]
    assert order(needs(), holding={"f"}) == ["needs"]


@pytest.mark.parametrize("how", ["requires", "provides"])
def test_an_unknown_fact(how):
    item = make("typo", **{how: ("ff",)})()
    with pytest.raises(PlanError, match=f"typo {how} the fact 'ff'.*\n.*did you mean 'f'"):
        order(item)


@pytest.mark.parametrize(
    ("stage", "word", "other"), [("prepare", "after", "lower"), ("lower", "before", "prepare")]
)
def test_after_and_before_cannot_overrule_stages(stage, word, other):
    with pytest.raises(PlanError, match=f"a declares {word}=b, but a is of the stage {stage}"):
        order(make("a", stage, **{word: ("b",)})(), make("b", other)())


def test_explain_says_why_each_pass_stands_where_it_stands():
    passes = [
        make("first", "prepare", provides=("g",))(),
        make("giver", provides=("f",))(),
        make("bound", requires=("f", "g", "h"), after=("free",))(),
        make("free")(),
    ]
    lines = plan(passes, FACTS, {"h"}).explain().splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["1", "prepare", "first"],
        ["2", "simplify", "free"],
        ["3", "simplify", "giver"],
        ["4", "simplify", "bound"],
    ]
    assert "by name" in lines[1]
    assert "giver provides f, which bound requires" in lines[3]
    assert "bound declares after=free" in lines[3]
    assert "requires g, provided before by first" in lines[3]
    assert "requires h, which holds of the model" in lines[3]
    assert plan([], FACTS, ()).explain() == "no passes"


names = st.sampled_from(["a", "b", "c", "d", "e"])
declared = st.fixed_dictionaries(
    {
        "name": names,
        "stage": st.sampled_from(STAGES[:3]),
        "requires": st.lists(st.sampled_from(list(FACTS)), max_size=1).map(tuple),
        "provides": st.lists(st.sampled_from(list(FACTS)), max_size=1).map(tuple),
        "after": st.lists(names, max_size=1).map(tuple),
        "before": st.lists(names, max_size=1).map(tuple),
    }
)


@given(
    st.lists(declared, max_size=5, unique_by=lambda item: item["name"]),
    st.sets(st.sampled_from(list(FACTS))),
    st.randoms(),
)
def test_the_order_does_not_depend_on_that_of_the_input(declarations, holding, rng: random.Random):
    passes = [make(**declaration)(level) for declaration in declarations for level in (0, 1)]

    def outcome(items):
        try:
            return plan(items, FACTS, holding).explain()
        except PlanError as error:
            return str(error)

    expected = outcome(passes)
    rng.shuffle(passes)
    assert outcome(passes) == expected


@given(st.lists(declared, max_size=5, unique_by=lambda item: item["name"]))
def test_an_order_keeps_all_that_is_declared(declarations):
    passes = [make(**declaration)() for declaration in declarations]
    try:
        ordered = [item.info for item in plan(passes, FACTS, ()).passes]
    except PlanError:
        return
    assert sorted(info.name for info in ordered) == sorted(item["name"] for item in declarations)
    for index, info in enumerate(ordered):
        before, rest = ordered[:index], ordered[index + 1 :]
        assert all(any(fact in p.provides for p in before) for fact in info.requires)
        assert all(STAGES.index(p.stage) <= STAGES.index(info.stage) for p in before)
        assert not any(other.name in info.after for other in rest)
        assert not any(other.name in info.before for other in before)
