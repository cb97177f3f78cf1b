"""The Inductor backend in low precision: int8 and bfloat16, and which kernels its code calls."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt.backends.fallback import find_fallbacks
from fxopt.cost import find_target
from fxopt.errors import BackendError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt.plugin import Kernel
from fxopt_inductor import Inductor
from fxopt_inductor.flat import flat_module
from fxopt_inductor.kernels import read_kernels
from fxopt_inductor.lowp import Form, heavy_kernels, missing_operators, rewrite
from fxopt_quantize import Quantize
from tests.building import Builder, image, small_cnn

CPU = find_target("cpu")
needs_bfloat16 = pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & set(CPU.features), reason="the processor has no bfloat16"
)

needs_inductor = pytest.mark.skipif(Inductor().unavailable() is not None, reason="no toolchain")
needs_int8 = pytest.mark.skipif(missing_operators() is not None, reason="torch without oneDNN")


class Net(nn.Module):
    """A stem, an inverted residual block and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.expand, self.project = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = nn.functional.hardswish(self.expand(x))
        x = self.project(nn.functional.relu6(self.depthwise(y))) + x
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """One layer of a transformer."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))


def quantized(model, x):
    torch.manual_seed(0)
    program = capture_program(model.eval(), (x,), {}).clone()
    context = Context(CPU, calibration=Calibration([(x,)], program.signature))
    Quantize().run(program, context)
    return program


def compiled(backend, program, *inputs):
    return backend.lower(program, inputs, CPU).compile(inputs)


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def net():
    """A quantized net, its input and what it gives."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    program = quantized(Net(), x)
    with torch.no_grad():
        return program, x, program(x)[0]


LAYERS = ["stem", "expand", "depthwise", "project", "head"]


@needs_inductor
@needs_int8
@pytest.mark.parametrize(
    "settings",
    [{}, {"cpp_wrapper": True}, {"products": "template"}],
    ids=["python", "c++", "template"],
)
def test_quantized_layers_run_in_int8(net, settings):
    program, x, expected = net
    code = compiled(replace(Inductor(), **settings), program, x)
    assert relative(code(x)[0], expected) < 0.01
    heavy = [k for k in code.kernels() if k.name in LAYERS]
    assert [(k.name, k.precision) for k in heavy] == [(name, "int8") for name in LAYERS]
    assert code.precisions() == {"int8": 5}
    assert find_fallbacks(program, code.kernels()) == ()
    products = code.code.count("= torch.ops.onednn.qlinear_pointwise")
    python, template = "cpp_wrapper" not in settings, settings.get("products") == "template"
    wide = "avx2" not in CPU.features or "avx512f" in CPU.features  # else convolutions stay such
    assert products == ((3 if wide else 1) if python and not template else 0)
    if template:
        fused = [k for k in code.kernels() if "qlinear" in k.name]
        assert not fused  # each was matched with its layer


@needs_inductor
def test_bfloat16_is_for_heavy_operations_alone():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 32)
    program = capture_program(Attention().eval(), (x,), {})
    code = compiled(Inductor(precision="bf16"), program, x)
    with torch.no_grad():
        expected = program(x)[0]
    output = code(x)[0]
    assert output.dtype is torch.float32
    assert 0 < relative(output, expected) < 0.01
    assert [(k.kind, k.precision) for k in code.kernels() if k.precision != "f32"][:3] == [
        ("MatMul", "bf16"),
        ("Attention", "bf16"),
        ("MatMul", "bf16"),
    ]


def test_values_stay_in_bfloat16_while_they_only_move():
    x = torch.randn(2, 6, 32)
    program = capture_program(Attention().eval(), (x,), {})
    module = rewrite(flat_module(program, (x,)), Form(compiled=True, bf16=True))
    casts = module.graph.find_nodes(
        op="call_function", target=torch.ops.aten._to_copy.default, sort=False
    )
    dtypes = [node.kwargs["dtype"] for node in casts]
    # weights and biases of two layers and what the norm gives; the sum takes a float32
    assert dtypes.count(torch.bfloat16) == 5
    assert dtypes.count(torch.float32) == 1
    with torch.no_grad():
        assert relative(module(x)[0], program(x)[0]) < 0.01


def test_what_follows_convolutions_stays_in_bfloat16():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    program = capture_program(Net().eval(), (x,), {})
    module = rewrite(flat_module(program, (x,)), Form(compiled=True, bf16=True))
    casts = module.graph.find_nodes(
        op="call_function", target=torch.ops.aten._to_copy.default, sort=False
    )
    values = [node for node in casts if node.args[0].op != "get_attr"]
    assert [(node.args[0].op, node.kwargs["dtype"]) for node in values] == [
        ("placeholder", torch.bfloat16),
        ("call_function", torch.float32),  # what the user sees
    ]
    with torch.no_grad():
        assert relative(module(x)[0], program(x)[0]) < 0.02


class MeanInFloat32(nn.Module):
    """One that asks for a dtype."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3), dtype=torch.float32))


def test_a_dtype_that_was_asked_for_is_not_taken_for_bfloat16():
    x = torch.randn(2, 3, 8, 8)
    program = capture_program(MeanInFloat32().eval(), (x,), {})
    module = rewrite(flat_module(program, (x,)), Form(compiled=True, bf16=True))
    with torch.no_grad():
        assert relative(module(x)[0], program(x)[0]) < 0.02


@needs_int8
def test_what_is_not_int8_runs_in_bfloat16():
    x = torch.randn(2, 6, 32)
    program = quantized(Attention(), x)
    module = rewrite(flat_module(program, (x,)), Form(compiled=True, bf16=True))
    kernels = [(k.kind, k.precision) for k in heavy_kernels(module).values()]
    assert kernels == [("MatMul", "int8"), ("Attention", "bf16"), ("MatMul", "int8")]
    with torch.no_grad():
        assert relative(module(x)[0], program(x)[0]) < 0.02


@needs_int8
def test_bfloat16_is_refused_where_it_changes_nothing(net):
    program, x, _ = net
    with pytest.raises(BackendError, match="no heavy operation is left for bfloat16"):
        compiled(Inductor(precision="bf16"), program, x)


def test_double_precision_stays():
    program = small_cnn()
    program.module.double()
    x = image().double()
    exported = flat_module(program, (x,))
    module = rewrite(exported, Form(compiled=True, bf16=True))
    assert {k.precision for k in heavy_kernels(module).values()} == {"f64"}
    assert torch.equal(module(x)[0], exported(x)[0])


@pytest.mark.parametrize(
    ("features", "exact", "precisions"),
    [
        (("avx512_bf16",), False, ["f32", "bf16"]),
        (("amx_bf16",), False, ["f32", "bf16"]),
        (("avx512_bf16",), True, ["f32"]),
        (("avx2",), False, ["f32"]),
    ],
)
def test_variants(features, exact, precisions):
    target = replace(CPU, features=features)
    variants = Inductor().variants(small_cnn(), target, exact)
    assert [variant.precision for variant in variants] == precisions
    assert len({variant.label for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("rows", "features", "called"),  # multiply-adds take 0.02, 0.9 and 1.4 ms at the float32 peak
    [
        (256, (), ["f32 c++", "bf16 c++"]),
        (10_000, (), ["f32", "bf16 c++"]),
        (16_000, (), ["f32", "bf16"]),
        (16_000, ("amx_bf16",), ["f32", "bf16 c++"]),
    ],
)
def test_calls_are_compiled_where_the_arithmetic_takes_little(rows, features, called):
    target = replace(CPU, features=("avx512f", "avx512_bf16", *features), threads=1)
    b = Builder(layer=nn.Linear(64, 64))
    program = b.program(b.call("layer", b.input("x", rows, 64)))
    found = Inductor().variants(program, target, exact=False)
    assert [f"{v.precision}{' c++' * v.cpp_wrapper}" for v in found] == called


def test_a_batch_of_one_is_not_taken_for_the_two_that_it_is_captured_as():
    target = replace(CPU, features=("avx512f",), threads=1)
    one, three = (
        capture_program(nn.Linear(64, 64), (torch.randn(rows, 64),), {}) for rows in (1, 3)
    )
    assert Inductor()._at_best(three, target) == pytest.approx(3 * Inductor()._at_best(one, target))


def test_labels_tell_settings():
    backend = Inductor(precision="bf16", products="template", cpp_wrapper=True)
    assert backend.label == "inductor bf16 template c++"


def test_layers_are_found_in_code():
    code = """\
_frozen_param3 = None  # device(type='cpu') torch.float32 (64,) (1,) 7f7de364d090
cpp_fused_permute_qlinear_pointwise_view_1 = async_compile.cpp_pybinding(['a'], '''
    micro_gemm(a)
''')
cpp_fused_add_addmm_2 = async_compile.cpp_pybinding(['a'], '''
    a += 1
''')
def call(self, args):
    # Topologically Sorted Source Nodes: [quantize, a_conv], Original ATen: [onednn.qconv]
    buf1 = torch.ops.onednn.qconv_pointwise.tensor(buf0, x_scale, _frozen_param3)
    cpp_fused_permute_qlinear_pointwise_view_1(buf1, buf2)
    # Topologically Sorted Source Nodes: [linear], Original ATen: [aten.linear]
    buf3 = torch.ops.mkl._mkl_linear.default(buf2, _frozen_param3)
    cpp_fused_add_addmm_2(buf3)
    return (buf3, )
"""
    layers = {
        "a_conv": Kernel("a.conv", "Convolution", "int8"),
        "b_conv": Kernel("b.conv", "Convolution", "int8"),
        "linear": Kernel("head", "MatMul", "f32"),
    }
    assert read_kernels(code, layers) == (
        *layers.values(),
        Kernel("cpp_fused_add_addmm_2", "Fused", "unknown"),
    )
    two = {name: layers[name] for name in ("a_conv", "linear")}
    assert Kernel("cpp_fused_permute_qlinear_pointwise_view_1", "MatMul", "int8") in read_kernels(
        code, two
    )


def test_a_call_that_names_the_layer_before_is_that_of_the_one_which_nothing_names():
    code = """
def call(self, args):
    # Topologically Sorted Source Nodes: [up], Original ATen: [onednn.qlinear_pointwise]
    buf1 = torch.ops.onednn.qlinear_pointwise.tensor(buf0, x_scale, _frozen_param3)
    # Topologically Sorted Source Nodes: [up, add_2], Original ATen: [onednn.qlinear_pointwise]
    torch.ops.onednn.qlinear_pointwise.binary_tensor(buf1, x_scale_1, _frozen_param4, buf0, 'sum')
    # Topologically Sorted Source Nodes: [linear], Original ATen: [aten.linear]
    buf3 = torch.ops.mkl._mkl_linear.default(buf2, _frozen_param3)
    return (buf3, )
"""
    layers = {
        "up": Kernel("mlp.0", "MatMul", "int8"),
        "down": Kernel("mlp.3", "MatMul", "int8"),
        "linear": Kernel("head", "MatMul", "f32"),
    }
    assert read_kernels(code, layers) == tuple(layers.values())
    alone = {name: layers[name] for name in ("up", "linear")}
    assert read_kernels(code, alone) == tuple(alone.values())  # a layer of two calls is one


def test_calls_that_name_nothing_and_those_that_name_the_layer_before_are_matched_together():
    code = """
def call(self, args):
    # Topologically Sorted Source Nodes: [mul, add_3], Original ATen: [aten.mul]
    torch.ops.onednn.qlinear_pointwise.binary_tensor(buf1, x_scale_1, _frozen_param4, buf0, 'sum')
    cpp_fused_layer_norm_0(buf1, buf2)
    # Topologically Sorted Source Nodes: [up], Original ATen: [onednn.qlinear_pointwise]
    buf3 = torch.ops.onednn.qlinear_pointwise.tensor(buf2, x_scale_2, _frozen_param5)
    # Topologically Sorted Source Nodes: [up, add_4], Original ATen: [onednn.qlinear_pointwise]
    torch.ops.onednn.qlinear_pointwise.binary_tensor(buf3, x_scale_3, _frozen_param6, buf2, 'sum')
    return (buf3, )
"""
    names = {"out": "attention.out", "up": "mlp.0", "down": "mlp.3"}
    layers = {node: Kernel(name, "MatMul", "int8") for node, name in names.items()}
    fused = Kernel("cpp_fused_layer_norm_0", "Fused", "unknown")
    assert read_kernels(code, layers) == (*layers.values(), fused)
    more = layers | {"other": Kernel("other", "MatMul", "int8")}  # one too many to tell which
    kept = [kernel.name for kernel in read_kernels(code, more)]
    assert kept == ["mlp.0", "onednn.qlinear_pointwise.binary_tensor", fused.name]


def test_a_call_is_not_taken_for_what_comes_before_it():
    code = """\
def call(self, args):
    # Topologically Sorted Source Nodes: [qkv, attention], Original ATen: [aten.attention]
    buf4 = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(buf0)
    return (buf4, )
"""
    layers = {
        "qkv": Kernel("qkv", "MatMul", "int8"),
        "attention": Kernel("attention", "Attention", "bf16"),
    }
    assert read_kernels(code, layers) == (layers["attention"],)


def test_calls_are_found_in_cpp_code():
    code = """\
void inductor_entry_impl(
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, a, b, cached_torch_dtype_bfloat16, d,  0, &buf0_handle));
    cpp_fused_relu_0((float*)(buf1.data_ptr()));
    // Topologically Sorted Source Nodes: [fc], Original ATen: [aten.linear]
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__qlinear_pointwise_tensor(buf0, x_scale));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(buf0, buf2));
} // end
extern "C" void cpp_fused_relu_0(float* out)
"""  # noqa: E501 - as it is written
    assert [(k.name, k.kind, k.precision) for k in read_kernels(code)] == [
        ("cpp_fused_relu_0", "Fused", "unknown"),
        ("qlinear_pointwise_tensor", "MatMul", "int8"),
        ("bmm_out", "MatMul", "bf16"),
    ]


@needs_bfloat16
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_compute_in_bfloat16(kind):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(16, 32, batch_first=True, bidirectional=True)
            self.tags = nn.Linear(64, 8)

        def forward(self, x):
            outputs, state = self.layer(x)
            return self.tags(outputs), state

    torch.manual_seed(0)
    x = torch.randn(2, 7, 16)
    program = capture_program(Tagger().eval(), (x,), {})
    code = Inductor(precision="bf16").lower(program, (x,), CPU).compile((x,))
    expected = program(x)
    for found, wanted in zip(code(x), expected, strict=True):
        assert found.dtype is torch.float32
        assert 0 < relative(found, wanted) < 0.02


@needs_inductor
@pytest.mark.parametrize("cpp_wrapper", [False, True], ids=["python", "c++"])
def test_frozen_weights_go_with_the_code(cpp_wrapper):
    def held():
        gc.collect()
        tensors = (t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter))
        return sum(t.shape == (17, 1031) for t in tensors)

    def run():
        x = torch.randn(4, 1031)
        program = capture_program(nn.Linear(1031, 17).eval(), (x,), {})
        code = compiled(Inductor(cpp_wrapper=cpp_wrapper), program, x)
        assert relative(code(x)[0], program(x)[0].detach()) < 1e-5
        return held()

    assert run() > 0
    assert held() == 0
