"""Programs as files: what is loaded is what was saved, and a file can do nothing else."""

import json
import math
import operator
import re
import sys
from collections import OrderedDict, defaultdict

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree
from torchvision.models import VisionTransformer, resnet18
from torchvision.ops import StochasticDepth

from fxopt.backends import cut_region
from fxopt.errors import FxoptError, SavingError
from fxopt.ir import LeafModule, Program, ScaledDotProductAttention, Signature
from fxopt.ir.saving import decode, encode, load_program, save_program
from fxopt.ir.saving.container import VERSION, read_container, write_container
from fxopt.ir.saving.specs import dump_spec, load_spec
from fxopt.ir.saving.targets import find_function, function_name
from fxopt.ir.saving.values import UnsavableError
from fxopt.pipeline.identity import difference
from fxopt.testing import make_case
from fxopt.testing.strategies import generated_cases
from fxopt_quantize import Quantize
from tests.building import Builder, aten, image, small_cnn
from tests.random_models import on_random_models


@pytest.fixture
def path(tmp_path):
    return tmp_path / "program.safetensors"


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


class Plus(nn.Module):
    def forward(self, x):
        return x + 1


class Open(LeafModule):
    def __init__(self, thing=None):
        super().__init__()
        self.thing = thing

    def forward(self, x):
        return x + 1


def hooked():
    leaf = nn.ReLU()
    leaf.register_forward_hook(lambda *_: None)
    return leaf


def local():
    class Local(Open):
        pass

    return Local()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Plus, r"the leaf body\.act, a .*Plus, which is neither of torch\.nn nor a LeafModule"),
        (lambda: Open(object()), r"the leaf body\.act, a .*Open, whose attribute thing holds"),
        (hooked, r"the leaf body\.act, a .*ReLU, which has hooks"),
        (local, r"whose class cannot be imported"),
        (lambda: Open(torch.ones(2, device="meta")), r"the tensor body\.act\.thing"),
        (lambda: Open(nn.utils.rnn.pack_sequence([torch.ones(2)])), r"PackedSequence"),
    ],
)
def test_other_leaves_are_refused_by_name(make, reason, path):
    b = Builder(body__act=make())
    node = b.graph.call_module("body.act", (b.input("x", 2, 4),))
    node.meta["val"] = node.args[0].meta["val"]
    program = b.program(node)
    with pytest.raises(SavingError, match=reason):
        save_program(program, path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "kwargs", "reason"),
    [
        (print, {}, "%print_1: the function <built-in function print>"),
        (eval, {}, "%eval_1: the function <built-in function eval>"),
        (aten.add.Scalar, {"other": b"1"}, "%add_scalar: a builtins.bytes"),
    ],
)
def test_other_functions_and_arguments_are_refused_by_node(target, kwargs, reason, path):
    b = Builder()
    x = b.input("x", 2, 4)
    node = b.graph.call_function(target, (x,), kwargs)
    node.meta.update(val=x.meta["val"], source="model.py:7")
    with pytest.raises(SavingError) as info:
        save_program(b.program(node), path)
    assert reason in info.value.what
    assert info.value.where == "model.py:7"


@pytest.mark.parametrize(
    "function",
    [aten.add.Tensor, torch.ops.aten.__and__.Tensor, operator.getitem, max, math.ceil,
     torch.sym_max, torch._sym_sqrt],
)  # fmt: skip
def test_functions_are_found_by_their_name(function):
    assert find_function(function_name(function)) is function


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "os.system", "operator.attrgetter", "torch.load", "torch.ops.aten.relu",
     "torch.ops.aten.relu_.default", "torch.ops.aten.no_such.default", "torch.ops.nothing.a.b",
     "torch.ops.load_library.__func__.__globals__", "torch.ops.aten.relu.__class__",
     "xtorch.ops.aten.relu.default", ""],
)  # fmt: skip
def test_no_other_function_is_found(name):
    with pytest.raises(ValueError):
        find_function(name)


@pytest.mark.parametrize("function", [eval, print, operator.attrgetter, aten.relu, [], "x"])
def test_other_functions_have_no_name(function):
    assert function_name(function) is None


# -- signatures ------------------------------------------------------------------------------


def test_nestings_survive():
    for tree in ((1, [2, {"b": 3, "a": None}]), OrderedDict(x=1), defaultdict(list, a=[1])):
        spec = pytree.tree_structure(tree)
        assert load_spec(dump_spec(spec), ()) == spec


def test_nestings_of_unknown_classes_are_refused(path):
    class Output(tuple):
        pass

    pytree.register_pytree_node(Output, lambda o: (list(o), None), lambda v, _: Output(v))
    spec = pytree.tree_structure(Output([1]))
    inputs = pytree.tree_structure(((1,), {}))
    program = Program(small_cnn().module, Signature(inputs, spec, True))
    with pytest.raises(SavingError, match=r"the nesting .*Output"):
        save_program(program, path)


def test_keys_that_json_would_change_are_refused():
    with pytest.raises(UnsavableError):
        dump_spec(pytree.tree_structure({(1, 2): 0}))


def test_a_nesting_imports_nothing():
    text = dump_spec(pytree.tree_structure(defaultdict(list, a=1)))
    for module, name in (("os", "getcwd"), ("builtins", "breakpoint"), ("this", "s")):
        bad = text.replace("builtins", module).replace('"list"', f'"{name}"')
        assert bad != text
        with pytest.raises(ValueError, match="defaultdict"):
            load_spec(bad, ())
    plain = dump_spec(pytree.tree_structure({"key": 1}))
    enum = json.dumps(json.dumps([{"__enum__": True, "fqn": "this:s", "name": "x"}]))
    bad = plain.replace(json.dumps(json.dumps(["key"])), enum)
    assert bad != plain
    with pytest.raises(ValueError, match="this may not be imported"):
        load_spec(bad, ())
    assert "this" not in sys.modules


# -- files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "program"
    save_program(small_cnn(), path)
    return path


def test_damage_anywhere_is_noticed(saved, path):
    data = saved.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(0, len(data), (40,), generator=generator).tolist():
        for bit in (1, 64):
            damaged = bytearray(data)
            damaged[position] ^= bit
            path.write_bytes(damaged)
            with pytest.raises(SavingError, match=re.escape(str(path))):
                load_program(path)


@pytest.mark.parametrize("length", [0, 1, 8, 100, -5000, -1])
def test_truncated_files_are_refused(saved, path, length):
    path.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(SavingError, match="damaged"):
        load_program(path)


def test_other_files_are_refused(saved, path, tmp_path):
    for data in (b"hello" * 100, b"\x80\x02pickle", b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(SavingError, match="no safetensors file"):
            load_program(path)
    safetensors.torch.save_file({"x": torch.ones(2)}, path)
    with pytest.raises(SavingError, match="no program that fxopt has saved"):
        load_program(path)
    document, tensors = read_container(saved, "program")
    write_container(path, "examples", document, tensors)
    with pytest.raises(SavingError, match="no program that fxopt has saved"):
        load_program(path)
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SavingError, match="cannot be read"):
            load_program(missing)
    with pytest.raises(SavingError, match="cannot be written"):
        save_program(small_cnn(), tmp_path / "no folder" / "program")


def test_newer_versions_are_refused(saved, path, monkeypatch):
    document, tensors = read_container(saved, "program")
    with monkeypatch.context() as patch:
        patch.setattr("fxopt.ir.saving.container.VERSION", VERSION + 1)
        write_container(path, "program", document, tensors)
    with pytest.raises(SavingError, match=f"version {VERSION + 1}.*reads up to {VERSION}") as info:
        load_program(path)
    assert info.value.hint == "update fxopt"


def test_a_file_is_replaced_whole_or_not_at_all(path, monkeypatch):
    save_program(small_cnn(), path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", _fail)
        with pytest.raises(SavingError, match="disk full"):
            save_program(unary(aten.relu.default), path)
    assert path.read_bytes() == before
    save_program(unary(aten.relu.default), path)
    assert path.read_bytes() != before
    assert list(path.parent.iterdir()) == [path]


def _fail(tensors, path, metadata):
    path.write_bytes(b"half")
    raise OSError("disk full")


def node(which, /, **changes):
    def change(document):
        (entry,) = [entry for entry in document["nodes"] if entry["name"] == which]
        entry.update(changes)

    return change


def leaf(**changes):
    def change(document):
        entry = next(e for e in document["modules"] if "attributes" in e)
        for key, value in changes.items():
            entry[key] = {**entry[key], **value} if isinstance(value, dict) else value

    return change


def update(**changes):
    return lambda document: document.update(changes)


HOSTILE = {
    "function": (node("relu_default", target="builtins.eval"), "cannot call 'builtins.eval'"),
    "operator": (
        node("relu_default", target="torch.ops.aten.relu_.default"), "writes to its arguments",
    ),
    "method": (node("relu_default", op="call_method"), "a node cannot be a call_method"),
    "name": (node("relu_default", name="relu; import os"), "no name of a node"),
    "keyword": (node("relu_default", kwargs={"a=1) #": 1}), "no name of a node or an argument"),
    "input": (node("x", target="x=print(1)"), "no name of a node"),
    "module": (node("stem", target='stem") or print("'), "does not accept its arguments"),
    "reference": (node("relu_default", args=[{"node": "later"}]), "it lacks 'later'"),
    "arity": (node("relu_default", args=[1, 2, 3]), "does not accept its arguments"),
    "tag": (node("relu_default", args=[{"code": "print()"}]), "unknown kind 'code'"),
    "dtype": (node("relu_default", args=[{"dtype": "load"}]), "torch has no dtype 'load'"),
    "size": (
        node("x", input={"tensor": {"dtype": "float32", "device": "cpu", "strides": [1],
                                    "sizes": ["__import__('os').getpid()"]}}),
        "no expression of sizes|sizes are not computed with",
    ),
    "power": (
        node("x", input={"tensor": {"dtype": "float32", "device": "cpu", "strides": [1],
                                    "sizes": ["9**9**9**9"]}}),
        "no power of a size",
    ),
    "class": (leaf(**{"class": "subprocess:Popen"}), "subprocess may not be imported"),
    "main": (leaf(**{"class": "fxopt.__main__:app"}), "__main__ may not be imported"),
    "no class": (leaf(**{"class": "fxopt.errors:FxoptError"}), "no class of torch.nn"),
    "nn": (leaf(**{"class": "torch.nn.modules.module:register_module_forward_hook"}), "no class"),
    "missing class": (leaf(**{"class": "torch.nn.modules.nothing:X"}), "cannot be imported"),
    "hooks": (leaf(attributes={"_forward_hooks": {"dict": []}}), "not for files to set"),
    "quotes": (leaf(children={'a"b': None}), "no name of a module"),
    "cycle": (leaf(children={"again": 0}), "cannot be loaded"),
    "tensor": (leaf(parameters={"weight": 99}), "index out of range"),
    "missing": (lambda document: document.pop("signature"), "it lacks 'signature'"),
    "title": (update(title="X(): pass"), "no name of a class"),
    "list": (update(nodes=None), "cannot be loaded"),
    "signature": (
        lambda document: document["signature"].update(
            outputs=dump_spec(pytree.tree_structure((1, 2)))
        ),
        "outputs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, saved, path):
    change, reason = HOSTILE[name]
    document, tensors = read_container(saved, "program")
    change(document)
    write_container(path, "program", document, tensors)
    with pytest.raises(SavingError, match=reason) as info:
        load_program(path)
    assert isinstance(info.value, FxoptError)


def test_what_may_not_be_imported_is_not(saved, path, tmp_path, monkeypatch):
    (tmp_path / "with_effects.py").write_text("print('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    document, tensors = read_container(saved, "program")
    leaf(**{"class": "with_effects:Leaf"})(document)
    write_container(path, "program", document, tensors)
    with pytest.raises(SavingError, match="may not be imported"):
        load_program(path)
    assert "with_effects" not in sys.modules
