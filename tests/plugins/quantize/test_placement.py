"""Which values are rounded, and where."""

import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_cleanup import Cleanup
from fxopt_quantize import FakeQuantize, FakeQuantizePerChannel, Quantize
from tests.plugins.quantize.support import (
    CPU,
    SqueezeExcite,
    plain_name,
    quantized,
    relative,
    roundings,
)

SQUEEZE_EXCITE = """
x               scale, zero middle   -> add expand
hardswish       scale, zero middle -> depthwise
hardswish_1     scale, zero middle   -> adaptive_avg_pool2d mul
adaptive_avg_pool2d scale, zero middle -> reduce
relu            scale, zero free     -> excite
hardsigmoid     scale, zero free     -> mul
mul             scale, zero middle   -> project
project         scale, zero middle   -> add
add             scale, zero middle   -> max_pool2d
mean            scale, zero free     -> head
"""


def placement_text(program):
    lines = []
    for node in program.find(FakeQuantize, FakeQuantizePerChannel):
        leaf = program.leaf(node)
        per_channel = isinstance(leaf, FakeQuantizePerChannel)
        scale = f"{len(leaf.scale)} scales" if per_channel else "scale"
        point = int(leaf.zero_point[0]) if per_channel else leaf.zero_point
        shown = "middle" if point == 128 else "free"
        users = " ".join(sorted(plain_name(user) for user in node.users))
        lines.append(f"{plain_name(node.args[0])} {scale}, zero {shown} -> {users}")
    return lines


def test_placement_in_a_mobile_block():
    torch.manual_seed(0)
    program, result = quantized(SqueezeExcite(), (torch.randn(4, 4, 8, 8),))
    expected = [" ".join(line.split()) for line in SQUEEZE_EXCITE.strip().splitlines()]
    assert sorted(placement_text(program)) == sorted(expected)
    assert result.details["layers"] == 6
    assert result.refused == ()


def test_scales_per_channel_for_depthwise_layers_on_request():
    torch.manual_seed(0)
    x = (torch.randn(4, 4, 8, 8),)
    program, _ = quantized(SqueezeExcite(), x, depthwise="channel")
    assert "hardswish 8 scales, zero middle -> depthwise" in placement_text(program)
    others = {name: leaf for name, leaf in roundings(program).items() if name != "hardswish"}
    assert not any(isinstance(leaf, FakeQuantizePerChannel) for leaf in others.values())


def test_scales_per_channel_need_a_batch():
    torch.manual_seed(0)
    model, x = nn.Conv2d(8, 8, 3, groups=8), torch.randn(8, 9, 9)
    program, _ = quantized(model, (x,), depthwise="channel")
    (leaf,) = roundings(program).values()
    assert not isinstance(leaf, FakeQuantizePerChannel)


def test_sums_between_layer_norms_stay_in_float():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            x = x + self.down(nn.functional.gelu(self.up(self.norm1(x))))
            return self.norm2(x)

    program, _ = quantized(Block(), (torch.randn(4, 5, 8),))
    assert set(roundings(program)) == {"norm1", "gelu"}
    assert roundings(program)["gelu"].zero_point not in (0, 128)


class ScaledBranch(nn.Module):
    """A block of ConvNeXt: what is added has been scaled in float."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.1))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.scale * self.linear(y).permute(0, 3, 1, 2)


def test_sums_of_what_no_int8_layer_yields_stay_in_float():
    model = nn.Sequential(ScaledBranch(), ScaledBranch())
    program, _ = quantized(model, (torch.randn(2, 8, 5, 5),))
    assert placement_text(program) == [
        "input_1 scale, zero middle -> 0.depthwise",
        "0.norm scale, zero middle -> 0.linear",
        "add scale, zero middle -> 1.depthwise",
        "1.norm scale, zero middle -> 1.linear",
    ]


def test_sums_with_what_an_int8_layer_yields_take_both_in_int8():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = torch.tanh(x)
            return self.outer(x + torch.relu(self.inner(x)))

    program, _ = quantized(Residual(), (torch.randn(2, 4, 6, 6),))
    assert set(roundings(program)) == {"tanh", "relu", "add"}


def test_what_is_joined_shares_one_scale():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.last(torch.cat([self.a(x).relu(), 5 * self.b(x).relu()], 1))

    program, _ = quantized(Fork(), (torch.randn(2, 3, 4, 4),))
    scales = [leaf.scale for name, leaf in roundings(program).items() if name != "x"]
    assert len(scales) == 2
    assert scales[0] == scales[1]
    assert "cat" not in roundings(program)


def test_a_value_that_also_leaves_in_float_is_rounded_below_what_passes_it_on():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(2, 2)

        def forward(self, x):
            both = self.first(x).reshape(-1, 2, 2)
            left, right = both.unbind(1)
            return self.last(left), right.softmax(-1)

    x = torch.randn(3, 4)
    program, _ = quantized(Net(), (x,))
    rounded = set(roundings(program))
    assert len(rounded) == 2
    assert "x" in rounded
    assert (rounded - {"x"}).pop().startswith("getitem")


class Attention(nn.Module):
    """Self-attention over heads of one projection."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, self.turn(k), v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def turn(self, k):
        return k


def test_attention_takes_its_inputs_in_int8_but_not_its_mask():
    x = torch.randn(3, 5, 8)
    mask = torch.zeros(3, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    model = Attention()
    program, _ = quantized(model, (x, mask))
    assert set(roundings(program)) == {"x", "qkv", "scaled_dot_product_attention"}
    assert relative(program(x, mask)[0], model(x, mask)) < 0.05


def test_values_are_not_rounded_where_they_come_from_a_layer_of_their_own():
    class Apart(Attention):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x, mask):
            heads = [f(x).unflatten(-1, (2, 4)) for f in (self.query, self.key, self.value)]
            q, k, v = (head.transpose(1, 2) for head in heads)
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return self.out(y.transpose(1, 2).flatten(2))

    program, _ = quantized(Apart(), (torch.randn(3, 5, 8), torch.zeros(3, 1, 5, 5)))
    assert set(roundings(program)) == {"x", "query", "key", "scaled_dot_product_attention"}


def test_attention_written_out_is_rounded_as_the_operator_is_once_cleaned_up():
    class Written(Attention):
        def forward(self, x):
            q, k, v = self.qkv(x).reshape(x.shape[0], 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind()
            y = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.out(y.transpose(1, 2).flatten(2))

    x = torch.randn(3, 5, 8)
    program = capture_program(Written().eval(), (x,), {}).clone()
    context = Context(CPU, calibration=Calibration([(x,)], program.signature))
    Cleanup().run(program, context)
    Quantize().run(program, context)
    assert set(roundings(program)) == {"x", "qkv", "scaled_dot_product_attention_default"}


def test_attention_stays_in_float_where_its_inputs_are_computed_in_float():
    class Turned(Attention):
        def turn(self, k):
            return k * torch.linspace(0.5, 1, 4)

    inputs = torch.randn(3, 5, 8), torch.zeros(3, 1, 5, 5)
    program, _ = quantized(Turned(), inputs, smoothing=0.0)
    assert set(roundings(program)) == {"x", "scaled_dot_product_attention"}


@pytest.mark.parametrize(("activations", "points"), [("asymmetric", False), ("symmetric", True)])
def test_the_kind_of_grid_can_be_chosen(activations, points):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Hardswish(), nn.Linear(4, 4), nn.Hardswish(), nn.Linear(4, 4))
    program, _ = quantized(net, (torch.randn(64, 4) * 2,), activations=activations)
    assert all((leaf.zero_point == 128) is points for leaf in roundings(program).values())


class Padded(nn.Module):
    """Two convolutions with padding between them that the second one cannot express."""

    def __init__(self, padding):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.padding = padding
        self.second = nn.Conv2d(8, 8, 3, stride=2)

    def forward(self, x):
        return self.second(self.padding(self.first(x).relu()))


def asymmetric(value):
    return lambda x: torch.nn.functional.pad(x, (0, 1, 0, 1), value=value)


@pytest.mark.parametrize(
    ("padding", "rounded"),
    [
        (asymmetric(0.0), "relu"),
        (nn.ZeroPad2d((0, 1, 0, 1)), "relu"),
        (nn.ReflectionPad2d((0, 1, 0, 1)), "relu"),
        (asymmetric(0.3), "pad"),
        (nn.ConstantPad2d((0, 1, 0, 1), 0.3), "pad"),
    ],
    ids=["zeros", "module", "reflection", "constant", "constant module"],
)
def test_values_are_rounded_before_they_are_padded_with_zeros(padding, rounded):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 9)
    model = Padded(padding)
    program, _ = quantized(model, (x,))
    assert any(line.startswith(f"{rounded} ") for line in placement_text(program))
    assert relative(program(x)[0], model(x)) < 0.02
