"""cleanup: what nobody reads goes, with its modules."""

import operator

from torch import nn

from fxopt_cleanup import FACTS
from tests.building import Builder, aten
from tests.plugins.cleanup.support import (
    clean,
    operations,
)


def with_dead_code():
    b = Builder(unused=nn.Linear(4, 4))
    x = b.input("x", 2, 4)
    b.call(aten.bernoulli.default, b.call(aten.relu.default, b.call("unused", x)))
    halves = b.call(aten.chunk.default, x, 2, 1)
    used = b.call(operator.getitem, halves, 0)
    b.call(operator.getitem, halves, 1)
    return b.program(used)


def test_dead_code_goes_with_its_modules():
    program = with_dead_code()
    assert len(list(FACTS[0].counterexamples(program))) == 4
    result = clean(program)
    assert operations(program) == ["chunk", "getitem"]
    assert result.summary == "4 dead"
    assert not program.module.state_dict()
    assert len(result.rewrites) == 2  # a chain of three, and a getitem


def test_inputs_stay_though_unused():
    b = Builder()
    x, unused = b.input("x", 2, 4), b.input("unused", 2, 4)
    program = b.program(b.call(aten.relu.default, x))
    clean(program)
    assert unused in program.inputs
