"""Programs as files: what is loaded is what was saved."""

import json
import math
import operator
from collections import OrderedDict

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.ops import StochasticDepth

from fxopt.backends import cut_region
from fxopt.errors import SavingError
from fxopt.ir import LeafModule, Program, ScaledDotProductAttention
from fxopt.ir.saving import decode, encode, load_program, save_program
from fxopt.ir.saving.values import UnsavableError
from fxopt.pipeline.identity import difference
from fxopt.testing import make_case
from fxopt.testing.strategies import generated_cases
from fxopt_quantize import Quantize
from tests.building import Builder, aten, image, small_cnn
from tests.random_models import on_random_models


def reload(program, path, packages=()):
    """Saves and loads; the result is checked to be the same program, bit for bit."""
    save_program(program, path)
    loaded = load_program(path, packages=packages)
    loaded.verify()
    assert loaded.text() == program.text()
    assert loaded.fingerprint() == program.fingerprint()
    assert difference(program, loaded) is None
    assert loaded.signature == program.signature
    assert loaded.notes == program.notes
    sources = [[node.meta.get("source") for node in p.nodes] for p in (program, loaded)]
    assert sources[0] == sources[1]
    return loaded


def assert_same_numbers(program, loaded, *inputs):
    for flat in inputs:
        pairs = zip(program(*flat), loaded(*flat), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_loaded_program_has_memory_of_its_own(path):
    program = small_cnn()
    loaded = reload(program, path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same_numbers(program, loaded, [image(2)])
    tensors = [*loaded.module.parameters(), *loaded.module.buffers()]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)


def unary(target, *args, dtype=torch.float32, **kwargs):
    """A program of one call on a 2x3x4x4 input."""
    b = Builder()
    return b.program(b.call(target, b.input("x", 2, 3, 4, 4, dtype=dtype), *args, **kwargs))


# -- models ----------------------------------------------------------------------------------


def test_the_small_net_at_several_batch_sizes(path):
    program = small_cnn()
    loaded = reload(program, path)
    assert_same_numbers(program, loaded, *([image(size)] for size in (1, 2, 5)))
    size = loaded.inputs[0].meta["val"].shape[0]
    assert isinstance(size, torch.SymInt)
    with loaded.edit() as edit:  # its values are alive: further ones are inferred from them
        (relu,) = loaded.find(aten.relu.default)
        new = edit.replace(relu, nn.Hardswish(), relu.args[0])
    assert new.meta["val"].shape[0] is not None
    loaded.verify()


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(12, 5)

    def forward(self, tokens):
        return {"tags": self.head(self.lstm(self.embedding(tokens))[0]), "tokens": [tokens]}


def vit():
    return VisionTransformer(16, 8, 2, 2, 16, 32, dropout=0.1, attention_dropout=0.1)


MODELS = {
    "resnet18": (resnet18, (2, 3, 32, 32)),
    "vit": (vit, (2, 3, 16, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_vision(name, path):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    case = make_case(name, make().eval(), torch.randn(shape))
    loaded = reload(case.program, path)
    one = [case.inputs[0][0][:1]]
    assert_same_numbers(case.program, loaded, *case.inputs, one)


def test_an_lstm_and_nested_outputs(path):
    torch.manual_seed(0)
    case = make_case("tagger", Tagger().eval(), torch.randint(0, 20, (2, 7)))
    loaded = reload(case.program, path)
    assert_same_numbers(case.program, loaded, *case.inputs)
    assert list(loaded.call(*case.inputs[0])) == ["tags", "tokens"]
    (node,) = loaded.find(nn.LSTM)
    lstm = loaded.leaf(node)
    assert all(one is two for one, two in zip(lstm._flat_weights, lstm.parameters(), strict=True))
    assert not lstm._weights_have_changed()
    torch.manual_seed(1)
    loss = loaded.module.train()(*case.inputs[0])[0].sum()
    loss.backward()
    assert lstm.weight_ih_l0.grad is not None


def test_quantized_programs_need_the_package_that_brings_their_leaves(path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(32, 4)
    )
    case = make_case("quantized", model.eval(), torch.randn(4, 3, 6, 6))
    program = case.program.clone()
    assert Quantize().run(program, case.context()).changed
    loaded = reload(program, path, packages=("fxopt_quantize",))
    assert_same_numbers(program, loaded, *case.inputs)
    with pytest.raises(SavingError, match=r"fxopt_quantize\.modules may not be imported"):
        load_program(path)


@on_random_models(20)
@given(case=generated_cases())
def test_generated_models(tmp_path_factory, case):
    path = tmp_path_factory.mktemp("generated") / "program"
    assert_same_numbers(case.program, reload(case.program, path), *case.inputs)


# -- tensors ---------------------------------------------------------------------------------

TENSORS = {
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "bool": torch.tensor([True, False]),
    "int8": torch.arange(-3, 3, dtype=torch.int8),
    "int64": torch.tensor([2**62, -1]),
    "uint8": torch.arange(200, 210, dtype=torch.uint8),
    "bf16": torch.randn(3).bfloat16(),
    "f16": torch.randn(3).half(),
    "f64": torch.tensor([math.pi, math.nan, -math.inf, -0.0], dtype=torch.float64),
    "complex64": torch.randn(3, dtype=torch.complex64),
    "complex128": torch.randn(2, 2, dtype=torch.complex128),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "transposed": torch.randn(3, 5).t(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_keep_dtype_strides_and_bits(name, path):
    b = Builder()
    x = b.input("x", 2, 4)
    value = TENSORS[name]
    program = b.program(x, b.attribute("constant", value))
    loaded = reload(program, path)
    found = loaded.module.constant
    assert (found.dtype, found.shape, found.stride()) == (value.dtype, value.shape, value.stride())
    assert found.data_ptr() != value.data_ptr() or not value.numel()


@pytest.mark.parametrize(
    "value",
    [torch.randn(4, 4)[:, 1:3], torch.randn(1, 3).expand(5, 3), torch.randn(3).cfloat().conj()],
    ids=["part", "expanded", "conjugate"],
)
def test_tensors_that_do_not_fill_their_memory_become_dense(value, path):
    b = Builder()
    program = b.program(b.attribute("constant", value))
    save_program(program, path)
    loaded = load_program(path)
    assert torch.equal(loaded.module.constant, value)
    assert loaded.module.constant.is_contiguous()


def test_what_is_shared_is_stored_once_and_shared_again(path):
    torch.manual_seed(0)
    first, tied, apart = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = first.weight
    apart.weight.data = first.weight.data  # another parameter on the same memory
    apart.weight.requires_grad_(False)
    b = Builder(first=first, tied=tied, apart=apart, again__first=first)
    b.module.register_buffer("early", torch.arange(4.0), persistent=False)
    node = b.call("again.first", b.call("apart", b.call("tied", b.input("x", 2, 4))))
    early = b.attribute("early")
    program = b.program(b.call(aten.add.Tensor, b.call("first", node), early))
    loaded = reload(program, path)
    module = loaded.module
    assert module.first is module.again.first
    assert module.first.weight is module.tied.weight
    assert module.apart.weight is not module.tied.weight
    assert module.apart.weight.data_ptr() == module.tied.weight.data_ptr()
    assert [p.requires_grad for p in (module.apart.weight, module.tied.weight)] == [False, True]
    assert "early" not in module.state_dict()
    with safetensors.safe_open(path, "pt") as file:
        assert sorted(file.keys()) == [
            "apart.bias", "early", "first.bias", "first.weight", "tied.bias",
        ]  # fmt: skip


def test_a_layer_of_which_only_the_weight_is_read(path):
    b = Builder(embedding=nn.Embedding(6, 4))
    program = b.program(
        b.call(aten.mm.default, b.input("x", 2, 6), b.attribute("embedding.weight"))
    )
    save_program(program, path)
    loaded = load_program(path)
    assert loaded.fingerprint() == program.fingerprint()
    assert type(loaded.module.embedding) is nn.Module  # it only holds the weight
    assert_same_numbers(program, loaded, [torch.randn(3, 6)])


# -- nodes -----------------------------------------------------------------------------------

CALLS = {
    "infinite": (aten.clamp.default, (-math.inf, math.inf), {}),
    "nan": (aten.fill.Scalar, (math.nan,), {}),
    "negative zero": (aten.fill.Scalar, (-0.0,), {}),
    "large": (aten.mul.Scalar, (2**53 + 1,), {}),
    "complex": (aten.mul.Scalar, (1.5 - 2j,), {}),
    "dtype": (aten._to_copy.default, (), {"dtype": torch.float64}),
    "device and layout": (
        aten._to_copy.default, (), {"device": torch.device("cpu"), "layout": torch.strided},
    ),
    "memory format": (aten.clone.default, (), {"memory_format": torch.channels_last}),
    "text": (aten.gelu.default, (), {"approximate": "tanh"}),
    "slices": (operator.getitem, ((slice(None), ..., None, slice(0, 3, 2), 0),), {}),
    "nested": (aten.constant_pad_nd.default, ([1, 0, 2, 1], 0.1), {}),
    "bool": (aten.any.dim, (1, True), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_every_kind(name, path):
    target, args, kwargs = CALLS[name]
    program = unary(target, *args, **kwargs)
    loaded = reload(program, path)
    (mine,), (theirs,) = program(torch.ones(2, 3, 4, 4)), loaded(torch.ones(2, 3, 4, 4))
    assert difference(program, loaded) is None
    assert mine.stride() == theirs.stride()
    torch.testing.assert_close(theirs, mine, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(1 / theirs, 1 / mine, rtol=0, atol=0, equal_nan=True)


def test_nodes_inside_lists(path):
    b = Builder()
    x, index = b.input("x", 2, 3), b.input("index", 2, dtype=torch.int64)
    both = b.call(aten.cat.default, [x, b.call(aten.relu.default, x)], 1)
    program = b.program(b.call(aten.index.Tensor, both, [None, index]))
    inputs = [torch.randn(4, 3), torch.tensor([5, 0, 1, 1])]
    assert_same_numbers(program, reload(program, path), inputs)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats() | st.complex_numbers()
    | st.sampled_from([torch.int8, torch.device("cpu", 0), torch.strided, ..., slice(1, None)]),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple)
    | st.dictionaries(st.text() | st.integers() | st.tuples(st.booleans()), inner),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
@settings(deadline=None)
def test_plain_values_survive(value):
    found = decode(json.loads(json.dumps(encode(value))))
    assert repr(found) == repr(value)
    assert type(found) is type(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", print, OrderedDict(), torch.ones(1)])
def test_other_values_are_refused(value):
    with pytest.raises(UnsavableError):
        encode([{"key": (value,)}])


def test_arithmetic_on_sizes(path):
    b = Builder()
    x = b.input("x", 2, 3, 4)
    rows = b.call(aten.sym_size.int, x, 0)
    product = b.call(operator.mul, rows, 3)
    most = b.call(torch.sym_max, product, 1)
    half = b.call(math.ceil, b.call(operator.truediv, most, 2))
    flat = b.call(aten.reshape.default, x, [product, 4])
    program = b.program(flat, b.call(aten.narrow.default, flat, 0, 0, half))
    loaded = reload(program, path)
    assert_same_numbers(program, loaded, [torch.randn(1, 3, 4)], [torch.randn(5, 3, 4)])


def test_regions_take_expressions_and_sizes(path):
    b = Builder()
    x = b.input("x", 2, 6, 4)
    rows = b.call(aten.sym_size.int, x, 0)
    flat = b.call(aten.reshape.default, x, [b.call(operator.mul, rows, 6), 4])
    half = b.call(operator.floordiv, b.call(operator.mul, rows, 3), 2)
    part = b.call(aten.narrow.default, flat, 0, 0, half)
    relu = b.call(aten.relu.default, part)
    out = b.call(aten.narrow.default, b.call(aten.sigmoid.default, flat), 0, 0, half)
    program = b.program(relu, out)
    region = cut_region(program, [n for n in program.nodes if n.name in (relu.name, out.name)])
    sizes = {str(node.meta["val"].shape[0]) for node in region.program.inputs}
    symbol = str(x.meta["val"].shape[0])
    assert sizes == {f"6*{symbol}", f"((3*{symbol})//2)"}
    loaded = reload(region.program, path)
    assert_same_numbers(region.program, loaded, [torch.randn(3, 4), torch.randn(12, 4)])


def test_inputs_that_are_sizes_or_depend_on_data(path):
    b = Builder()
    x = b.input("x", 2, 4)
    indices = b.call(aten.nonzero.default, x)
    half = b.call(operator.floordiv, b.call(aten.sym_size.int, x, 0), 2)
    source = b.program(b.call(aten.narrow.default, x, 0, 0, half), indices)
    (nonzero,) = source.find(aten.nonzero.default)
    b = Builder()
    first, second, third = (b.graph.placeholder(name) for name in "abc")
    for node, value in zip((first, second, third), (x, nonzero, half), strict=True):
        node.meta["val"] = value.meta["val"]
    part = b.call(aten.narrow.default, first, 0, 0, third)
    loaded = reload(b.program(part, b.call(aten.neg.default, second)), path)
    assert isinstance(loaded.inputs[2].meta["val"], torch.SymInt)
    assert [str(node.meta["val"].shape[0]) for node in loaded.inputs[1:2]] == ["u0"]
    assert loaded(torch.ones(4, 4), torch.ones(1, 2), 2)[0].shape == (2, 4)


def test_sizes_that_depend_on_data_keep_their_numbers(path):
    b = Builder()
    x = b.input("x", 2, 4)
    other = b.call(aten.sin.default, x)
    first = b.call(aten.nonzero.default, x)
    second = b.call(aten.nonzero.default, b.call(aten.relu.default, x))
    program = b.program(first, second)
    with program.edit() as edit:
        edit.replace(first, aten.nonzero.default, other)
    numbers = [str(n.meta["val"].shape[0]) for n in program.find(aten.nonzero.default)]
    assert numbers == ["u2", "u1"]
    loaded = reload(program, path)
    assert_same_numbers(program, loaded, [torch.tensor([[0.0, 1.0, -1.0, 2.0]])])


def test_fixed_shapes_constants_notes_and_keyword_arguments(path):
    class Scaled(nn.Module):
        def forward(self, x, *, scale, names=("a", {"b": None})):
            return x[:, :2] * scale, [x.sum()]

    case = make_case("scaled", Scaled().eval(), torch.randn(2, 3), scale=2.0)
    program = Program(case.program.module, case.program.signature, ("the batch is what it is",))
    loaded = reload(program, path)
    assert loaded.inputs[1].meta["val"] == 2.0
    assert_same_numbers(program, loaded, *case.inputs)


# -- leaves ----------------------------------------------------------------------------------


class Scale(LeafModule):
    """Settings, tensors and children of several kinds."""

    def __init__(self):
        super().__init__()
        self.factors = {"first": (2.0, math.inf), 3: [torch.float16, None]}
        self.table = torch.arange(4.0)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.register_buffer("offset", torch.ones(4), persistent=False)
        self.register_parameter("bias", None)

    def __setattr__(self, name, value):
        assert name != "factors" or not hasattr(self, "factors"), "set twice"
        super().__setattr__(name, value)

    def forward(self, x):
        return self.inner(x * self.factors["first"][0]) + self.offset


def test_leaves_of_plugins_with_settings_tensors_and_children(path):
    b = Builder(scale=Scale())
    program = b.program(b.call("scale", b.input("x", 2, 4)))
    loaded = reload(program, path, packages=("tests",))
    assert_same_numbers(program, loaded, [torch.randn(3, 4)])
    scale = loaded.module.scale
    assert scale.factors == {"first": (2.0, math.inf), 3: [torch.float16, None]}
    assert "offset" not in scale.state_dict()
    assert scale.bias is None
    assert torch.equal(scale.table, torch.arange(4.0))


def test_leaves_of_fxopt_need_no_packages(path):
    b = Builder(attention=ScaledDotProductAttention(0.1, True))
    x = b.input("x", 2, 2, 4, 8)
    program = b.program(b.call("attention", x, x, x, None))
    loaded = reload(program, path)
    assert_same_numbers(program, loaded, [torch.randn(2, 2, 4, 8)])


def test_what_acts_in_training_only_becomes_the_identity_and_a_note(path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 4), StochasticDepth(0.5, "row"), nn.Dropout(), StochasticDepth(0.5, "row")
    )
    case = make_case("deep", model.eval(), torch.randn(2, 4))
    before = case.program.text()
    save_program(case.program, path)
    loaded = load_program(path)
    assert_same_numbers(case.program, loaded, *case.inputs)
    kinds = [type(loaded.leaf(n)) for n in loaded.nodes if n.op == "call_module"]
    assert kinds == [nn.Linear, nn.Identity, nn.Dropout, nn.Identity]
    note = "2 StochasticDepth, which acts in training only, was saved as the identity"
    assert loaded.notes == (note,)
    assert case.program.text() == before
    assert case.program.notes == ()
