"""Bisecting finds the guilty pass, then the guilty rewrite inside it."""

from dataclasses import dataclass

import pytest
import torch

from fxopt.errors import InputError
from fxopt.ir import PassResult
from fxopt.passes import Exact, Lossy, Pass, PassInfo
from fxopt.pipeline import bisect, plan
from tests.building import Builder, aten
from tests.pipeline.support import FACTS, context, declare

LENGTH = 7


def chain():
    """x, and then one relu after the other with an addition in between."""
    b = Builder()
    node = b.input("x", 2, 4)
    for _ in range(LENGTH):
        node = b.call(aten.add.Tensor, b.call(aten.relu.default, node), 1.0)
    return b.program(node)


EXAMPLES = context(examples=[[torch.randn(2, 4)], [torch.randn(3, 4)]])


@dataclass(frozen=True)
class Clamp(Pass):
    """relu(x) -> clamp_min(x, 0); the rewrite number ``wrong`` gets another limit."""

    wrong: int | None = None
    info = PassInfo("clamp", "simplify", Exact())

    def run(self, program, context):
        with program.edit() as edit:
            for index, node in enumerate(program.find(aten.relu.default)):
                limit = 50.0 if index == self.wrong else 0.0
                edit.replace(node, aten.clamp_min.default, node.args[0], limit)
        return edit.result()


@dataclass(frozen=True)
class Swap(Pass):
    """Harmless: x + 1 becomes x + 1.0 * 1."""

    level: int = 0
    info = PassInfo("swap", "prepare", Exact())

    def run(self, program, context):
        with program.edit() as edit:
            for node in program.find(aten.add.Tensor):
                edit.replace(node, aten.add.Tensor, *node.args)
        return edit.result()


@pytest.mark.parametrize("wrong", range(LENGTH))
def test_finds_the_wrong_rewrite(wrong):
    program = chain()
    digest = program.fingerprint()
    passes = [Swap(), Swap(level=1), Clamp(wrong=wrong), Swap(level=2)]
    found = bisect(program, passes, EXAMPLES)
    assert (found.item, found.index) == (Clamp(wrong=wrong), 2)
    assert found.rewrite_index == wrong
    relu = list(program.find(aten.relu.default))[wrong]
    assert found.rewrite == f"{relu.name} -> aten.clamp_min.default ({relu.meta['source']})"
    assert "output 0 differs by" in found.reason
    text = str(found)
    assert f"guilty pass: clamp{{wrong={wrong}}}, number 3" in text
    assert f"guilty rewrite: number {wrong + 1}: {relu.name}" in text
    assert program.fingerprint() == digest
    assert program.rewrite_limit is None


@pytest.mark.parametrize("place", range(5))
def test_finds_the_pass_wherever_it_stands(place):
    passes = [Swap(level=index) for index in range(4)]
    passes.insert(place, Clamp(wrong=1))
    found = bisect(chain(), passes, EXAMPLES)
    assert (found.index, found.rewrite_index) == (place, 1)


def test_takes_a_plan():
    planned = plan([Clamp(wrong=3), Swap()], {}, ())
    found = bisect(chain(), planned, EXAMPLES)
    assert (found.index, found.rewrite_index) == (1, 3)


def test_nothing_is_broken():
    found = bisect(chain(), [Swap(), Clamp()], EXAMPLES)
    assert found.item is None
    assert found.index is None
    assert str(found) == "the program is not broken after all passes"


def test_broken_from_the_start():
    with pytest.raises(InputError, match="broken before any pass has run"):
        bisect(chain(), [Swap()], EXAMPLES, lambda program: True)


def test_an_own_notion_of_broken():
    def too_few(program):
        return sum(1 for _ in program.find(aten.relu.default)) < LENGTH - 4

    found = bisect(chain(), [Swap(), Clamp()], EXAMPLES, too_few)
    assert (found.item, found.index, found.rewrite_index) == (Clamp(), 1, 4)


def test_a_notion_of_broken_that_raises_means_broken():
    def fails(program):
        if list(program.find(aten.clamp_min.default)):
            raise RuntimeError("cannot take clamp_min")
        return False

    found = bisect(chain(), [Swap(), Clamp()], EXAMPLES, fails)
    assert (found.index, found.rewrite_index) == (1, 0)
    assert found.reason == "RuntimeError: cannot take clamp_min"


def test_a_pass_that_raises_at_a_rewrite():
    def raises_at_the_sixth(program, _):
        with program.edit() as edit:
            for index, node in enumerate(program.find(aten.relu.default)):
                limit = "no number" if index == 5 else 0.0
                edit.replace(node, aten.clamp_min.default, node.args[0], limit)
        return edit.result()

    found = bisect(chain(), [Swap(), declare(raises_at_the_sixth)], EXAMPLES)
    assert (found.index, found.rewrite_index) == (1, 5)
    assert "relu_default_5 -> aten.clamp_min.default" in found.rewrite
    assert "raises_at_the_sixth failed" in found.reason


def test_damage_outside_of_rewrites():
    def raises(program, _):
        raise OSError("no disk")

    def breaks(program, _):
        next(program.find(aten.relu.default)).target = aten.neg.default
        return PassResult(changed=True)

    def returns_nothing(program, _):
        return None

    for saboteur, reason in [
        (raises, "raises failed: OSError: no disk"),
        (breaks, "output 0 differs"),
        (returns_nothing, "returned a NoneType"),
    ]:
        found = bisect(chain(), [Swap(), declare(saboteur), Swap(level=1)], EXAMPLES)
        assert (found.index, found.rewrite_index, found.rewrite) == (1, None, "")
        assert reason in found.reason
        assert "none, the damage is there with no rewrite at all" in str(found)


def test_rewrites_of_several_edits_count_together():
    def edits_twice(program, _):
        with program.edit() as edit:
            for node in list(program.find(aten.relu.default))[:3]:
                edit.replace(node, aten.clamp_min.default, node.args[0], 0.0)
        with program.edit() as other:
            for index, node in enumerate(program.find(aten.relu.default)):
                other.replace(node, aten.clamp_min.default, node.args[0], 50.0 * (index == 2))
        return edit.result()

    found = bisect(chain(), [declare(edits_twice)], EXAMPLES)
    assert found.rewrite_index == 5
    assert "relu_default_5 -> " in found.rewrite


def test_lossy_passes_need_a_tolerance():
    def nudges(program, _):
        with program.edit() as edit:
            for node in program.find(aten.add.Tensor):
                edit.set_arguments(node, node.args[0], 1.01)
        return edit.result()

    passes = [declare(nudges, fidelity=Lossy()), Clamp(wrong=2)]
    assert bisect(chain(), passes, EXAMPLES).index == 0
    found = bisect(chain(), passes, EXAMPLES, tolerance=0.1)
    assert (found.index, found.rewrite_index) == (1, 2)


def test_what_the_manager_would_leave_out_is_left_out():
    wrong = Clamp(wrong=0).run
    skipped = [
        declare(wrong, "a", inapplicable=lambda program: "no"),
        declare(wrong, "b", needs=("calibration",)),
        declare(wrong, "c", requires=("never",)),
    ]
    assert bisect(chain(), skipped, EXAMPLES, facts=FACTS).item is None
    assert bisect(chain(), skipped, EXAMPLES).index == 2
