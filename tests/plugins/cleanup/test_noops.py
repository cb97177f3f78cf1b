"""cleanup: every rule for what does nothing, and what must stay although it looks so."""

import pytest
import torch
from torch import nn

from fxopt.ir import LeafModule
from fxopt.testing.blocks import NO_OPS, NoOps
from fxopt_cleanup import Cleanup
from fxopt_cleanup.noops import RULES
from tests.building import Builder, aten
from tests.plugins.cleanup.support import (
    CONTEXT,
    clean,
    cleaned,
    operations,
)


@pytest.mark.parametrize("name", sorted(NO_OPS))
def test_a_no_op_goes(name):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), NoOps(name), nn.Flatten(), nn.Linear(144, 2))
    program, _ = cleaned(model)
    expected = ["Conv2d", "flatten", "Linear"]
    if name == "strided":  # a real change of layout, which may be there for speed
        expected[1:1] = ["transpose", "contiguous", "transpose"]
    assert operations(program) == expected


@pytest.mark.parametrize("rule", sorted({rule.name for rule in RULES}))
def test_every_rule_of_the_table_is_tried(rule):
    """All rules fire on one model: none is dead weight."""
    assert EVERYTHING.details[rule] > 0


class Scale(nn.Module):
    """Active in training only, like stochastic depth."""

    def forward(self, x):
        return x * torch.rand(1) if self.training else x


def everything():
    b = Builder(
        dropout=nn.Dropout(), identity=nn.Identity(), pad=nn.ZeroPad2d(0), drop_path=Scale(),
        pool=nn.AdaptiveAvgPool2d(6), head=nn.Linear(6, 2),
    )  # fmt: skip
    b.module.eval()
    x = b.call(aten.relu.default, b.input("x", 2, 4, 6, 6))
    for name in ("dropout", "identity", "pad", "drop_path", "pool"):
        x = b.call(name, x)
    x = b.call(aten.dropout.default, x, 0.5, False)
    x = b.call(aten.to.dtype, x, torch.float32)
    x = b.call(aten.add.Tensor, x, 0)
    x = b.call(aten.cat.default, [x], 1)
    x = b.call(aten.transpose.int, b.call(aten.transpose.int, x, 1, -1), -1, 1)
    x = b.call(aten.view.default, b.call(aten.reshape.default, x, [-1, 4, 36]), [-1, 4, 6, 6])
    x = b.call(aten.clone.default, x)
    program = b.program(b.call("head", x))
    result = clean(program)
    assert operations(program) == ["relu", "Linear"]
    return result


EVERYTHING = everything()


def test_dropout_in_training_mode_stays():
    b = Builder(dropout=nn.Dropout())
    program = b.program(b.call("dropout", b.input("x", 2, 4)))
    program.module.eval()
    program.module.dropout.train()
    assert not Cleanup().run(program, CONTEXT).changed
    b = Builder()
    program = b.program(b.call(aten.dropout.default, b.input("x", 2, 4), 0.5, True))
    assert not clean(program).changed


class Clamp(nn.Module):
    """Reads the training flag, and is nothing like the identity in inference."""

    def forward(self, x):
        return x if self.training else x.clamp(-10, 10)


class Leaf(LeafModule):
    def forward(self, x):
        return x


def test_other_modules_stay():
    b = Builder(clamp=Clamp(), leaf=Leaf(), relu=nn.ReLU())
    x = b.input("x", 2, 4)
    program = b.program(b.call("relu", b.call("leaf", b.call("clamp", x))))
    assert not clean(program).changed


NOT_NO_OPS = {
    "other dtype": lambda b, x: b.call(aten.to.dtype, x, torch.float64),
    "add 1": lambda b, x: b.call(aten.add.Tensor, x, 1),
    "0 with alpha": lambda b, x: b.call(aten.add.Tensor, x, 1, alpha=2),
    "mul 0": lambda b, x: b.call(aten.mul.Tensor, x, 0),
    "shift by pads": lambda b, x: b.call(aten.constant_pad_nd.default, x, [1, -1]),
    "roll": lambda b, x: b.call(aten.roll.default, x, [1], [1]),
    "flip": lambda b, x: b.call(aten.flip.default, x, [1]),
    "one transposition": lambda b, x: b.call(aten.transpose.int, x, 1, 2),
    "another transposition": lambda b, x: b.call(
        aten.transpose.int, b.call(aten.transpose.int, x, 1, 2), 2, 3
    ),
    "a cycle of dimensions": lambda b, x: b.call(
        aten.permute.default, b.call(aten.permute.default, x, [0, 2, 3, 1]), [0, 2, 3, 1]
    ),
    "transpositions that would cancel out in another order": lambda b, x: b.call(
        aten.permute.default,
        b.call(aten.transpose.int, b.call(aten.transpose.int, x, 1, 2), 2, 3),
        [0, 2, 3, 1],
    ),
    "views with a transposition between": lambda b, x: b.call(
        aten.reshape.default,
        b.call(aten.transpose.int, b.call(aten.view.default, x, [-1, 2, 2, 4, 4]), 1, 2),
        [-1, 4, 4, 4],
    ),
    "pool": lambda b, x: b.call(aten.avg_pool2d.default, x, [3, 3], [1, 1], [1, 1]),
    "adaptive pool": lambda b, x: b.call(aten.adaptive_avg_pool2d.default, x, [2, 2]),
    "add a tensor": lambda b, x: b.call(aten.add.Tensor, x, x),
    "cat of two": lambda b, x: b.call(aten.cat.default, [x, x], 1),
    "integer division": lambda b, x: b.call(
        aten.div.Tensor, b.call(aten.to.dtype, x, torch.int64), 1
    ),
}


@pytest.mark.parametrize("name", NOT_NO_OPS)
def test_what_does_something_stays(name):
    b = Builder()
    result = NOT_NO_OPS[name](b, b.call(aten.relu.default, b.input("x", 2, 4, 4, 4)))
    program = b.program(b.call(aten.neg.default, result))
    x = torch.randn(2, 4, 4, 4)
    expected, count = program(x)[0], len(program.nodes)
    clean(program)
    assert len(program.nodes) == count
    assert program(x)[0].dtype == expected.dtype
    assert torch.equal(program(x)[0], expected)


def test_a_chain_of_permutations_cancels_out():
    b = Builder()
    x = b.call(aten.relu.default, b.input("x", 2, 3, 4, 5))
    y = b.call(aten.transpose.int, b.call(aten.transpose.int, x, 1, 2), 2, 3)
    y = b.call(aten.permute.default, y, [0, 3, 1, 2])
    program = b.program(b.call(aten.neg.default, y))
    inputs = torch.randn(2, 3, 4, 5)
    expected = program(inputs)[0]
    assert clean(program).details == {"permute": 1}
    assert torch.equal(program(inputs)[0], expected)
