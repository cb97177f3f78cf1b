"""Bad input gets an error of ours that says what to do, and the model is left alone."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch

import fxopt
from fxopt.cost import find_target
from fxopt.errors import (
    BackendError,
    CalibrationError,
    CaptureError,
    FxoptError,
    InputError,
    NotYetError,
    PlanError,
    SettingError,
)
from fxopt.plugin import Exact, Fact, Pass, PassInfo


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def untouched(model):
    """After every test here the user's model is bit-identical."""
    before, training = bits(model), model.training
    yield
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name
    assert model.training == training


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"example_inputs": ()}, InputError, "no tensor"),
        ({"example_inputs": 3}, InputError, "tuple of positional"),
        ({"example_inputs": {"y": torch.ones(1)}}, InputError, "takes no input"),
        ({"target": "tpu"}, InputError, "'cpu' and 'cuda'"),
        ({"passes": "quantise"}, SettingError, "did you mean 'quantize'"),
        ({"passes": "quantize{calibratr=minmax}"}, SettingError, "did you mean 'calibrator'"),
        ({"passes": "quantize{calibrator=magic}"}, SettingError, "one of"),
        ({"passes": "fold_bn{"}, SettingError, "brackets"),
        ({"passes": [print]}, InputError, "no pass"),
        ({"passes": "quantize"}, PlanError, "fold_bn"),
        ({"backends": ["openvno"]}, InputError, "did you mean 'openvino'"),
        ({"backends": []}, InputError, "no backends"),
        ({"calibration": 5}, InputError, "iterable of batches"),
        ({"calibration": []}, CalibrationError, "empty"),
        ({"calibration": [("x", "y")]}, CalibrationError, "labels"),
        ({"calibration": ["text"]}, CalibrationError, "a batch is"),
        ({"max_drop": 0.1}, InputError, "evaluate"),
        ({"max_drift": -1.0}, InputError, "negative"),
        ({"max_drift": "small"}, InputError, "no number"),
        ({"time_limit": float("nan")}, InputError, "no number"),
        ({"evaluate": 3}, InputError, "cannot be called"),
        ({"evaluate": lambda module: 1 / 0}, InputError, "evaluate raised ZeroDivisionError"),
        ({"evaluate": lambda module: "good"}, InputError, "no number"),
        ({"evaluate": lambda module: float("nan")}, InputError, "NaN, which cannot be compared"),
        ({"latency_ms": 5.0}, NotYetError, "not there yet"),
        ({"training": object()}, InputError, "pass training=fxopt.Training"),
        ({"training": fxopt.Training([])}, InputError, "no batch"),
        ({"training": fxopt.Training([torch.zeros(2, 3)])}, InputError, "loss=None for data"),
    ],
)
def test_arguments(model, x, arguments, error, says):
    given = {"example_inputs": (x,), **arguments}
    with pytest.raises(error, match=says) as caught:
        fxopt.optimize(model, **given)
    assert isinstance(caught.value, FxoptError)


@pytest.mark.parametrize("thing", [torch.relu, torch.nn.Linear, None, "resnet50"])
def test_not_a_module(thing, x):
    with pytest.raises(InputError, match=r"not a torch\.nn\.Module"):
        fxopt.optimize(thing, (x,))


def test_misspelt_argument(model, x):
    with pytest.raises(TypeError, match="max_drfit"):
        fxopt.optimize(model, (x,), max_drfit=0.1)


def test_cuda_without_a_gpu(model, x, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a GPU"):
        fxopt.optimize(model, (x,), target="cuda")


def test_a_model_that_lies_elsewhere(model, x, monkeypatch):
    there = replace(find_target("cpu"), name="cuda", device=torch.device("cuda"))
    monkeypatch.setattr("fxopt.api.request.find_target", lambda name: there)
    with pytest.raises(InputError, match=r"the model is on cpu.*run on cuda.*\n.*\.to\('cuda'\)"):
        fxopt.optimize(model, (x,), target="cuda")


def test_nan_weights(x):
    from tests.api.conftest import Residual

    broken = Residual().eval()
    with torch.no_grad():
        broken.head.weight[0, 0] = float("nan")
    before = copy.deepcopy(broken.state_dict())
    with pytest.raises(InputError, match=r"NaN.*head\.weight"):
        fxopt.optimize(broken, (x,))
    assert torch.equal(before["head.weight"].nan_to_num(), broken.head.weight.nan_to_num())


def test_inputs_on_another_device(model, x):
    with pytest.raises(InputError, match="meta"):
        fxopt.optimize(model, (x.to("meta"),))


def test_inputs_that_the_model_does_not_take(model):
    with pytest.raises(FxoptError):
        fxopt.optimize(model, (torch.randn(2, 7, 16, 16),))


def test_backend_that_is_not_installed(model, x, plugins):
    from tests.api.test_race import Missing

    plugins(backends=[Missing])
    with pytest.raises(BackendError, match="pip install"):
        fxopt.optimize(model, (x,), backends=["missing"])


def _always(program):
    return ()


def _never(program):
    yield "it never holds"


def test_cycle(model, x, plugins):
    @dataclass(frozen=True)
    class First(Pass):
        info = PassInfo("first", "simplify", Exact(), after=("second",))

        def run(self, program, context):
            raise AssertionError("must not run")

    @dataclass(frozen=True)
    class Second(Pass):
        info = PassInfo("second", "simplify", Exact(), after=("first",))

        def run(self, program, context):
            raise AssertionError("must not run")

    plugins(passes=[First, Second])
    with pytest.raises(PlanError, match=r"first -> second -> first"):
        fxopt.optimize(model, (x,), passes="first,second")


def test_missing_fact(model, x, plugins):
    @dataclass(frozen=True)
    class Needy(Pass):
        info = PassInfo("needy", "simplify", Exact(), requires=("moon_is_full",))

        def run(self, program, context):
            raise AssertionError("must not run")

    @dataclass(frozen=True)
    class Lunar(Pass):
        info = PassInfo("lunar", "simplify", Exact(), provides=("moon_is_full",))

        def run(self, program, context):
            raise AssertionError("must not run")

    plugins(passes=[Needy, Lunar], facts=[Fact("moon_is_full", "a full moon", _never)])
    with pytest.raises(PlanError, match=r"lunar can provide it"):
        fxopt.optimize(model, (x,), passes="needy")


@pytest.mark.parametrize("wrap", [lambda layer: layer, torch.nn.Sequential], ids=["layer", "net"])
def test_inputs_of_a_wrong_size_are_told_as_torch_tells_them(wrap):
    with pytest.raises(CaptureError, match=r"cannot be multiplied \(2x5 and 4x2\)"):
        fxopt.optimize(wrap(torch.nn.Linear(4, 2)), (torch.randn(2, 5),))
