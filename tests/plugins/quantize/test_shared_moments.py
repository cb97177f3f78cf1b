"""Second moments are kept once for all weights that take the same, and not all at a time."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_quantize import FakeQuantize, Quantize, QuantizeWeights, adaround, shared_means
from fxopt_quantize.calibrate import observe
from fxopt_quantize.layers import LayerFactory
from fxopt_quantize.means import RunningMean
from fxopt_quantize.moments import InputMoments
from fxopt_quantize.weight_only.moments import LinearMoments
from tests.plugins.quantize.support import CPU

PASSES = {
    "gptq": Quantize(rounding="gptq", weight_bits=4, least_saving=0),
    "adaround": Quantize(rounding="adaround", weight_bits=4, least_saving=0),
    "weights": QuantizeWeights(rounding="gptq", bits=3, group=8, eight_bits=("tied",)),
}


class Mixed(nn.Module):
    """Convolutions of one image, attention, and weights that take more than one value."""

    def __init__(self, width=16):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, width, 3), nn.Conv2d(3, width, 3)
        self.apart = nn.Conv2d(3, width, 3, dilation=2, padding=1)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.table = nn.Linear(width, width)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.table.weight
        self.twice, self.head = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x):
        x = (self.one(x) * self.other(x).sigmoid() + self.apart(x)).flatten(2).mT
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        x = self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        x = self.tied(self.table(x).relu()).relu()
        return self.head(self.twice(self.twice(x).relu()).relu())


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(adaround, "_STEPS", 50)


def mixed():
    torch.manual_seed(0)
    return Mixed().eval(), [(torch.randn(4, 3, 7, 7),) for _ in range(3)]


def rounded(item):
    """What the pass makes of the model's weights, and what it says on the way."""
    model, batches = mixed()
    program, said = capture_program(model, batches[0], {}).clone(), []
    calibration = Calibration(batches, program.signature)
    item.run(program, Context(CPU, calibration=calibration, progress=said.append))
    program.verify()
    return program.module.state_dict(), said


@pytest.mark.parametrize("name", PASSES)
def test_weights_are_the_same_in_one_part_and_in_many(name, monkeypatch):
    whole, said = rounded(PASSES[name])
    assert {each for each in said if each.startswith("gathering moments: ")}
    monkeypatch.setattr(shared_means, "BUDGET", 1)
    parts, said = rounded(PASSES[name])
    assert any(each.startswith("gathering moments, part 1 of") for each in said)
    assert whole.keys() == parts.keys()
    for key, tensor in whole.items():
        assert torch.equal(tensor, parts[key]), key


@pytest.mark.parametrize("name", PASSES)
def test_memory_stays_within_the_budget(name, monkeypatch):
    matrix, conv = 16 * 16 * 4, 27 * 27 * 4
    most = held_at_most(PASSES[name], monkeypatch)
    convs = 0 if name == "weights" else 2 * conv  # two of three take the same
    assert most == convs + 5 * matrix  # so do q, k and v; table and tied have one weight
    monkeypatch.setattr(shared_means, "BUDGET", 2 * matrix)
    assert held_at_most(PASSES[name], monkeypatch) == max(2 * matrix, min(convs, conv))


def held_at_most(item, monkeypatch):
    """Bytes of second moments that are held at a time."""
    held, most, update = [], 0, RunningMean.update

    def counting(self, mean, count):
        nonlocal held, most
        update(self, mean, count)
        if self.value.dim() > 1:
            held = [each for each in held if each() is not None] + [weakref.ref(self.value)]
            most = max(most, sum(each().nbytes for each in held))

    with monkeypatch.context() as patch:
        patch.setattr(RunningMean, "update", counting)
        rounded(item)
    return most


def test_each_weight_has_the_moments_of_what_its_layers_take():
    model, batches = mixed()
    program, factory = capture_program(model, batches[0], {}), LayerFactory()
    nodes = list(program.find(nn.Linear, nn.Conv2d))
    layers = {node: factory.quantized(program.leaf(node)) for node in nodes}
    weights = {node: program.leaf(node).weight for node in nodes}
    fine, coarse = FakeQuantize(0.02, 128), FakeQuantize(0.2, 128)
    roundings = {node: coarse if str(node.target) == "k" else fine for node in nodes}

    def found(layers):
        watch = InputMoments(layers, roundings)
        seen(program, batches, watch)
        return {each.layers[0].weight_values: each.moments for each in watch.found(weights)}

    shared = found(layers)
    alone = {}
    for weight in shared:
        alone |= found({n: layer for n, layer in layers.items() if layer.weight_values is weight})
    assert len(shared) == len(alone) == 10
    assert all(torch.equal(moments, alone[weight]) for weight, moments in shared.items())
    of = {str(node.target): shared[layer.weight_values] for node, layer in layers.items()}
    assert of["q"] is of["v"]
    assert of["one"] is of["other"]
    assert of["table"] is of["tied"]
    assert len({id(moments) for moments in of.values()}) == 8


def test_floats_that_several_layers_take_have_one_matrix():
    model, batches = mixed()
    program = capture_program(model, batches[0], {})
    nodes = list(program.find(nn.Linear))
    watch = LinearMoments(program, nodes)
    seen(program, batches, watch)
    found = watch.found()
    assert found[model.q.weight] is found[model.k.weight]
    assert found[model.q.weight] is found[model.v.weight]
    assert len({id(moments) for moments in found.values()}) == 5
    for weight, moments in found.items():
        alone = LinearMoments(program, [n for n in nodes if program.leaf(n).weight is weight])
        seen(program, batches, alone)
        assert torch.equal(alone.found()[weight], moments)


def seen(program, batches, watch):
    data = [list(batch) for batch in batches]
    observe(program, data, watch, samples=100, progress=len, task="", remedy=str)
