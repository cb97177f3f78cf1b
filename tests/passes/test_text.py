"""The text form of passes: it round-trips, and what is wrong in it is explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxopt.errors import SettingError
from fxopt.passes import (
    Exact,
    Lossy,
    Pass,
    PassInfo,
    format_pass,
    format_passes,
    make_pass,
    parse_passes,
)


@dataclass(frozen=True)
class Fold(Pass):
    info = PassInfo(name="fold", stage="simplify", fidelity=Exact())

    def run(self, program, context):
        raise NotImplementedError


@dataclass(frozen=True)
class Shrink(Pass):
    ratio: float = 0.5
    rank: int = 4
    layers: tuple[str, ...] = ()
    method: Literal["l1", "l2"] = "l1"
    prefix: str = ""
    exact: bool = False
    limit: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    basis: Literal["svd", "cp"] | Literal["auto"] = "auto"

    info = PassInfo(name="shrink", stage="structure", fidelity=Lossy())

    def __post_init__(self):
        if not 0 <= self.ratio <= 1:
            raise ValueError("ratio has to lie between 0 and 1")

    def run(self, program, context):
        raise NotImplementedError


KNOWN = {"fold": Fold, "shrink": Shrink}

shrinks = st.builds(
    Shrink,
    ratio=st.floats(0, 1),
    rank=st.integers(),
    layers=st.lists(st.text(), max_size=3).map(tuple),
    method=st.sampled_from(["l1", "l2"]),
    prefix=st.text(),
    exact=st.booleans(),
    limit=st.none() | st.integers(),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
)


@given(st.lists(shrinks | st.just(Fold()), max_size=4))
def test_round_trip(passes):
    assert parse_passes(format_passes(passes), KNOWN) == passes


AMBIGUOUS = ["true", "None", "a,b", "1", "x{y}", "]", "'", '"', "\\'", " a", "layer1.0", "a=b", ""]


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_texts_that_look_like_something_else(text):
    item = Shrink(prefix=text, layers=(text,))
    assert parse_passes(format_pass(item), KNOWN) == [item]


def test_the_short_form():
    assert format_pass(Fold()) == "fold"
    assert format_pass(Shrink()) == "shrink"
    assert format_pass(Shrink(ratio=0.3, layers=("layer1.0", "fc"))) == (
        "shrink{ratio=0.3,layers=[layer1.0,fc]}"
    )


@pytest.mark.parametrize(
    "text",
    [
        "shrink{ratio=0.3,layers=[a.b,c]},fold",
        " shrink { ratio = 0.3 , layers = [ a.b , c ] } , fold ",
        "shrink{ratio=0.3,layers=['a.b','c'],},fold,",
    ],
)
def test_spaces_and_quotes_do_not_matter(text):
    assert parse_passes(text, KNOWN) == [Shrink(ratio=0.3, layers=("a.b", "c")), Fold()]


def test_nothing_is_no_passes():
    assert parse_passes("", KNOWN) == []


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("shrink{layers=conv1}", "layers=conv1 is not a tuple", "write layers=[conv1]"),
        ("shrink{layers='*1=0.5'}", "is not a tuple", "write layers=['*1=0.5']"),
        ("shrink{layers=[1]}", "is not a tuple", None),
        ("folt", "unknown pass 'folt'", "did you mean 'fold'?"),
        ("zebra", "unknown pass 'zebra'", "there are: fold, shrink"),
        ("shrink{ration=0.3}", "unknown setting of shrink 'ration'", "did you mean 'ratio'?"),
        ("fold{x=1}", "unknown setting of fold 'x'", "there are: none"),
        ("shrink{ratio=high}", "shrink: ratio=high", None),
        ("shrink{rank=1.5}", "shrink: rank=1.5", None),
        ("shrink{rank=true}", "shrink: rank=true", None),
        ("shrink{method=l3}", "method=l3 is not one of l1, l2", None),
        ("shrink{basis=svp}", "basis=svp is not one of svd, cp, auto", None),
        ("shrink{layers=fc}", "shrink: layers=fc", None),
        ("shrink{sizes=[a]}", "shrink: sizes=[a]", None),
        ("shrink{limit=x}", "shrink: limit=x is not a int or none", None),
        ("shrink{ratio=2}", "ratio has to lie between 0 and 1", None),
        ("shrink{ratio}", "cannot read 'ratio'", "write key=value"),
        ("shrink{prefix=a b}", "cannot read the value 'a b'", "quote texts"),
        ("shrink{ratio=0.3", "do not match", None),
        ("shrink}ratio=0.3{", "do not match", None),
        ("shrink(0.3)", "cannot read 'shrink(0.3)'", "write name{key=value,key=value}"),
    ],
)
def test_mistakes_are_explained(text, what, hint):
    with pytest.raises(SettingError) as caught:
        parse_passes(text, KNOWN)
    assert what in str(caught.value)
    assert hint is None or caught.value.hint == hint


def test_a_setting_given_twice_is_a_mistake():
    with pytest.raises(SettingError, match="ratio"):
        parse_passes("shrink{ratio=0.1,ratio=0.2}", KNOWN)


def test_make_pass_from_values():
    assert make_pass(Shrink, {"ratio": 1, "limit": 3}) == Shrink(ratio=1, limit=3)
    with pytest.raises(SettingError, match="unknown setting"):
        make_pass(Shrink, {"info": 1})


def test_a_setting_without_default_is_asked_for():
    @dataclass(frozen=True)
    class Needs(Pass):
        ratio: float
        info = PassInfo(name="needs", stage="structure", fidelity=Lossy())

        def run(self, program, context):
            raise NotImplementedError

    assert parse_passes("needs{ratio=0.5}", {"needs": Needs}) == [Needs(0.5)]
    assert format_pass(Needs(0.5)) == "needs{ratio=0.5}"
    with pytest.raises(SettingError, match="ratio"):
        parse_passes("needs", {"needs": Needs})
