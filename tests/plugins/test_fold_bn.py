"""fold_bn: every case of the matcher by hand, with the reason where it refuses."""

import copy

import pytest
import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.errors import ProgramError
from fxopt.passes import Context
from fxopt.testing import check_pass, make_case, run_pass, worst_error
from fxopt.testing.reference import randomize
from fxopt_fold_bn import FACTS, FoldBN
from fxopt_fold_bn.match import unfolded
from tests.building import Builder, aten

F64 = torch.float64
CONTEXT = Context(find_target("cpu"))


def randomized(model):
    torch.manual_seed(0)
    return randomize(model.double()).eval()


def case_of(model, *shape):
    torch.manual_seed(1)
    return make_case("case", randomized(model), torch.randn(*shape, dtype=F64))


def norms_in(program):
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return [node.name for node in program.find(*kinds)]


def folded(model, *shape, left=0):
    """Runs the pass; checks the numbers, and that ``left`` norms remain which could not go."""
    case = case_of(model, *shape)
    assert case.program.signature.batch
    before = case.program.fingerprint()
    program, result = run_pass(FoldBN(), case)
    program.verify()
    assert case.program.fingerprint() == before
    assert worst_error(case, program) < 1e-12
    assert len(norms_in(program)) == left
    assert result.details["folded"] == len(norms_in(case.program)) - left
    assert FACTS[0].holds(program)
    return program, result


def refused(model, *shape, count=1):
    """The reasons, where nothing is folded."""
    case = case_of(model, *shape)
    program, result = run_pass(FoldBN(), case)
    assert not result.changed
    assert program.fingerprint() == case.program.fingerprint()
    assert len(result.refused) == count
    assert FACTS[0].holds(program)
    return " | ".join(result.refused)


class Calls(nn.Module):
    """A model from modules and a function of them and the input."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


AFTER = {
    "conv1d": (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
    "conv2d": (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), (2, 3, 5, 5)),
    "conv3d": (nn.Conv3d(3, 4, 2, stride=2), nn.BatchNorm3d(4), (2, 3, 4, 4, 4)),
    "without bias": (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), (2, 4, 5, 5)),
    "same, dilated": (
        nn.Conv2d(3, 4, 3, padding="same", dilation=2),
        nn.BatchNorm2d(4),
        (2, 3, 7, 7),
    ),
    "transposed1d": (nn.ConvTranspose1d(3, 4, 3, stride=2), nn.BatchNorm1d(4), (2, 3, 5)),
    "transposed2d": (
        nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1),
        nn.BatchNorm2d(5),
        (2, 3, 4, 4),
    ),
    "transposed3d": (nn.ConvTranspose3d(2, 3, 2), nn.BatchNorm3d(3), (2, 2, 3, 3, 3)),
    "grouped transposed": (
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
        nn.BatchNorm2d(6),
        (2, 4, 4, 4),
    ),
    "linear": (nn.Linear(5, 4), nn.BatchNorm1d(4), (3, 5)),
    "linear without bias": (nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), (3, 5)),
    "not affine": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), (2, 3, 5, 5)),
    "large eps": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.5), (2, 3, 5, 5)),
    "synchronized": (nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", AFTER)
def test_a_norm_after_a_layer_folds(name):
    layer, norm, shape = AFTER[name]
    program, result = folded(nn.Sequential(layer, norm), *shape)
    assert result.summary == "1 folded"
    assert len(program.nodes) == 3
    # under the user's own name, in the same class and with the same settings
    kept = program.module.get_submodule("0")
    assert type(kept) is type(layer)
    assert kept.bias is not None
    assert "1.weight" not in program.module.state_dict()


def test_the_norm_left_out_in_part_of_its_affine():
    norm = nn.BatchNorm2d(4)
    norm.bias = None  # as the PyTorch forums suggest for a scale without shift
    folded(nn.Sequential(nn.Conv2d(3, 4, 1), norm), 2, 3, 4, 4)


BEFORE = {
    "conv without padding": (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), (2, 3, 5, 5)),
    "valid": (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 5, 5)),
    "same with one tap": (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, padding="same"), (2, 3, 5, 5)),
    "grouped": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 5, 5)),
    "depthwise": (nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
    "conv1d": (nn.BatchNorm1d(3), nn.Conv1d(3, 4, 3, stride=2), (2, 3, 8)),
    "conv3d": (nn.BatchNorm3d(2, affine=False), nn.Conv3d(2, 4, 2), (2, 2, 3, 3, 3)),
    "linear": (nn.BatchNorm1d(5), nn.Linear(5, 4), (3, 5)),
    "linear without bias": (nn.BatchNorm1d(5), nn.Linear(5, 4, bias=False), (3, 5)),
    "transposed with one tap, cropped": (
        nn.BatchNorm2d(3),
        nn.ConvTranspose2d(3, 4, 1, padding=1),
        (2, 3, 5, 5),
    ),
    "transposed with one tap": (
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 6, 1, groups=2),
        (2, 4, 3, 3),
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_norm_before_a_layer_folds(name):
    norm, layer, shape = BEFORE[name]
    program, _ = folded(nn.Sequential(norm, layer), *shape)
    assert len(program.nodes) == 3
    assert type(program.module.get_submodule("1")) is type(layer)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "zeros"])
def test_padding_with_the_values_themselves_commutes_with_a_norm(mode):
    # capture makes such padding an operation of its own, but another pass may make such a layer
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    b = Builder(bn=randomized(nn.BatchNorm2d(3)), conv=randomized(conv))
    x = b.input("x", 2, 3, 5, 5, dtype=F64)
    program = b.program(b.call("conv", b.call("bn", x)))
    inputs = torch.randn(2, 3, 5, 5, dtype=F64)
    expected = program(inputs)[0]
    result = FoldBN().run(program, CONTEXT)
    assert result.changed is (mode != "zeros")
    assert torch.allclose(program(inputs)[0], expected, rtol=1e-11, atol=1e-12)


REFUSED = {
    "before a transposed with outputs that see nothing": (
        nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 1, dilation=2, output_padding=1)),
        (2, 3, 5, 5),
        "different numbers of taps",
    ),
    "zeros in the padding": (
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
        (2, 3, 5, 5),
        "pads with zeros",
    ),
    "same padding": (
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding="same")),
        (2, 3, 5, 5),
        "pads with zeros",
    ),
    "relu between": (
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)),
        (2, 3, 5, 5),
        "between the input %input_1 and relu.default",
    ),
    "before a transposed": (
        nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 2)),
        (2, 3, 5, 5),
        "different numbers of taps",
    ),
    "before a strided transposed with one tap": (
        nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 1, stride=2)),
        (2, 3, 5, 5),
        "different numbers of taps",
    ),
    "before a cropping transposed": (
        nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 3, padding=1)),
        (2, 3, 5, 5),
        "different numbers of taps",
    ),
    "no statistics": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        (2, 3, 5, 5),
        "has no running statistics",
    ),
    "linear on rows of rows": (
        nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(4)),
        (2, 4, 6),
        "dimension 2 of 3",
    ),
    "linear with as many features as rows": (
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)),
        (2, 4, 6),
        "the channels of the Linear %_0 are dimension 2 of 3",
    ),
    "before a linear on rows of rows": (
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5)),
        (2, 4, 4),
        "dimension 2 of 3",
    ),
    "alone": (
        nn.Sequential(nn.BatchNorm2d(3)),
        (2, 3, 5, 5),
        "between the input %input_1 and the output",
    ),
    "after a concatenation": (
        Calls(lambda m, x: torch.relu(m.bn(torch.cat([x, x], 1))), bn=nn.BatchNorm2d(6)),
        (2, 3, 5, 5),
        "between cat.default",
    ),
    "convolution used by others": (
        Calls(
            lambda m, x: m.bn(y := m.conv(x)) + y,
            conv=nn.Conv2d(3, 4, 3),
            bn=nn.BatchNorm2d(4),
        ),
        (2, 3, 5, 5),
        "%conv has 1 other user, so that a folded copy would compute it twice",
    ),
    "norm used by others": (
        Calls(
            lambda m, x: m.conv(y := m.bn(x)) + y,
            bn=nn.BatchNorm2d(3),
            conv=nn.Conv2d(3, 3, 1),
        ),
        (2, 3, 5, 5),
        "between the input %x and add.Tensor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_fold_is_refused_with_a_reason(name):
    model, shape, reason = REFUSED[name]
    assert reason in refused(model, *shape)


def test_an_image_without_a_batch_is_refused():
    # one image: the convolution's channels come first, and the norm takes the rows for channels
    b = Builder(conv=nn.Conv2d(2, 4, 3, padding=1), bn=nn.BatchNorm1d(4))
    b.module.eval()
    image = b.call(aten.select.int, b.input("x", 2, 2, 4, 5), 0, 0)
    program = b.program(b.call("bn", b.call("conv", image)))
    result = FoldBN().run(program, CONTEXT)
    assert not result.changed
    assert "dimension 0: it has no batch" in result.refused[0]


def test_training_mode_is_refused():
    b = Builder(conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4))
    program = b.program(b.call("bn", b.call("conv", b.input("x", 2, 3, 4, 4))))
    program.module.bn.train()
    result = FoldBN().run(program, CONTEXT)
    assert not result.changed
    assert result.refused == ("bn: is in training mode",)


def test_one_layer_with_a_norm_per_call_folds_into_two():
    model = Calls(
        lambda m, x: m.second(m.conv(torch.relu(m.first(m.conv(x))))),
        conv=nn.Conv2d(3, 3, 3, padding=1),
        first=nn.BatchNorm2d(3),
        second=nn.BatchNorm2d(3),
    )
    program, _ = folded(model, 2, 3, 5, 5)
    first, second = (program.leaf(node) for node in program.find(nn.Conv2d))
    assert first is not second
    assert not torch.equal(first.weight, second.weight)


def test_one_layer_with_one_norm_for_all_calls_stays_shared():
    model = Calls(
        lambda m, x: m.bn(m.conv(torch.relu(m.bn(m.conv(x))))),
        conv=nn.Conv2d(3, 3, 3, padding=1),
        bn=nn.BatchNorm2d(3),
    )
    program, result = folded(model, 2, 3, 5, 5)
    first, second = (program.leaf(node) for node in program.find(nn.Conv2d))
    assert first is second
    assert result.details["folded"] == 2


def test_one_norm_after_several_layers_folds_into_each():
    model = Calls(
        lambda m, x: m.bn(m.a(x)) * torch.sigmoid(m.bn(m.b(x))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 3, padding=1),
        bn=nn.BatchNorm2d(4),
    )
    folded(model, 2, 3, 5, 5)


def test_a_norm_before_several_layers_folds_into_all():
    model = Calls(
        lambda m, x: m.a(y := m.bn(x)) + m.b(y),
        bn=nn.BatchNorm2d(3),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 1, bias=False),
    )
    folded(model, 2, 3, 5, 5)


def test_a_norm_before_several_layers_folds_into_all_or_none():
    model = Calls(
        lambda m, x: m.a(y := m.bn(x)) + m.b(y),
        bn=nn.BatchNorm2d(3),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 3, padding=1),
    )
    assert "%b after it pads with zeros" in refused(model, 2, 3, 5, 5)


def test_where_the_layer_before_is_shared_the_one_after_takes_the_norm():
    model = Calls(
        lambda m, x: (y := m.a(x), m.b(m.bn(y))),
        a=nn.Conv2d(3, 4, 1),
        bn=nn.BatchNorm2d(4),
        b=nn.Conv2d(4, 2, 3),
    )
    folded(model, 2, 3, 5, 5)


def test_chains_of_norms_fold_one_by_one():
    layers = [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    program, result = folded(nn.Sequential(*layers), 2, 3, 5, 5)
    assert result.details["folded"] == 3
    assert len(program.nodes) == 3


def test_a_chain_of_norms_before_a_layer_folds_too():
    layers = [nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)]
    folded(nn.Sequential(*layers), 2, 3, 5, 5)


def test_a_tied_weight_elsewhere_is_left_alone():
    model = Calls(
        lambda m, x: m.bn(m.a(x)) + m.b(x),
        a=nn.Linear(4, 4),
        bn=nn.BatchNorm1d(4),
        b=nn.Linear(4, 4),
    )
    model.b.weight = model.a.weight
    program, _ = folded(model, 3, 4)
    assert program.module.a.weight is not program.module.b.weight
    assert torch.equal(program.module.b.weight, model.b.weight)


@pytest.mark.parametrize("first", [True, False], ids=["norm after", "norm before"])
def test_a_weight_that_is_read_by_itself_is_left_alone(first):
    b = Builder(lin=nn.Linear(4, 4), bn=nn.BatchNorm1d(4))
    x = b.input("x", 3, 4)
    y = b.call("bn", b.call("lin", x)) if first else b.call("lin", b.call("bn", x))
    penalty = b.call(aten.mul.Tensor, b.attribute("lin.weight"), 2.0)
    program = b.program(b.call(aten.mm.default, y, penalty))
    randomize(program.module)
    inputs = torch.randn(3, 4)
    expected = program(inputs)[0]
    twin = program.clone()
    assert FoldBN().run(twin, CONTEXT).changed
    twin.verify()
    assert torch.allclose(twin(inputs)[0], expected, rtol=1e-4, atol=1e-5)


def test_one_module_under_two_names_keeps_its_weights():
    conv = nn.Conv2d(3, 3, 1)
    b = Builder(a=conv, alias=conv, bn=nn.BatchNorm2d(3))
    x = b.input("x", 2, 3, 4, 4)
    program = b.program(b.call("bn", b.call("a", x)), b.call("alias", x))
    randomize(program.module)
    inputs = torch.randn(2, 3, 4, 4)
    expected = program(inputs)
    twin = program.clone()
    assert FoldBN().run(twin, CONTEXT).changed
    for mine, theirs in zip(twin(inputs), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_layer_with_a_hook_is_no_plain_layer():
    b = Builder(conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3))
    program = b.program(b.call("bn", b.call("conv", b.input("x", 2, 3, 4, 4))))
    program.module.conv.register_forward_hook(lambda module, args, output: output * 2)
    result = FoldBN().run(program, CONTEXT)
    assert not result.changed
    assert "not beside a convolution" in result.refused[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_folds_in_float64(dtype):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    randomize(nn.ModuleList([conv, norm]))
    norm.running_var.uniform_(1e-4, 1e-2)
    b = Builder(conv=conv.to(dtype), bn=norm)  # statistics stay in float32
    program = b.program(b.call("bn", b.call("conv", b.input("x", 2, 8, 6, 6, dtype=dtype))))
    x = torch.randn(2, 8, 6, 6, dtype=F64)
    exact = copy.deepcopy(nn.Sequential(conv, norm)).double().eval()(x)
    twin = program.clone()
    assert FoldBN().run(twin, CONTEXT).changed
    kept = twin.module.conv
    assert kept.weight.dtype == kept.bias.dtype == dtype
    # one rounding per weight, and no more
    scale = (norm.weight.double() / (norm.running_var + norm.eps).sqrt()).detach()
    ideal = conv.weight.double() * scale[:, None, None, None]
    assert torch.equal(kept.weight, ideal.to(dtype))
    assert ((kept.double()(x) - exact).norm() / exact.norm()) < torch.finfo(dtype).eps


def test_an_overflow_is_refused():
    conv, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    randomize(nn.ModuleList([conv, norm]))
    norm.weight.data.fill_(3e4)
    norm.running_var.fill_(1e-4)
    b = Builder(conv=conv.half(), bn=norm)
    program = b.program(b.call("bn", b.call("conv", b.input("x", 2, 3, 4, 4, dtype=torch.half))))
    result = FoldBN().run(program, CONTEXT)
    assert not result.changed
    assert result.refused == ("bn: the weights of %conv would not be finite in float16",)


def test_what_was_frozen_stays_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False)
    program, _ = folded(model, 2, 3, 5, 5)
    assert not any(p.requires_grad for p in program.module.parameters())


def test_the_fact_lists_what_could_be_folded():
    case = case_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 2, 3, 5, 5)
    assert list(unfolded(case.program)) == ["%_1 could be folded into %_0"]


def test_it_says_when_there_is_no_norm():
    case = case_of(nn.Sequential(nn.Conv2d(3, 4, 3)), 2, 3, 5, 5)
    assert FoldBN().inapplicable(case.program, case.context()) == "no batch norm"


@pytest.mark.parametrize("limit", range(4))
def test_a_limit_leaves_whole_folds(limit):
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)]
    model = nn.Sequential(nn.BatchNorm2d(3), *layers, nn.BatchNorm2d(4))
    case = case_of(model, 2, 3, 5, 5)
    program = case.program.clone()
    program.rewrite_limit = limit
    result = FoldBN().run(program, case.context())
    assert len(result.rewrites) == limit
    assert len(norms_in(program)) == 3 - limit
    assert worst_error(case, program) < 1e-12


MUTATIONS = {
    "another eps": lambda norm: setattr(norm, "eps", norm.eps * 1.5),
    "no mean": lambda norm: norm.running_mean.zero_(),
    "no gamma": lambda norm: norm.weight.data.fill_(1),
    "no beta": lambda norm: norm.bias.data.zero_(),
    "no variance": lambda norm: norm.running_var.fill_(1),
}


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("order", [1, -1], ids=["after", "before"])
def test_the_comparison_would_notice(name, order):
    """The bound on the error is tight: were a term of the fold wrong, it would be broken."""
    layers = [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, eps=1e-3)][::order]
    case = case_of(nn.Sequential(*layers), 2, 4, 5, 5)
    program = case.program.clone()
    norm = next(program.leaf(node) for node in program.find(nn.BatchNorm2d))
    MUTATIONS[name](norm)
    FoldBN().run(program, case.context())
    assert worst_error(case, program) > 1e-5


def test_the_editor_would_notice_a_wrong_shape():
    b = Builder(conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4))
    with pytest.raises(ProgramError):
        b.call("bn", b.input("x", 2, 3, 4, 4))


@pytest.mark.parametrize("check", check_pass(FoldBN()), ids=str)
def test_conformance(check):
    check()
