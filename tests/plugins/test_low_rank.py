"""low_rank: factors against the layers they stand for, ranks, and what is refused."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

from fxopt.cost import Roofline, Target, find_target
from fxopt.errors import PassError
from fxopt.passes import Context
from fxopt.testing import check_pass, make_case, run_pass
from fxopt.testing.reference import randomize
from fxopt_low_rank import LowRank
from fxopt_low_rank.factors import METHODS, composed
from fxopt_low_rank.prices import price_of
from fxopt_low_rank.ranks import largest_rank, suits, thin_layers, work
from tests.building import Builder
from tests.pipeline.support import run
from tests.plugins.prune.support import Task

F64 = torch.float64


by_work = partial(LowRank, cost="work")  # the layers here are too small to save any time


def case_of(model, *shape):
    torch.manual_seed(0)
    return make_case("case", randomize(model.double()).eval(), torch.randn(*shape, dtype=F64))


def identity(size):
    return torch.eye(size, dtype=F64)


def weight_of(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def plain(weight):
    flat = weight.flatten(1)
    return identity(weight.shape[1]), flat @ flat.T


def test_what_a_layer_takes_may_be_a_vector():
    program, result = run_pass(by_work(keep=0.5), case_of(Task(), 4, 6))
    program.verify()
    assert {"first", "second"} <= result.details["ranks"].keys()


# -- factorizations --------------------------------------------------------------------------

FULL = {"svd": 8, "spatial": 24, "tucker": 8, "cp": 72, "separable": 8}
"""Ranks at which a weight of (8, 8, 3, 3) is represented exactly."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weighted", [False, True])
def test_full_rank_is_the_weight_itself(method, weighted):
    weight = weight_of(8, 8, 3, 3)
    basis = plain(weight)
    if weighted:
        mixing = weight_of(8, 8, seed=1)
        covariance = mixing @ mixing.T + identity(8)
        heavy = torch.einsum("oi...,ij,pj...->op", weight, covariance, weight)
        basis = covariance, heavy
    found = composed(METHODS[method](weight, FULL[method], basis))
    tolerance = 1e-3 if method == "cp" else 1e-10  # the one that is iterated
    assert float((found - weight).norm() / weight.norm()) < tolerance


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (10, 6, 1, 1)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_svd_errs_as_little_as_any(shape, rank):
    """Eckart and Young: the error is that of the singular values left out."""
    weight = weight_of(*shape)
    found = composed(METHODS["svd"](weight, rank, plain(weight)))
    left_out = torch.linalg.svdvals(weight.flatten(1))[rank:]
    assert float((found - weight).norm()) == pytest.approx(float(left_out.norm()), rel=1e-9)


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker"])
def test_what_has_a_low_rank_is_found(method):
    if method == "svd":
        weight = torch.einsum("or,rihw->oihw", weight_of(12, 3), weight_of(3, 8, 3, 3, seed=1))
    elif method == "spatial":
        weight = torch.einsum("orw,rih->oihw", weight_of(12, 3, 3), weight_of(3, 8, 3, seed=1))
    else:
        core = weight_of(3, 2, 3, 3, seed=2)
        weight = torch.einsum("or,rshw,is->oihw", weight_of(12, 3), core, weight_of(8, 2, seed=1))
    found = composed(METHODS[method](weight, 3, plain(weight)))
    torch.testing.assert_close(found, weight, rtol=1e-8, atol=1e-8)


def test_cp_finds_a_sum_of_outer_products():
    parts = [weight_of(size, 2, seed=size) for size in (6, 5, 3, 4)]
    weight = torch.einsum("or,ir,hr,wr->oihw", *parts)
    found = composed(METHODS["cp"](weight, 3, plain(weight)))
    assert float((found - weight).norm() / weight.norm()) < 0.02


@pytest.mark.parametrize("method", METHODS)
def test_data_weigh_errors(method):
    """Inputs that hardly vary may be represented badly; those that go together help out."""
    weight = weight_of(8, 8, 3, 3)
    covariance = torch.diag(torch.tensor([9.0] * 2 + [0.01] * 6, dtype=F64))
    if method == "separable":  # each input has kernels of its own, whatever its size
        covariance = identity(8) * 0.05 + 1
    outputs = torch.einsum("oi...,ij,pj...->op", weight, covariance, weight)

    def lost(basis):
        error = weight - composed(METHODS[method](weight, 4, basis))
        return float(torch.einsum("oi...,ij,oj...->", error, covariance, error))

    assert lost((covariance, outputs)) < 0.8 * lost(plain(weight))


def test_a_separable_layer_is_one():
    layer = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1))
    case = case_of(layer, 2, 8, 7, 7)
    program, _ = run_pass(by_work(method="separable", keep=0.4), case)
    depthwise, pointwise = (program.leaf(node) for node in program.find(nn.Conv2d))
    assert (depthwise.groups, depthwise.out_channels, depthwise.stride) == (8, 16, (2, 2))
    assert (pointwise.kernel_size, pointwise.in_channels) == ((1, 1), 16)
    assert pointwise.bias is not None


def test_a_sum_of_separable_layers_is_found():
    kernels, mixture = weight_of(8, 2, 3, 3), weight_of(12, 8, 2, seed=1)
    weight = torch.einsum("oir,irhw->oihw", mixture, kernels)
    found = composed(METHODS["separable"](weight, 2, plain(weight)))
    torch.testing.assert_close(found, weight, rtol=1e-8, atol=1e-8)


# -- ranks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "stride"), itertools.product(METHODS, [(1, 1), (2, 2), (1, 2)]))
def test_costs_are_those_of_the_layers(method, stride):
    weight = weight_of(12, 8, 3, 3)
    stages = METHODS[method](weight, 6, plain(weight))
    strides, total = list(stride), 0
    for stage in stages:
        for dim in stage.dims:
            strides[dim] = 1
        total += stage.weight.numel() * strides[0] * strides[1]
    layers = thin_layers(method, weight.shape, stride, 6)
    assert work(layers) == total
    assert [each.channels for each in layers] == [len(stage.weight) for stage in stages]


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_rank_is_the_last_that_fits(method):
    shape, strides = (32, 24, 3, 3), (1, 1)
    limit = 0.4 * 32 * 24 * 9
    rank = largest_rank(method, shape, strides, limit, step=1)

    def cost(rank):
        return work(thin_layers(method, shape, strides, rank))

    assert cost(rank) <= limit
    most = {"tucker": 32, "separable": 9}.get(method, 24)
    assert rank == most or cost(rank + 1) > limit
    rounded = largest_rank(method, shape, strides, limit, step=4)
    assert rounded == rank - rank % 4 or rank < 8


def test_methods_that_suit():
    assert [m for m in METHODS if suits(m, (8, 8))] == ["svd"]
    assert [m for m in METHODS if suits(m, (8, 8, 1, 1))] == ["svd"]
    assert [m for m in METHODS if suits(m, (8, 8, 3))] == ["svd", "tucker", "separable"]
    assert [m for m in METHODS if suits(m, (8, 8, 3, 3))] == list(METHODS)


# -- the pass --------------------------------------------------------------------------------


def net():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 3),
    )  # fmt: skip


NET = case_of(net(), 8, 3, 12, 12)


@pytest.mark.parametrize(
    "check",
    check_pass(
        by_work(), cases=[NET],
        expected_failures={"is_idempotent[case]": "thinner layers can be factorized again"},
    ),
    ids=str,
)  # fmt: skip
def test_conformance(check):
    check()


def drift(case, program):
    (wanted,), (got,) = case.outputs()[0], case.outputs(program)[0]
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("method", ["auto", "svd", "spatial", "tucker", "cp"])
@pytest.mark.parametrize("weighted", [False, True])
def test_fewer_products_at_some_drift(method, weighted):
    program, result = run_pass(by_work(method=method, weighted=weighted, round_to=1), NET)
    program.verify()
    assert 4 <= len(result.details["ranks"]) <= 5
    assert program.weight_bytes() < 0.65 * NET.program.weight_bytes()
    assert 0 < drift(NET, program) < (0.9 if weighted else 2.0)  # of random weights, half is lost
    assert all(
        y.shape == z.shape for (y,), (z,) in zip(NET.outputs(program), NET.outputs(), strict=True)
    )


def test_data_help():
    drifts = [drift(NET, run_pass(by_work(weighted=w), NET)[0]) for w in (True, False)]
    assert drifts[0] < 0.7 * drifts[1]


GEOMETRIES = {
    "stride": nn.Conv2d(16, 16, 3, stride=2, padding=1),
    "uneven stride": nn.Conv2d(16, 16, 3, stride=(1, 2), padding=(0, 1)),
    "dilation": nn.Conv2d(16, 16, 3, padding=2, dilation=2),
    "same": nn.Conv2d(16, 16, 3, padding="same"),
    "valid": nn.Conv2d(16, 16, 3, padding="valid"),
    "long kernel": nn.Conv2d(16, 16, (2, 5), padding=(1, 2)),
    "no bias": nn.Conv2d(16, 16, 3, bias=False),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry_is_kept(name):
    """A weight of low rank is represented exactly, whatever the geometry."""
    conv = GEOMETRIES[name]
    shape = conv.weight.shape
    torch.manual_seed(0)
    low = torch.einsum("o,i,h,w->oihw", *(torch.randn(size, dtype=F64) for size in shape))
    model = nn.Sequential(conv.double()).eval()
    with torch.no_grad():
        conv.weight.copy_(low)
    case = make_case("case", model, torch.randn(2, 16, 9, 8, dtype=F64))
    for method in ("svd", "spatial", "tucker"):
        program, result = run_pass(by_work(method=method, weighted=False), case)
        assert result.details["ranks"]
        assert drift(case, program) < 1e-9


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(16, 16, 3, groups=2), "has groups"),
        (nn.Conv2d(16, 16, 2, padding="same"), "pads unevenly"),
        (nn.Conv2d(16, 2, 1), "no rank keeps less"),
    ],
)
def test_refusals(layer, reason):
    case = case_of(nn.Sequential(layer), 2, 16, 8, 8)
    program, result = run_pass(by_work(keep=0.1), case)
    assert not result.changed
    assert reason in result.refused[0]
    assert program.fingerprint() == case.program.fingerprint()


def test_padding_by_other_values_is_refused():
    layer = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
    b = Builder(layer=layer)
    program = b.program(b.call("layer", b.input("x", 2, 16, 8, 8)))
    result = by_work().run(program, Context(find_target("cpu")))
    assert not result.changed
    assert "pads by reflect" in result.refused[0]


def test_weights_used_twice_stay():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return self.layer(self.layer(x).tanh())

    _, result = run_pass(by_work(), case_of(Twice(), 4, 16))
    assert not result.changed
    assert "used more than once" in result.refused[0]


def test_weights_that_two_layers_share_stay():
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    program, result = run_pass(by_work(), case_of(model, 4, 16))
    assert list(result.details["ranks"]) == ["3"]
    assert ["used more than once" in reason for reason in result.refused] == [True, True]
    tied = [program.leaf(node).weight for node in program.find(nn.Linear)][:2]
    assert tied[0] is tied[1]


def test_frozen_weights_have_frozen_factors():
    case = case_of(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), 4, 16)
    frozen = list(case.program.module.parameters())[:2]
    for parameter in frozen:
        parameter.requires_grad_(False)
    program, _ = run_pass(by_work(), case)
    layers = [program.leaf(node) for node in program.find(nn.Linear)]
    assert [layer.weight.requires_grad for layer in layers] == [False, False, True, True]
    assert [layer.bias.requires_grad for layer in layers[1::2]] == [False, True]


def test_there_may_be_nothing_to_do():
    case = case_of(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)), 2, 3, 4)
    reason = LowRank().inapplicable(case.program, case.context())
    assert reason == "there is no linear layer and no convolution"
    case = case_of(nn.Sequential(nn.Linear(16, 16)), 4, 16)
    program, result = run_pass(by_work(skip=("0",)), case)
    assert not result.changed
    assert program.fingerprint() == case.program.fingerprint()


def test_energy_chooses_the_rank():
    torch.manual_seed(0)
    layer = nn.Linear(40, 40).double()
    with torch.no_grad():
        u, _, v = torch.linalg.svd(layer.weight)
        layer.weight.copy_(u @ torch.diag(torch.tensor([3.0, 1.0] + [0.01] * 38, dtype=F64)) @ v)
    case = make_case("case", nn.Sequential(layer).eval(), torch.randn(8, 40, dtype=F64))
    for energy, rank in ((0.8, 1), (0.95, 2), (0.99, 2)):
        _, result = run_pass(by_work(energy=energy, weighted=False, round_to=1), case)
        assert result.details["ranks"] == {"0": rank}
    _, result = run_pass(by_work(energy=0.99999999, weighted=False, keep=0.1), case)
    assert not result.changed


def test_what_is_milder_than_an_energy_loses_less():
    """A larger ``keep`` would let the second layer lose its tenth, too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)).double().eval()
    for layer, steepness in zip(net, (1.0, 0.1), strict=True):
        with torch.no_grad():
            u, _, v = torch.linalg.svd(layer.weight)
            layer.weight.copy_(
                u @ torch.diag(torch.exp(-steepness * torch.arange(40))).double() @ v
            )
    case = make_case("case", net, torch.randn(64, 40, dtype=F64))
    item = by_work(keep=0.3, energy=0.9, weighted=False, round_to=1)
    settings = [item, *item.milder(case.program, case.context()).passes]
    assert len(settings) > 3
    records = [run([each], case.program, context=case.context()).records[0] for each in settings]
    drifts = [record.drift or 0.0 for record in records]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-1] < 0.2 * drifts[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_zeros_stays_one(method):
    layer = nn.Conv2d(8, 8, 3).double().eval()
    nn.init.zeros_(layer.weight)
    case = make_case("case", nn.Sequential(layer), torch.randn(2, 8, 6, 6, dtype=F64))
    program, result = run_pass(by_work(method=method, keep=0.9), case)
    assert result.changed
    (x,) = case.context().examples[0]
    assert torch.equal(program(x)[0], case.program(x)[0])


TWO_CORES = Target("cpu", torch.device("cpu"), 2, ("avx2", "avx512f"))
SIZES = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 512), nn.Linear(512, 512))


def test_by_predicted_latency_small_layers_stay():
    """One call more costs a small layer more time than thinner weights save."""
    case = case_of(SIZES, 64, 16)
    found = {
        cost: LowRank(cost=cost).run(case.program.clone(), Context(TWO_CORES)).details["ranks"]
        for cost in ("work", "latency")
    }
    assert set(found["work"]) == {"0", "2", "3"}
    assert set(found["latency"]) == {"3"}
    assert LowRank().run(case.program, Context(TWO_CORES)).details["ranks"] == found["latency"]
    assert 8 <= found["latency"]["3"] <= found["work"]["3"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_price_is_what_the_roofline_says_of_each_layer(method, stride):
    """Recomputed from the modules and tensors themselves."""
    layer = nn.Conv2d(96, 128, 3, stride, 1, bias=False)
    case = case_of(nn.Sequential(layer), 1, 96, 24, 24)
    target, program = TWO_CORES, case.program.clone()
    (before,) = case.program.find(nn.Conv2d)
    result = LowRank(cost="latency", method=method, keep=0.9).run(program, Context(target))
    rank = result.details["ranks"]["0"]
    layers = thin_layers(method, layer.weight.shape, layer.stride, rank)
    predicted, total = price_of("latency", before, target)(layers), 0.0
    for node in program.find(nn.Conv2d):
        leaf = program.leaf(node)
        moved = _numbers(node.args[0]) + leaf.weight.numel() + _numbers(node)
        outputs = leaf.out_channels
        each = _numbers(node) // outputs * leaf.weight.numel() / outputs
        total += Roofline.of(target).milliseconds(outputs, each, layer.weight.itemsize * moved)
    assert predicted == pytest.approx(total, rel=0.02)


def _numbers(node):
    sizes = node.meta["val"].shape
    return math.prod(size if isinstance(size, int) else size.node.hint for size in sizes)


def test_names_and_settings_are_checked():
    with pytest.raises(PassError, match="no such layer"):
        run_pass(by_work(skip=("typo",)), NET)
    for settings in ({"keep": 0.0}, {"keep": 0.95}, {"energy": 1.0}, {"round_to": 0}):
        with pytest.raises(ValueError, match="must"):
            LowRank(**settings)
    program, result = run_pass(by_work(skip=("0", "2")), NET)
    assert not {"0", "2"} & set(result.details["ranks"])
    assert program is not NET.program


def test_a_limit_is_kept_by_keeping_more():
    item = by_work(keep=0.3, round_to=1)
    free = run([item], NET.program, context=NET.context()).records[0]
    limit = 0.95 * free.drift  # random weights have no low rank: more hardly helps
    kept = run([item], NET.program, context=NET.context(), max_drift=limit).records[0]
    assert (free.status, kept.status) == ("applied", "applied")
    assert kept.drift <= limit
    assert "keep=0.3" in free.text
    assert "keep=0.3" not in kept.text
