"""The main job: a model in, a verified faster one out."""

import copy
import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fxopt
import fxopt.api.parts
from fxopt.api.quality import compare_models
from fxopt.cost import Latency
from fxopt.errors import CalibrationError
from fxopt.frontend import GuardedPart
from fxopt.pipeline import compare
from tests.api.conftest import Residual, vary

race_module = importlib.import_module("fxopt.pipeline.lowering.race")


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("backends", [["eager"], ["openvino", "eager"], ["inductor", "eager"]])
def test_exact_by_default(model, x, dtype, limit, backends):
    model, x = model.to(dtype), x.to(dtype)
    fast = fxopt.optimize(model, (x,), backends=backends)
    other = torch.randn(5, 3, 16, 16).to(dtype)
    with torch.no_grad():
        assert relative(fast(x), model(x)) < limit
        assert relative(fast(other), model(other)) < limit
    assert isinstance(fast, torch.fx.GraphModule)
    assert isinstance(fast, fxopt.OptimizedModule)
    applied = {record.name for record in fast.report.passes if record.status == "applied"}
    assert {"cleanup", "fold_bn"} <= applied
    assert all(record.exact for record in fast.report.passes)


def test_report_tells_what_was_done(model, x, tmp_path):
    fast = fxopt.optimize(model, (x,), backends=["eager"], workdir=tmp_path)
    report = fast.report
    assert report.latency_before > 0
    assert report.latency_after > 0
    assert report.inputs == "2x3x16x16, any batch"
    assert report.size_after < report.size_before  # the batch norms are gone
    assert report.drift < 1e-5
    assert report.seconds > 0
    assert report.regions[0].chosen.backend in ("eager", "torch")
    assert "fold_bn" in str(report)
    assert json.loads((tmp_path / "report.json").read_text())["recipe"] == fast.recipe
    assert len(list(tmp_path.glob("*.txt"))) >= 3  # a dump of the captured program and each pass


def test_recipe_repeats_the_run(model, x):
    fast = fxopt.optimize(model, (x,), backends=["eager"])
    again = fxopt.optimize(model, (x,), backends=["eager"], passes=fast.recipe)
    assert again.recipe == fast.recipe == "cleanup,fold_bn"
    assert torch.equal(again(x), fast(x))


def test_users_model_is_untouched(model, x):
    model.train()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    request = {"passes": "cleanup,fold_bn,quantize", "calibration": [x]}
    fast = fxopt.optimize(model, (x,), backends=["openvino"], **request)
    fast(x)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(not module._forward_hooks for module in model.modules())


def test_in_inference_mode(x):
    with torch.inference_mode():
        model = vary(Residual())
        fast = fxopt.optimize(model, (x,), backends=["eager"])
        assert relative(fast(x), model(x)) < 1e-5
    assert "fold_bn" in fast.recipe


def test_a_model_made_in_inference_mode(x):
    with torch.inference_mode():
        model = vary(Residual())
    fast = fxopt.optimize(model, (x,), backends=["eager"])
    with torch.no_grad():
        assert relative(fast(x), model(x)) < 1e-5
    assert "fold_bn" in fast.recipe
    assert all(weight.is_inference() for weight in model.parameters())


def test_untouched_weights_are_shared(model, x):
    fast = fxopt.optimize(model, (x,), backends=["eager"])
    named = dict(fast.named_parameters())
    head = next(value for name, value in named.items() if name.endswith("head.weight"))
    assert head.data_ptr() == model.head.weight.data_ptr()


def test_copies_state_threads_and_batches(model, x):
    fast = fxopt.optimize(model, (x,), backends=["openvino", "eager"])
    twin = copy.deepcopy(fast)
    fast.load_state_dict(fast.state_dict())
    batches = [torch.randn(1 + i % 4, 3, 16, 16) for i in range(16)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        for results in (pool.map(fast, batches), pool.map(twin, batches)):
            for result, batch in zip(results, batches, strict=True):
                assert relative(result, model(batch)) < 1e-5
    assert twin.report == fast.report


def test_no_report_claims_less_than_measured(model, x):
    """Never slower: the chosen candidate is the fastest of those that are right."""
    fast = fxopt.optimize(model, (x,), backends=["openvino", "eager"])
    region = fast.report.regions[0]
    racing = [c.milliseconds for c in region.candidates if c.milliseconds and not c.reason]
    best = min(racing)
    assert region.chosen.milliseconds == best or best >= fast.report.latency_before


def test_keyword_inputs(x):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Residual()

        def forward(self, image, scale=None, *, shift):
            return {"scores": self.net(image) + shift}

    model = vary(Two())
    shift = torch.randn(5)
    fast = fxopt.optimize(model, {"image": x, "shift": shift}, backends=["eager"])
    with torch.no_grad():
        expected = model(image=x, shift=shift)["scores"]
        assert relative(fast(image=x, shift=shift)["scores"], expected) < 1e-5


def test_inputs_that_the_model_offers(model, x):
    model.example_input_array = x
    assert fxopt.optimize(model, backends=["eager"]).report.inputs == "2x3x16x16, any batch"


def test_without_inputs_the_report_says_what_was_left_out(model, x):
    fast = fxopt.optimize(model)
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))
    assert any("no example inputs" in note for note in fast.report.notes)
    assert any("fold_bn" in note for note in fast.report.notes)
    assert set(fast.state_dict()) == set(model.state_dict())


def test_max_drift_rolls_back(model, x):
    request = {"passes": "cleanup,fold_bn,quantize", "calibration": [x]}
    fast = fxopt.optimize(model, (x,), max_drift=1e-6, backends=["eager"], **request)
    record = next(record for record in fast.report.passes if record.name == "quantize")
    assert record.status == "rolled back"
    assert "drift" in record.reason
    with torch.no_grad():
        assert relative(fast(x), model(x)) < 1e-5
    assert "quantize" not in fast.recipe


def test_max_drop_rolls_back(model, x):
    with torch.no_grad():
        expected = model(x)

    def evaluate(module):
        with torch.no_grad():
            return -relative(module(x), expected)

    request = {"passes": "cleanup,fold_bn,quantize", "calibration": [x], "evaluate": evaluate}
    fast = fxopt.optimize(model, (x,), max_drop=1e-6, backends=["eager"], **request)
    record = next(record for record in fast.report.passes if record.name == "quantize")
    assert record.status == "rolled back"
    assert fast.report.score_before == 0.0
    assert fast.report.score_after > -1e-5


def test_evaluate_may_leave_a_module_in_training_mode(model, x):
    def evaluate(module):
        module.eval()
        score = -float(module(x).detach().abs().sum())
        module.train()
        return score

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = fxopt.optimize(model, (x,), backends=["eager"], evaluate=evaluate, max_drop=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in fast.modules())
    assert fast.report.drift < 1e-4


def test_time_limit_still_answers(model, x):
    fast = fxopt.optimize(model, (x,), time_limit=0.0)
    with torch.no_grad():
        assert relative(fast(x), model(x)) < 1e-5
    assert any("time limit" in record.reason for record in fast.report.passes)


def test_progress_is_shown(model, x):
    lines = []
    fxopt.optimize(model, (x,), backends=["eager"], progress=lines.append)
    assert any("fold_bn" in line for line in lines)


class Branching(nn.Module):
    """Its forward depends on the data, which no tracer can capture; its body does not."""

    def __init__(self):
        super().__init__()
        self.body = Residual()
        self.small = nn.Linear(5, 5)

    def forward(self, x):
        y = self.body(x)
        if float(y.sum()) > 1e6:
            return y
        return self.small(y)


def test_in_parts_where_the_whole_cannot_be_captured(x):
    torch.manual_seed(0)
    model = vary(Branching())
    fast = fxopt.optimize(model, (x,), backends=["eager"])
    with torch.no_grad():
        assert relative(fast(x), model(x)) < 1e-5
        other = torch.randn(3, 3, 16, 16)
        assert relative(fast(other), model(other)) < 1e-5
    assert {region.name for region in fast.report.regions} == {"body", "small"}
    assert any("not captured whole" in note for note in fast.report.notes)
    weights = {name for name in fast.state_dict() if name.endswith("weight")}
    assert weights < set(model.state_dict())  # the user's names, less the batch norms
    assert "small.weight" in weights
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))


@pytest.mark.parametrize("after", [1.0, 1.2])
def test_parts_that_make_the_whole_slower_are_given_back(after, x, monkeypatch):
    monkeypatch.setattr(fxopt.api.parts, "_SLOWER", 1.05)
    times = iter([(Latency((1.0,)), Latency((after,))), (Latency((1.0,)), Latency((1.0,)))])
    monkeypatch.setattr(fxopt.api.parts, "_latencies", lambda *_: next(times))
    model = vary(Branching())
    fast = fxopt.optimize(model, (x,), backends=["eager"])
    assert fast.report.latency_after == 1.0
    names = {region.name for region in fast.report.regions}
    assert names == (set() if after > 1.05 else {"body", "small"})
    assert any("whole was slower" in note for note in fast.report.notes) == (after > 1.05)
    with torch.no_grad():
        assert relative(fast(x), model(x)) < 1e-5
    assert any(isinstance(each, GuardedPart) for each in fast.modules()) == (after <= 1.05)
    assert str(fast.report)


class OneOfTwo(nn.Module):
    """Which of its halves runs depends on the data."""

    def __init__(self):
        super().__init__()
        self.above, self.below = Residual(), Residual()

    def forward(self, x):
        return self.above(x) if float(x.sum()) > 0 else self.below(x)


def test_a_part_that_calibration_does_not_reach_is_optimized_exactly(x):
    model = vary(OneOfTwo())
    data = [-x.abs()]
    fast = fxopt.optimize(
        model, (x.abs(),), backends=["eager"], passes="fold_bn,quantize", calibration=data
    )
    assert "fold_bn" in fast.recipe
    (note,) = (note for note in fast.report.notes if note.startswith("above: "))
    assert "lossy passes were left out: the calibration set is empty" in note
    with torch.no_grad():
        assert relative(fast(x.abs()), model(x.abs())) < 1e-5


def test_parts_are_compared_on_the_calibration_data_too(x):
    class Shifted(Branching):
        def forward(self, x):
            return super().forward(x) + 1e6 * (x.amax() < 9)  # which hides what is lost

    limits = {"passes": "fold_bn,quantize", "max_drift": 1e-3, "backends": ["openvino"]}
    model, data = vary(Shifted()), [10 + x]
    fast = fxopt.optimize(model, (x,), calibration=data, **limits)
    with torch.no_grad():
        assert relative(fast(data[0]), model(data[0])) < 1e-3


@pytest.mark.parametrize("data", [[], [torch.zeros(2, 7, 16, 16)]], ids=["none", "other sizes"])
def test_calibration_data_that_do_not_fit_are_an_error_for_parts(x, data):
    with pytest.raises(CalibrationError, match="calibration"):
        fxopt.optimize(vary(Branching()), (x,), backends=["eager"], calibration=data)


class Recording(Branching):
    """It counts its calls in a buffer, and writes to its input."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x.mul_(1.5)) + self.calls


def test_what_a_model_writes_to_is_as_before(x):
    model, before = vary(Recording()), x.clone()
    batch = x + 1
    fast = fxopt.optimize(
        model,
        (x,),
        backends=["eager"],
        passes="fold_bn,quantize",
        calibration=[batch],
        max_drift=0.5,
        evaluate=lambda module: float(module(before.clone()).sum()),
    )
    assert torch.equal(x, before)
    assert torch.equal(batch, before + 1)
    assert model.calls == 0
    assert fast.report.drift < 0.1
    assert not any("all parts" in note for note in fast.report.notes)


@dataclass
class Detections:
    boxes: torch.Tensor
    scores: torch.Tensor | None = None


@dataclass(slots=True)
class Boxes:
    boxes: torch.Tensor


class Detecting(nn.Module):
    """Returns an object of a class that torch does not know."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.body = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.kind(self.body(x))


@pytest.mark.parametrize("kind", [Detections, Boxes])
def test_parts_of_what_returns_an_object(x, kind):
    torch.manual_seed(0)
    model = Detecting(kind).eval()
    fast = fxopt.optimize(model, (x,), backends=["eager"])
    assert relative(fast(x).boxes, model(x).boxes) < 1e-5
    assert fast.report.drift < 1e-5
    other = copy.deepcopy(model)
    nn.init.zeros_(other.body.weight)
    assert compare_models(model, other, [((x,), {})]).drift > 0.1


def test_lossy_parts_keep_the_limits_of_the_whole(x):
    model = vary(Branching())
    request = {"passes": "cleanup,fold_bn,quantize", "calibration": [x], "max_drift": 1e-6}
    fast = fxopt.optimize(model, (x,), backends=["openvino"], **request)
    with torch.no_grad():
        assert relative(fast(x), model(x)) < 1e-5


def test_capture_is_trainable_and_has_its_own_weights(model, x):
    before = copy.deepcopy(model.state_dict())
    captured = fxopt.capture(model, (x,))
    captured.train()
    optimizer = torch.optim.SGD(captured.parameters(), lr=0.1)
    loss = captured(x).square().sum()
    loss.backward()
    optimizer.step()
    assert not torch.equal(captured.head.weight, model.head.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(captured.state_dict()) == set(model.state_dict())


def test_the_original_runs_on_the_examples_for_the_capture_alone(model, x, monkeypatch):
    """What it computed then is what passes, candidates and the outcome are compared with."""
    ran = []

    def note(module, inputs):
        if type(inputs[0]) is torch.Tensor:  # not the symbols of torch.export
            ran.append(len(inputs[0]))

    model.register_forward_pre_hook(note)
    took = Latency((1.0,))
    monkeypatch.setattr(race_module, "measure", lambda calls, **_: dict.fromkeys(calls, took))
    fast = fxopt.optimize(model, (x,), backends=["eager"])
    assert ran.count(len(x)) == 1
    with torch.no_grad():
        assert fast.report.drift == compare([fast(x)], [model(x)]).error
