"""Optimized models as files: the same numbers in another process, without the original class."""

import copy
import importlib.util
import json
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import fxopt
from fxopt.api.saving import Source, keep_source
from fxopt.cost import find_target
from fxopt.emit import OptimizedModule, emit
from fxopt.errors import BackendError, InputError, SavingError
from fxopt.frontend import capture_program
from fxopt.ir.saving.container import read_container, write_container
from fxopt.passes import Calibration, Context
from fxopt.pipeline.assignment import Assignment
from fxopt.plugin import Executable
from fxopt.registry import default_registry
from fxopt_fold_bn import FoldBN
from fxopt_openvino import OpenVINO
from fxopt_quantize import Quantize


class Net(nn.Module):
    """Named inputs, a nested output, and all that quantize changes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, image, *, shift):
        x = self.norm(self.conv(image)).relu().mean((2, 3))
        return {"logits": self.head(x) * self.scale + shift, "features": x}


class Scaled(Executable):
    """Wrong code."""

    def __init__(self, code):
        self.code = code

    def __call__(self, *given):
        return tuple(1.5 * each for each in self.code(*given))


def inputs(batch=2):
    torch.manual_seed(1)
    return {"image": torch.randn(batch, 3, 8, 8), "shift": torch.randn(batch, 5)}


ROUGH = {"rtol": 0.02, "atol": 0.05}  # int8


def optimized(backend, passes="fold_bn,quantize"):
    torch.manual_seed(0)
    return fxopt.optimize(
        Net().eval(), inputs(), passes=passes, calibration=[inputs()], backends=[backend]
    )


def same(one, other, **tolerance):
    for name in ("logits", "features"):
        torch.testing.assert_close(one[name], other[name], **tolerance)


@pytest.fixture(scope="module")
def on_openvino():
    pytest.importorskip("openvino")
    return optimized("openvino")


def test_what_is_loaded_is_what_was_saved(on_openvino, tmp_path):
    fxopt.save(on_openvino, tmp_path / "net.fxopt")
    loaded = fxopt.load(tmp_path / "net.fxopt")
    for batch in (2, 5):
        same(loaded(**inputs(batch)), on_openvino(**inputs(batch)))
    assert loaded.report == on_openvino.report
    assert [m._backend for m in loaded.lowered()] == [m._backend for m in on_openvino.lowered()]
    assert loaded.state_dict().keys() == on_openvino.state_dict().keys()
    with pytest.raises(InputError, match="image"):
        loaded(image=torch.randn(2, 4, 8, 8), shift=inputs()["shift"])


@pytest.mark.parametrize("older", [False, True])
def test_code_that_is_wrong_where_it_is_loaded_gives_way_to_torch(
    on_openvino, tmp_path, monkeypatch, older
):
    fxopt.save(on_openvino, tmp_path / "net.fxopt")
    if older:  # those files do not say how far outputs may be off
        rewritten(tmp_path / "net.fxopt", lambda beside: beside.pop("tolerance"))
    loaded = fxopt.load(tmp_path / "net.fxopt")
    expected = fxopt.load(tmp_path / "net.fxopt", lowered=False)(**inputs())
    lower = OpenVINO.lower

    def broken(*arguments):
        lowering = lower(*arguments)
        compile_for = lowering.compile
        lowering.compile = lambda given: Scaled(compile_for(given))
        return lowering

    monkeypatch.setattr(OpenVINO, "lower", broken)
    if older:
        same(loaded(**inputs()), {name: 1.5 * value for name, value in expected.items()}, **ROUGH)
        return
    with pytest.warns(UserWarning, match=r"openvino.* is wrong"):
        same(loaded(**inputs()), expected)


LOADING = """
import sys, torch, fxopt
module = fxopt.load(sys.argv[1])
outputs = module(**torch.load(sys.argv[2], weights_only=True))
torch.save(outputs, sys.argv[3])
assert not any(name.startswith("tests") for name in sys.modules)
"""


def test_another_process_needs_no_class_of_the_user(on_openvino, tmp_path):
    fxopt.save(on_openvino, tmp_path / "net.fxopt")
    torch.save(inputs(), tmp_path / "inputs.pt")
    files = [str(tmp_path / name) for name in ("net.fxopt", "inputs.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-c", LOADING, *files], check=True, cwd=tmp_path)
    same(torch.load(files[2], weights_only=True), on_openvino(**inputs()))


@pytest.mark.parametrize("backend", ["eager", "onnxruntime", "onednn"])
def test_every_backend_is_found_again(backend, tmp_path):
    needed = "torch" if backend in ("eager", "onednn") else backend
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{backend} is not installed")
    fast = optimized(backend)
    fxopt.save(fast, tmp_path / "net.fxopt")
    loaded = fxopt.load(tmp_path / "net.fxopt")
    assert [m._backend for m in loaded.lowered()] == [m._backend for m in fast.lowered()]
    same(loaded(**inputs()), fast(**inputs()))


def test_plain_torch_runs_anywhere(on_openvino, tmp_path):
    fxopt.save(on_openvino, tmp_path / "net.fxopt")
    plain = fxopt.load(tmp_path / "net.fxopt", lowered=False)
    assert plain.lowered() == []
    same(plain(**inputs()), on_openvino(**inputs()), rtol=0.02, atol=0.02)


def test_weights_are_saved_as_they_are_now(on_openvino, tmp_path):
    changed = copy.deepcopy(on_openvino)
    state = changed.state_dict()
    state["scale"] = torch.tensor(-3.0)
    changed.load_state_dict(state)
    fxopt.save(changed, tmp_path / "net.fxopt")
    loaded = fxopt.load(tmp_path / "net.fxopt")
    assert float(loaded.state_dict()["scale"]) == -3.0
    same(loaded(**inputs()), changed(**inputs()))
    assert float(on_openvino.state_dict()["scale"]) == 1.5


def test_a_model_that_is_one_layer_can_be_saved(tmp_path):
    model, x = nn.Linear(8, 5).eval(), torch.randn(2, 8)
    fast = fxopt.optimize(model, (x,), backends=["eager"])
    fxopt.save(fast, tmp_path / "model")
    loaded = fxopt.load(tmp_path / "model")
    assert list(loaded.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(loaded(x), model(x))


def test_what_was_loaded_can_be_saved_again(on_openvino, tmp_path):
    fxopt.save(on_openvino, tmp_path / "one.fxopt")
    fxopt.save(fxopt.load(tmp_path / "one.fxopt"), tmp_path / "two.fxopt")
    twice = fxopt.load(tmp_path / "two.fxopt")
    assert twice.report == on_openvino.report
    same(twice(**inputs()), on_openvino(**inputs()))


def test_pickled_models_are_saved_ones(on_openvino):
    twin = pickle.loads(pickle.dumps(nn.ModuleDict({"net": on_openvino})))["net"]
    assert isinstance(twin, OptimizedModule)
    assert not twin.training
    assert twin.report == on_openvino.report
    assert twin.state_dict().keys() == on_openvino.state_dict().keys()
    same(twin(**inputs()), on_openvino(**inputs()))
    assert twin.lowered()[0].precisions() == on_openvino.lowered()[0].precisions()


def test_training_mode_is_pickled_too(on_openvino):
    assert pickle.loads(pickle.dumps(copy.deepcopy(on_openvino).train())).training


def test_models_that_stayed_python_are_pickled_with_their_report():
    fast = fxopt.optimize(nn.Linear(3, 3).eval())
    twin = pickle.loads(pickle.dumps(fast))
    assert isinstance(twin, OptimizedModule)
    assert not twin.training
    assert twin.report == fast.report
    assert twin.state_dict().keys() == fast.state_dict().keys()
    x = torch.randn(2, 3)
    assert torch.equal(twin(x), fast(x))


def test_code_that_cannot_be_pickled_says_so(on_openvino):
    with pytest.raises(SavingError, match="as a whole"):
        pickle.dumps(on_openvino.lowered()[0])


def test_a_copy_shares_no_weight_twice(on_openvino):
    twin = copy.deepcopy(on_openvino)
    source = twin.meta["fxopt_source"].program.module
    mine = {t.data_ptr() for t in twin.state_dict().values()}
    assert {t.data_ptr() for t in source.state_dict().values()} == mine


def test_models_that_stayed_python_say_so(tmp_path):
    fast = fxopt.optimize(nn.Linear(3, 3).eval())
    with pytest.raises(SavingError, match="was not captured whole"):
        fxopt.save(fast, tmp_path / "net.fxopt")
    assert not list(tmp_path.iterdir())


def rewritten(path, change):
    document, tensors = read_container(path, "program")
    change(document["beside"])
    write_container(path, "program", document, tensors)
    return path


def test_a_backend_that_is_not_there_is_named(on_openvino, tmp_path, monkeypatch):
    fxopt.save(on_openvino, tmp_path / "net.fxopt")
    openvino = default_registry().backends["openvino"]
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "unavailable", lambda self: "openvino is not installed")
        with pytest.raises(BackendError, match="pip install"):
            fxopt.load(tmp_path / "net.fxopt")
    path = rewritten(tmp_path / "net.fxopt", lambda b: b["shares"][0].update(backend="tpu"))
    with pytest.raises(InputError, match="tpu"):
        fxopt.load(path)
    same(fxopt.load(path, lowered=False)(**inputs()), on_openvino(**inputs()), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "change",
    [
        lambda beside: beside.clear(),
        lambda beside: beside.update(report={"schema": 1}),
        lambda beside: beside["shares"][0].update(settings={"no_such": 1}),
        lambda beside: beside.update(shares=3),
    ],
    ids=["empty", "report", "setting", "shares"],
)
def test_damage_is_told(on_openvino, tmp_path, change):
    fxopt.save(on_openvino, tmp_path / "net.fxopt")
    with pytest.raises(SavingError, match="damaged"):
        fxopt.load(rewritten(tmp_path / "net.fxopt", change))


def test_integers_are_kept_as_such(on_openvino, tmp_path):
    torch.manual_seed(0)
    program = capture_program(Net().eval(), (), inputs()).clone()
    context = Context(find_target("cpu"), calibration=Calibration([inputs()], program.signature))
    FoldBN().run(program, context)
    Quantize().run(program, context)
    module = emit(program).attach(on_openvino.report)
    keep_source(module, Source(program, Assignment(()), (), 0.1))
    fxopt.save(module, tmp_path / "net.fxopt")
    document, tensors = read_container(tmp_path / "net.fxopt", "program")
    assert [tensor.dtype for tensor in tensors.values()].count(torch.int8) == 2
    assert not any(key.endswith("conv.weight") for key in tensors)
    json.dumps(document)
    same(fxopt.load(tmp_path / "net.fxopt")(**inputs()), module(**inputs()), rtol=0, atol=0)
