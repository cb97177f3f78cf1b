"""substitute: which calls become what, and in which order."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxopt.cost import find_target
from fxopt.passes import Context
from fxopt.testing import check_pass, make_case, run_pass
from fxopt_substitute import Substitute
from fxopt_substitute.activations import ACTIVATIONS

aten = torch.ops.aten


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = F.silu(self.stem(x))
        x = x * self.gate(x).sigmoid()
        return F.mish(self.head(x)).sigmoid()


def case_of(model=None):
    torch.manual_seed(0)
    return make_case("case", (model or Gated()).double().eval(), torch.randn(4, 6).double())


def targets(program):
    return [node.target for node in program.nodes if node.op == "call_function"]


def test_all_but_outputs_by_default():
    program, result = run_pass(Substitute(), case_of())
    program.verify()
    assert targets(program) == [
        aten.hardswish.default,
        aten.hardsigmoid.default,
        aten.mul.Tensor,
        aten.hardswish.default,
        aten.sigmoid.default,
    ]
    assert "output of the model" in str(result.refused)
    assert result.details["calls"] == 3


@pytest.mark.parametrize(
    "view",
    [
        lambda y: y.squeeze(1),
        lambda y: y.reshape(-1),
        lambda y: y.flatten(),
        lambda y: y.T[None, :, 1:],
        lambda y: torch.cat([y, y + 1], 1).movedim(0, 1),
        lambda y: y.float(),
        lambda y: torch.stack([1 - y, y]).unbind()[1],
        lambda y: y.chunk(2)[0][:, None].expand(2, 3, 1).contiguous(),
        lambda y: nn.functional.dropout(y.unsqueeze(0), 0.5),
    ],
)  # fmt: skip
def test_views_of_what_yields_an_output_yield_it_too(view):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 1)

        def forward(self, x):
            return view(self.head(x).sigmoid())

    program, result = run_pass(Substitute(), case_of(Head()))
    assert aten.sigmoid.default in targets(program)
    assert "output of the model" in str(result.refused)


def test_it_computes_the_other_function():
    case = case_of()
    program, _ = run_pass(Substitute(), case)
    (x,) = case.inputs[0]
    model = case.program.module
    y = F.hardswish(model.stem(x))
    y = y * F.hardsigmoid(model.gate(y))
    torch.testing.assert_close(program(x)[0], F.hardswish(model.head(y)).sigmoid())


@pytest.mark.parametrize("old", ACTIVATIONS)
def test_each_is_known_by_its_usual_settings(old):
    activation = ACTIVATIONS[old]

    class Net(nn.Module):
        def forward(self, x):
            return activation(x) + 1

    new = "relu" if old != "relu" else "gelu"
    case = case_of(Net())
    program, _ = run_pass(Substitute(activations=(f"{old}={new}",)), case)
    (x,) = case.inputs[0]
    torch.testing.assert_close(program(x)[0], ACTIVATIONS[new](x) + 1)


def test_unusual_settings_stay():
    class Net(nn.Module):
        def forward(self, x):
            return F.elu(x, 0.5) + F.gelu(x, approximate="tanh") + F.leaky_relu(x, 0.2)

    item = Substitute(activations=("elu=relu", "gelu=relu", "leaky_relu=relu"))
    case = case_of(Net())
    assert "nothing calls elu, gelu, leaky_relu" in item.inapplicable(case.program, case.context())


class Three(nn.Module):
    """The first is far from zero, where both functions are alike; the last is where they differ."""

    def forward(self, x):
        return F.silu(x.abs() + 20) + F.silu(x.abs() + 5) + F.silu(x)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.34, 1), (0.67, 2), (1.0, 3)])
def test_what_changes_least_goes_first(share, count):
    program, _ = run_pass(Substitute(share=share), case_of(Three()))
    silus = [target for target in targets(program) if target is aten.silu.default]
    assert len(silus) == 3 - count
    kept = [node for node in program.nodes if node.target is aten.silu.default]
    if count in (1, 2):
        assert str(kept[-1].args[0]) == "x"  # the one that would change most


def test_without_data_the_first_go_first():
    class Turned(nn.Module):
        def forward(self, x):
            return F.silu(x) + F.silu(x.abs() + 20)

    program = case_of(Turned()).program.clone()
    Substitute(share=0.5).run(program, Context(find_target("cpu")))
    assert [str(node.args[0]) for node in program.nodes if node.target is aten.silu.default] != [
        "x"
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, "from 0 to 1"),
        ({"activations": ("silu",)}, "old=new"),
        ({"activations": ("silu=swish",)}, "hardswish"),
        ({"activations": ("relu=relu",)}, "old=new"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Substitute(**settings)


@pytest.mark.parametrize("check", check_pass(Substitute(), cases=[case_of()]), ids=str)
def test_conformance(check):
    check()


def test_a_limit_is_kept_by_replacing_fewer():
    case = case_of(Three())
    (plain,) = case.outputs()[0]
    item = Substitute()
    everything, _ = run_pass(item, case)
    full = float((everything(*case.inputs[0])[0] - plain).norm() / plain.norm())
    milder = list(item.milder(case.program, case.context()).passes)
    fewer, result = run_pass(milder[-1], case)
    drift = float((fewer(*case.inputs[0])[0] - plain).norm() / plain.norm())
    assert result.details["calls"] == 1
    assert drift < 0.1 * full


class OfIntegers(nn.Module):
    def forward(self, x):
        return (x > 0).long().sigmoid() * x.sigmoid() + 1


def test_what_takes_integers_stays():
    program, result = run_pass(Substitute(), case_of(OfIntegers()))
    assert aten.sigmoid.default in targets(program)
    assert aten.hardsigmoid.default in targets(program)
    assert result.details["calls"] == 1
