"""Which layers cost the most in int8: estimated, against what is measured layer by layer."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt.pipeline import PassManager, plan
from fxopt.registry import default_registry
from fxopt_quantize import Quantize
from fxopt_quantize.sensitivity import few_samples, ranked, shares
from tests.plugins.quantize.support import CPU, quantized, relative


class Uneven(nn.Module):
    """Six convolutions; the third has large weights for a small channel, so coarse steps."""

    def __init__(self):
        super().__init__()
        widths = [3, 8, 8, 8, 8, 8, 8]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            for layer in self.layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            self.layers[1].weight[0] *= 0.01
            self.layers[2].weight[:, 0] *= 100

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x.mean((2, 3)))


def uneven(samples=16):
    torch.manual_seed(0)
    return Uneven().eval(), torch.randn(samples, 3, 10, 10)


def sensitivities(model, *batches, **settings):
    program = capture_program(model, (batches[0],), {}).clone()
    context = Context(CPU, calibration=Calibration(list(batches), program.signature))
    item = Quantize(**{"weight_bits": 8, **settings})
    return program, item.sensitivities(program, context)


def measured(model, x, name, names, **settings):
    """The squared relative output error with one layer in int8, and its input rounded."""
    others = tuple(other for other in names if other != name)
    program, _ = quantized(model, (x,), skip=others, **{"weight_bits": 8, **settings})
    return relative(program(x)[0], model(x)) ** 2


def test_estimates_are_close_to_what_each_layer_does_alone():
    model, x = uneven(32)
    x = x.relu()
    _program, found = sensitivities(model, x)
    names = [str(node.target) for node in found]
    assert names == [f"layers.{i}" for i in range(6)] + ["head"]
    for node, each in found.items():
        alone = measured(model, x, str(node.target), names)
        assert alone / 4 < each.error < alone * 4, node
    worst = max(found, key=lambda node: found[node].error)
    assert str(worst.target) == "layers.2"
    whole = relative(quantized(model, (x,), weight_bits=8)[0](x)[0], model(x))
    assert math.sqrt(sum(each.error for each in found.values())) == pytest.approx(whole, rel=0.5)


def test_arithmetic_and_moved_values_are_counted():
    model, x = uneven(4)
    _, found = sensitivities(model, x)
    by_name = {str(node.target): each.saving for node, each in found.items()}
    assert by_name["layers.0"] == 4 * 8 * 100 * 27 + 7 * (x.numel() + 4 * 8 * 100)
    assert by_name["layers.1"] == 4 * 8 * 100 * 72 + 7 * (4 * 8 * 100) * 2
    assert by_name["head"] == 4 * 5 * 8 + 7 * 4 * (8 + 5)


def test_the_worst_for_what_they_save_come_first_and_calls_add_up():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.once = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.once(self.twice(self.twice(x).relu()))

    torch.manual_seed(0)
    _, found = sensitivities(Net().eval(), torch.randn(8, 6))
    assert [str(node.target) for node in found] == ["twice", "twice", "once"]
    for each, error in zip(found.values(), (1.0, 2.0, 1.4), strict=True):
        each.error = error
    assert list(ranked(found)) == ["twice", "once"]
    costs = shares(ranked(found))
    assert costs["twice"] == pytest.approx((3.0 / 4.4, 2 / 3))
    assert costs["once"] == pytest.approx((1.4 / 4.4, 1 / 3))
    found[list(found)[2]].error = 1.6  # of half the arithmetic
    assert list(ranked(found)) == ["once", "twice"]


def test_weights_modes_and_gradients_are_as_before():
    model, x = uneven()
    model.layers[1].weight.requires_grad_(False)
    program, _ = sensitivities(model, x)
    asking = [name for name, p in program.module.named_parameters() if not p.requires_grad]
    assert asking == ["layers.1.weight"]
    assert all(p.grad is None for p in program.module.parameters())


def test_few_samples_of_few_batches():
    program = capture_program(nn.Linear(3, 3), (torch.randn(4, 3),), {})
    batches = [[torch.randn(size, 3)] for size in (20, 5, 9, 1, 7)]
    found = [(len(batch[0]), samples) for batch, samples in few_samples(program, batches)]
    assert found == [(8, 8), (5, 5), (8, 8), (1, 1)]


def test_integer_inputs_and_outputs_that_are_no_floats():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.first = nn.Embedding(20, 8), nn.Linear(8, 8)
            self.second = nn.Linear(8, 4)

        def forward(self, tokens):
            scores = self.second(self.first(self.embedding(tokens)).relu())
            return scores, scores.argmax(-1)

    torch.manual_seed(0)
    _, found = sensitivities(Tagger().eval(), torch.randint(0, 20, (6, 5)))
    assert all(0 < each.error < 1 for each in found.values())


def managed(model, x, item=None, **limits):
    program = capture_program(model, (x,), {})
    calibration = Calibration([x], program.signature)
    context = Context(CPU, [[x]], calibration=calibration)
    facts = default_registry().facts
    manager = PassManager(
        plan([item or Quantize(weight_bits=8)], facts, set(facts)), facts, context, **limits
    )
    return manager.run(program)


def test_a_drift_is_kept_by_leaving_few_layers_in_float():
    model, x = uneven()
    free = managed(model, x).records[0]
    record = managed(model, x, max_drift=free.drift * 0.4).records[0]
    assert record.status == "applied"
    assert record.drift <= free.drift * 0.4
    skipped = [line.split(":")[0] for line in record.refused]
    assert any("layers_2" in name for name in skipped)
    assert 1 <= len(skipped) <= 3
    assert record.summary.startswith(f"{7 - len(skipped)} layers int8")
    assert "is allowed" in record.details["milder"]
    table = record.details["costs"]
    assert len(table) == 7
    assert sum(error for error, _ in table.values()) == pytest.approx(1)
    ratios = [error / saving for error, saving in table.values()]
    assert ratios == sorted(ratios, reverse=True)
    assert table["layers.2"][0] == max(error for error, _ in table.values())


def test_a_limit_that_no_layer_keeps():
    model, x = uneven()
    record = managed(model, x, max_drift=1e-7).records[0]
    assert record.status == "rolled back"
    assert "of its milder settings" in record.reason


def test_measured_is_what_each_layer_does_alone():
    model, x = uneven()
    program = capture_program(model, (x,), {}).clone()
    context = Context(CPU, calibration=Calibration([x[:8]], program.signature))
    plain = Quantize(weight_bits=8, bias_correction=False)
    found = replace(plain, sensitivity="measured").sensitivities(program, context)
    names = [str(node.target) for node in found]
    assert names == [f"layers.{i}" for i in range(6)] + ["head"]
    for node, each in found.items():
        alone = measured(model, x[:8], str(node.target), names, bias_correction=False)
        # the mean before the head has the grid of what it is taken of, if that is rounded too
        assert each.error == pytest.approx(alone, rel=0.03 if node.target == "head" else 1e-4), node
    estimated = plain.sensitivities(program, context)
    assert [each.saving for each in estimated.values()] == [e.saving for e in found.values()]


def test_measured_sensitivities_choose_what_stays_in_float():
    model, x = uneven()
    free = managed(model, x).records[0]
    item = Quantize(sensitivity="measured", weight_bits=8)
    record = managed(model, x, item, max_drift=free.drift * 0.4).records[0]
    assert record.status == "applied"
    assert "layers.2" in list(record.details["costs"])[:2]


class Outliers(nn.Module):
    """A channel behind the first layer norm is 60 times as large as the others."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        with torch.no_grad():
            self.norms[0].weight[3] = 60.0

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(norm(x))
        return x


@pytest.mark.parametrize(
    ("rounding", "bias_correction"), [("nearest", True), ("gptq", False), ("gptq", True)]
)
def test_what_is_measured_is_what_runs(rounding, bias_correction):
    torch.manual_seed(0)
    model, x = Outliers().eval(), torch.randn(8, 5, 16)
    settings = {"rounding": rounding, "bias_correction": bias_correction, "weight_bits": 4}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    program, found = sensitivities(model, x, sensitivity="measured", **settings)
    assert all(torch.equal(before[n], value) for n, value in program.module.state_dict().items())
    assert set(found) == set(program.find(nn.Linear))
    names = [str(node.target) for node in found]
    for node, each in found.items():
        alone = measured(model, x, str(node.target), names, **settings)
        assert each.error == pytest.approx(alone, rel=1e-3), node


@pytest.mark.parametrize(
    "settings", [{"smoothing": 0.0}, {"smoothing": "auto"}, {"equalization": "weights"}], ids=str
)
def test_what_layers_cost_adds_up_to_what_all_cost_after_factors_moved(settings):
    torch.manual_seed(0)
    model, x = uneven(32) if "equalization" in settings else (Outliers(), torch.randn(8, 5, 16))
    _, found = sensitivities(model, x, **settings)
    whole = relative(quantized(model, (x,), weight_bits=8, **settings)[0](x)[0], model(x))
    total = math.sqrt(sum(each.error for each in found.values()))
    assert total == pytest.approx(whole, rel=0.5)


def test_adaround_is_estimated_by_gptq():
    model, x = uneven()
    (_, found), (_, quick) = (
        sensitivities(model, x, rounding=rounding) for rounding in ("adaround", "gptq")
    )
    assert [each.error for each in found.values()] == [each.error for each in quick.values()]
