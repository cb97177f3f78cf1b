"""Int8 layers for the tests of what runs them."""

from torch import nn

from fxopt.cost import find_target
from fxopt_quantize.formats import safe
from fxopt_quantize.modules import FakeQuantize, QuantConv, QuantLinear
from fxopt_quantize.weights import quantize_weight
from tests.building import Builder, aten

_FORMAT = safe(find_target("cpu"))


def qconv(conv):
    return QuantConv(conv, quantize_weight(conv.weight, 0, _FORMAT))


def qlinear(linear):
    return QuantLinear(quantize_weight(linear.weight, 0, _FORMAT), linear.bias)


MOVED = {
    "pooled": lambda b, x: b.call(aten.max_pool2d.default, x, [3, 3], [1, 1], [1, 1]),
    "spread": lambda b, x: b.call(
        aten.expand.default, b.call(aten.slice.Tensor, x, 0, 0, 1), [2, 8, 6, 6]
    ),
    "turned": lambda b, x: b.call(aten.transpose.int, x, 2, 3),
    "the same": lambda b, x: b.call(aten.alias.default, x),
}


class Block:
    """x is rounded; conv(x) + x, activated and rounded; parts of it can be used again.

    Instead of x, a second layer can give the addend, and it can be moved.
    """

    def __init__(self, *, swapped=False, relu=True, again="", second=False, moved=None):
        b = Builder(
            first=FakeQuantize(0.03, 100),
            conv=qconv(nn.Conv2d(8, 8, 3, padding=1)),
            branch=qconv(nn.Conv2d(8, 8, 1)),
            left=FakeQuantize(0.02, 120),
            right=FakeQuantize(0.025, 130),
            out=FakeQuantize(0.04, 0 if relu else 128),
            last=qconv(nn.Conv2d(8, 8, 1)),
        )
        x = b.call("first", b.input("x", 2, 8, 6, 6))
        left = b.call("left", b.call("conv", x))
        right = b.call("right", b.call("branch", x)) if second else x
        addend = right if moved is None else moved(b, right)
        total = b.call(aten.add.Tensor, *((addend, left) if swapped else (left, addend)))
        total = b.call(aten.relu.default, total) if relu else total
        results = [b.call("last", b.call("out", total))]
        if again == "addend":
            results.append(b.call("last", right))
        if again == "view":
            results.append(b.call(aten.reshape.default, right, [2, -1]))
        self.program = b.program(*results)


def linear_block(again):
    """Two linear layers, whose sum is rounded; one addend can be used again."""
    b = Builder(
        first=FakeQuantize(0.03, 90),
        fc=qlinear(nn.Linear(16, 16)),
        branch=qlinear(nn.Linear(16, 16)),
        left=FakeQuantize(0.02, 128),
        right=FakeQuantize(0.02, 128),
        out=FakeQuantize(0.04, 128),
        last=qlinear(nn.Linear(16, 4)),
    )
    x = b.call("first", b.input("x", 4, 3, 16))
    right = b.call("right", b.call("branch", x))
    total = b.call(aten.add.Tensor, right, b.call("left", b.call("fc", x)))
    results = [b.call("last", b.call("out", total))]
    results += [b.call("last", right)] if again else []
    return b.program(*results)
