"""Quantization-aware training: gradients of the paper, and a program that is what was trained."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxopt.cost import find_target
from fxopt.errors import PassError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt.training import Trainer, Training
from fxopt_quantize import FakeQuantize, Quantize
from fxopt_quantize.lsq import LearnedWeight, learned_rounding
from fxopt_quantize.modules import QuantLayer
from tests.plugins.quantize.support import modules, plain_name, relative


@pytest.mark.parametrize("zero_point", [0, 128, 37])
def test_values_are_those_of_fake_quantize(zero_point):
    torch.manual_seed(0)
    x = torch.randn(4, 100)
    step = torch.tensor(0.013)
    expected = torch.fake_quantize_per_tensor_affine(x, 0.013, zero_point, 0, 255)
    assert torch.equal(learned_rounding(x, step, zero_point, 0, 255, 4), expected)


def test_gradients_are_those_of_the_paper():
    torch.manual_seed(0)
    x = torch.randn(3, 50, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 50, dtype=torch.float64)
    low, high = -4, 3
    (learned_rounding(x, step, 0, low, high, 1) * upstream).sum().backward()

    ratio = (x / step).detach()
    inside = (low < ratio) & (ratio < high)
    torch.testing.assert_close(x.grad, upstream * inside)
    # equation 3 of the paper, and the scale of section 2.2
    own = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))
    scale = 1 / math.sqrt(x.numel() * high)
    torch.testing.assert_close(step.grad, (own * upstream).sum() * scale)


def test_weights_learn_on_one_step_a_channel():
    torch.manual_seed(0)
    weight = torch.randn(5, 7)
    learned = LearnedWeight(weight, weight.abs().amax(1, keepdim=True) / 7, 7)
    assert learned().unique().numel() > 15
    torch.testing.assert_close(learned(), learned.integers() * learned.step)
    learned().square().sum().backward()
    assert learned.master.grad.shape == weight.shape
    assert learned.step.grad.shape == (5, 1)
    assert learned.step.grad.abs().min() > 0


class Blobs(nn.Module):
    """A CNN with a residual sum, concatenation, a shared layer and a tied weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
        self.two.weight = self.one.weight
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 4)

    def forward(self, x):
        y = self.stem(x).relu()
        x = y + self.shared(self.shared(y).relu()).relu()
        # no averages: those of rounded values lie half-way between others
        x = torch.cat([F.max_pool2d(x, 4), F.max_pool2d(y, 4)], 1).flatten(1)
        return self.head(self.norm(self.two(self.one(x).relu())))


def blobs(count=512):
    """Images of one of four corners, noisy."""
    torch.manual_seed(1)
    labels = torch.randint(4, (count,))
    x = 0.7 * torch.randn(count, 1, 8, 8)
    for image, label in zip(x, labels, strict=True):
        row, column = 4 * (int(label) // 2), 4 * (int(label) % 2)
        image[0, row : row + 4, column : column + 4] += 0.5
    return x, labels


def batches(size=32, dtype=torch.float32):
    x, labels = blobs()
    return list(zip(x.to(dtype).split(size), labels.split(size), strict=True))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = Blobs()
    program = capture_program(model.eval(), (blobs(8)[0],), {}).clone()
    Trainer(Training(batches(), epochs=6, learning_rate=3e-3)).train(program)
    return program


def context(program, training=None):
    dtype = next(program.module.parameters()).dtype
    calibration = Calibration([x for x, _ in batches(dtype=dtype)[:4]], program.signature)
    trainer = None if training is None else Trainer(training)
    return Context(find_target("cpu"), calibration=calibration, training=trainer)


def loss(program):
    x, labels = blobs()
    with torch.no_grad():
        return float(F.cross_entropy(program(x)[0], labels))


def quantized(trained, data=None, **fields):
    program = trained.clone()
    fields = {"weight_bits": 2, "training": "off" if data is None else "lsq", **fields}
    result = Quantize(**fields).run(program, context(program, data))
    program.verify()
    return program, result


def layers(program):
    return {plain_name(node): program.leaf(node) for node in program.find(QuantLayer)}


def test_training_brings_back_what_few_bits_cost(trained):
    before, static = loss(trained), loss(quantized(trained)[0])
    training = Training(batches(), epochs=6, learning_rate=3e-3)
    program, result = quantized(trained, training)
    assert static > before + 0.05
    assert loss(program) < before + 0.3 * (static - before)
    assert "trained for 6 epochs" in result.summary


def test_without_labels_the_outputs_are_learned(trained):
    inputs = [x for x, _ in batches()]
    x, _ = blobs()
    static, _ = quantized(trained)
    program, _ = quantized(trained, Training(inputs, loss=None, epochs=6, learning_rate=3e-3))
    with torch.no_grad():
        wanted = trained(x)[0]
        assert relative(program(x)[0], wanted) < 0.6 * relative(static(x)[0], wanted)


def test_what_was_trained_is_what_comes_out(monkeypatch):
    torch.manual_seed(0)
    inputs = blobs()[0].double()
    in_double = capture_program(Blobs().double().eval(), (inputs,), {})
    seen = {}
    train = Trainer.train

    def watching(self, program, **options):
        result = train(self, program, **options)
        with torch.no_grad():
            seen["outputs"] = program(inputs)[0]  # while weights and steps are parameters
        return result

    monkeypatch.setattr(Trainer, "train", watching)
    training = Training(batches(dtype=torch.float64), epochs=1, learning_rate=1e-3)
    program, _ = quantized(in_double, training)
    with torch.no_grad():
        difference = (program(inputs)[0] - seen["outputs"]).abs()
    # torch keeps scales of activations in float32: what lies half-way may be rounded otherwise
    assert (difference > 1e-6).any(1).double().mean() < 0.01
    assert all(leaf.step is None for leaf in modules(program, FakeQuantize))
    assert not any(parameter.requires_grad for leaf in modules(program, QuantLayer)
                   for parameter in leaf.parameters())  # fmt: skip


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "adaround"])
def test_training_begins_at_the_integers_that_were_chosen(trained, rounding, monkeypatch):
    monkeypatch.setattr("fxopt_quantize.adaround._STEPS", 50)  # any integers will do
    settings = {"rounding": rounding, "weight_bits": 4}
    static, _ = quantized(trained, **settings)
    nearest = layers(quantized(trained, weight_bits=4)[0])
    others = [not torch.equal(layer.weight_values, nearest[name].weight_values)
              for name, layer in layers(static).items()]  # fmt: skip
    assert any(others) == (rounding != "nearest")
    still, _ = quantized(trained, Training(batches(), epochs=1, learning_rate=0.0), **settings)
    expected, found = layers(static), layers(still)
    for name, layer in expected.items():
        assert torch.equal(found[name].weight_values, layer.weight_values), name
        assert torch.equal(found[name].weight_scale, layer.weight_scale), name
        assert torch.equal(found[name].bias, layer.bias), name
    x, _ = blobs()
    with torch.no_grad():
        assert relative(still(x)[0], static(x)[0]) < 1e-6


def test_chosen_integers_move_no_other_weight():
    torch.manual_seed(0)
    weight, step = torch.randn(5, 7), torch.full((5, 1), 0.2)
    learned = LearnedWeight(weight, step, 7)
    chosen = learned.integers()
    chosen[2, 3] += 3
    learned.begin_at(chosen)
    assert torch.equal(learned.integers(), chosen)
    assert (learned.master != weight).nonzero().tolist() == [[2, 3]]


class PreActivated(nn.Module):
    """Norms in front of convolutions, which cannot be folded, and dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv(self.norm(x).relu())
        return self.head(self.drop(x.amax((2, 3))))


def test_norms_that_are_not_folded_keep_their_statistics():
    torch.manual_seed(0)
    model = PreActivated()
    model(blobs()[0])  # in training mode: statistics that are not the first ones
    float_program = capture_program(model.eval(), (blobs(8)[0],), {})
    data = batches()
    training = Training(data, epochs=2, learning_rate=1e-3, validation=data[:2])
    program, _ = quantized(float_program, training)
    (before,), (after,) = (modules(each, nn.BatchNorm2d) for each in (float_program, program))
    assert torch.equal(after.running_mean, before.running_mean)
    assert torch.equal(after.running_var, before.running_var)
    assert not torch.equal(after.weight, before.weight)


def test_what_the_user_froze_stays(trained):
    program = trained.clone()
    frozen = next(program.leaf(n) for n in program.nodes if str(n.target) == "stem")
    frozen.requires_grad_(False)
    frozen_bias = next(program.leaf(n) for n in program.nodes if str(n.target) == "head")
    frozen_bias.bias.requires_grad_(False)
    static, learned = (
        layers(quantized(program, data)[0])
        for data in (None, Training(batches(), epochs=2, learning_rate=1e-2))
    )
    for name, layer in static.items():
        kept = name == "stem"
        assert torch.equal(learned[name].weight_values, layer.weight_values) == kept, name
        assert torch.equal(learned[name].weight_scale, layer.weight_scale) == kept, name
        assert torch.equal(learned[name].bias, layer.bias) == (kept or name == "head"), name


def test_a_model_that_is_frozen_as_a_whole_is_trained_as_a_whole(trained):
    program = trained.clone()
    program.module.requires_grad_(False)
    training = Training(batches(), epochs=1, learning_rate=1e-2)
    static, learned = layers(quantized(program)[0]), layers(quantized(program, training)[0])
    for name, layer in static.items():
        assert not torch.equal(learned[name].weight_scale, layer.weight_scale), name
        assert not torch.equal(learned[name].bias, layer.bias), name


def test_where_no_layer_is_left_it_says_that_nothing_is_trained(trained):
    program, result = quantized(trained, Training(batches(), epochs=1), skip=("*",))
    assert "not trained: no layer is left to quantize" in result.summary
    x, _ = blobs()
    assert torch.equal(program(x)[0], trained(x)[0])


def test_integers_and_what_is_tied_are_kept(trained):
    training = Training(batches(), epochs=1, learning_rate=1e-2)
    program, _ = quantized(trained, training)
    leaves = {str(node.target): program.leaf(node) for node in program.find(QuantLayer)}
    assert all(int(leaf.weight_values.abs().max()) <= 1 for leaf in leaves.values())
    assert all(leaf.weight_values.dtype == torch.int8 for leaf in leaves.values())
    one, two = (next(v for k, v in leaves.items() if k.startswith(n)) for n in ("one", "two"))
    assert one.weight_values is two.weight_values
    shared = [node for node in program.find(QuantLayer) if str(node.target).startswith("shared")]
    assert len(shared) == 2
    assert len({program.leaf(node) for node in shared}) == 1


def test_one_scale_for_a_whole_weight_stays_one(trained):
    program = trained.clone()
    training = Training(batches(), epochs=1, learning_rate=1e-2)
    item = Quantize(weight_bits=4, weights="tensor", training="lsq")
    item.run(program, context(program, training))
    program.verify()
    static = trained.clone()
    Quantize(weight_bits=4, weights="tensor").run(static, context(static))
    pairs = list(zip(modules(program, QuantLayer), modules(static, QuantLayer), strict=True))
    assert all(learned.weight_scale.numel() == 1 for learned, _ in pairs)
    assert any(learned.weight_scale != fixed.weight_scale for learned, fixed in pairs)


def test_the_original_is_left_as_it_was(trained):
    before = trained.fingerprint()
    quantized(trained, Training(batches(), epochs=1))
    assert trained.fingerprint() == before


def test_without_data_to_train_on_it_says_so(trained):
    program = trained.clone()
    with pytest.raises(PassError, match="needs data to train on"):
        Quantize(training="lsq").run(program, context(program))
