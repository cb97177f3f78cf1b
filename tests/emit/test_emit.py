"""The emitted module behaves as the user's own model does."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fxopt.backends import Executable, LoweredModule, Lowering, splice, whole_region
from fxopt.backends.base import Backend, BackendInfo
from fxopt.cost import find_target
from fxopt.emit import REGION, emit, emit_python
from fxopt.errors import FxoptError, InputError
from fxopt.frontend import capture_program


class Net(nn.Module):
    """Two inputs, one by keyword; a nested output; tied weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x, *, scale=None):
        y = self.norm(self.first(x))
        if scale is not None:
            y = y * scale
        return {"out": self.second(y), "hidden": (y, x)}


class _Source(Executable):
    def __init__(self, module):
        self._module = module

    def __call__(self, *inputs):
        with torch.no_grad():
            return self._module(*inputs)


class _SourceLowering(Lowering):
    def __init__(self, module):
        self._module = copy.deepcopy(module)

    def compile(self, inputs):
        return _Source(self._module)


class Snapshot(Backend):
    """Runs a copy of the program taken when it was lowered, as compiled code would."""

    info = BackendInfo(name="snapshot", targets=("cpu",))

    def lower(self, program, inputs, target):
        return _SourceLowering(program.module)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().double().eval()


@pytest.fixture
def call():
    return (torch.randn(3, 4, dtype=torch.float64),), {"scale": torch.randn(4).double()}


@pytest.fixture(params=["plain", "lowered"])
def emitted(request, model, call):
    program = capture_program(model, *call)
    if request.param == "lowered":
        region = whole_region(program)
        splice(
            program, region, LoweredModule(region.program, Snapshot(), find_target("cpu")), REGION
        )
    program.verify()
    return emit(program, ["x"])


def same(left, right):
    leaves = torch.utils._pytree.tree_leaves
    return all(torch.equal(a, b) for a, b in zip(leaves(left), leaves(right), strict=True))


def test_is_called_as_the_model_is(emitted, model, call):
    args, kwargs = call
    assert isinstance(emitted, torch.fx.GraphModule)
    assert same(emitted(*args, **kwargs), model(*args, **kwargs))
    assert same(emitted(x=args[0], **kwargs), model(*args, **kwargs))
    assert list(emitted(*args, **kwargs)) == ["out", "hidden"]


def test_takes_other_batch_sizes(emitted, model, call):
    for batch in (1, 7):
        x = torch.randn(batch, 4, dtype=torch.float64)
        assert same(emitted(x, **call[1]), model(x, **call[1]))


def test_state_dict_has_the_users_names_and_loads(emitted, model, call):
    assert set(emitted.state_dict()) == set(model.state_dict())
    other = Net().double().eval()
    before = copy.deepcopy(model.state_dict())
    emitted(*call[0], **call[1])
    emitted.load_state_dict(other.state_dict())
    assert same(emitted(*call[0], **call[1]), other(*call[0], **call[1]))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"loading changed the user's {name}"


def test_state_dict_works_inside_another_module(emitted, model):
    outer = nn.ModuleDict({"fast": emitted})
    names = {f"fast.{name}" for name in model.state_dict()}
    assert set(outer.state_dict()) == names
    missing, unexpected = outer.load_state_dict(outer.state_dict())
    assert not missing
    assert not unexpected


def test_ties_survive_loading(emitted):
    emitted.load_state_dict(emitted.state_dict())
    named = dict(emitted.named_parameters(remove_duplicate=False))
    weights = [p for name, p in named.items() if name.endswith("weight") and "norm" not in name]
    assert len(weights) == 2
    assert weights[0] is weights[1]


def test_deep_copy_is_independent(emitted, model, call):
    twin = copy.deepcopy(emitted)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert same(emitted(*call[0], **call[1]), model(*call[0], **call[1]))


def test_several_threads(emitted, model):
    scale = torch.ones(4).double()
    batches = [torch.randn(1 + i % 5, 4, dtype=torch.float64) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: emitted(x, scale=scale), batches))
    assert all(same(r, model(x, scale=scale)) for r, x in zip(results, batches, strict=True))


def test_gradients_reach_the_inputs(emitted, model, call):
    x = call[0][0].clone().requires_grad_()
    y = call[0][0].clone().requires_grad_()
    emitted(x, **call[1])["out"].sum().backward()
    model(y, **call[1])["out"].sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-12)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.randn(3, 5, dtype=torch.float64), "the shape anyx4 is expected, got 3x5"),
        (torch.randn(3, 4), "float64 is expected"),
        ([[1.0] * 4], "structure|tensor"),
    ],
)
def test_wrong_inputs_are_told(emitted, call, bad, says):
    with pytest.raises((InputError, ValueError), match=says):
        emitted(bad, **call[1])


def test_a_region_of_the_whole_model_checks_the_inputs_itself(emitted, call):
    targets = [node.target for node in emitted.graph.nodes if node.op == "call_module"]
    assert targets[0] == (REGION if emitted.lowered() else "fxopt_guard")
    twin = copy.deepcopy(emitted).train()
    for module in (emitted, twin):
        with pytest.raises(InputError, match="float64 is expected"):
            module(torch.randn(3, 4, requires_grad=True), **call[1])


def test_no_report_is_an_error_of_ours(emitted):
    with pytest.raises(FxoptError, match="no report"):
        _ = emitted.report


def test_python_model_keeps_names_and_signature():
    model = Net().double().eval()
    fast = emit_python(copy.deepcopy(model))
    x = torch.randn(2, 4, dtype=torch.float64)
    assert same(fast(x, scale=None), model(x))
    assert set(fast.state_dict()) == set(model.state_dict())
    assert same(copy.deepcopy(fast)(x), model(x))
