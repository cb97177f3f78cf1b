"""The first-party backends that need nothing but torch: what they compute, and how."""

import shutil

import pytest
import torch
from torch import nn

from fxopt.backends import LoweredModule
from fxopt.errors import BackendError
from fxopt_inductor import Inductor
from fxopt_inductor.kernels import is_frozen, read_kernels
from tests.building import Builder, aten, image, small_cnn

from .support import CPU, compile_for, needs_inductor, with_torch_alone


@pytest.fixture(scope="module")
def compiled():
    """The small net through Inductor, for two images."""
    return compile_for(Inductor(), small_cnn(), image())


@with_torch_alone
def test_double_precision(backend):
    b = Builder(fc=nn.Linear(4, 4).double())
    program = b.program(b.call("fc", b.input("x", 2, 4, dtype=torch.float64)))
    x = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(compile_for(backend, program, x)(x), program(x))


@needs_inductor
def test_weights_are_frozen_and_packed(compiled):
    assert is_frozen(compiled.code)
    convolutions = [k for k in compiled.kernels() if k.kind == "Convolution"]
    assert [kernel.name for kernel in convolutions] == ["stem", "body.conv"]
    assert compiled.code.count("mkldnn._convolution_pointwise") >= 2
    assert compiled.precisions() == {"f32": 3}


@needs_inductor
def test_inductor_leaves_the_program_and_its_weights_alone():
    program = small_cnn()
    before = program.fingerprint()
    pointers = [p.data_ptr() for p in program.module.parameters()]
    compile_for(Inductor(), program, image())
    assert program.fingerprint() == before
    assert [p.data_ptr() for p in program.module.parameters()] == pointers
    assert all(p.requires_grad for p in program.module.parameters())


@needs_inductor
def test_each_shape_gets_code_of_its_own():
    b = Builder()
    program = b.program(b.call(aten.relu.default, b.input("x", 2, 4)))
    module = LoweredModule(program, Inductor(), CPU)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4)
        assert torch.equal(module(x)[0], x.relu())
        assert module.executable(x).kernels()


@needs_inductor
def test_what_inductor_refuses_is_a_backend_error(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("lowering of aten.foo is missing")

    monkeypatch.setattr(torch._inductor, "compile", refuse)
    with pytest.raises(BackendError, match=r"aten\.foo is missing"):
        compile_for(Inductor(), small_cnn(), image())


def test_inductor_says_what_it_lacks(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "'no-such-compiler'" in Inductor().unavailable()
    monkeypatch.setenv("CXX", shutil.which("true"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    assert "Python.h is missing" in Inductor().unavailable()


def test_kernels_are_read_from_code():
    code = """\
_frozen_param3 = None  # device(type='cpu') torch.bfloat16 (64,) (1,) 7f7de364d090
def call(self, args):
    arg0_1, = args
    buf0 = empty_strided_cpu((1, 3), (3, 1), torch.float32)
    cpp_fused_relu_0(arg0_1, buf0)
    buf1 = torch.ops.mkldnn._convolution_pointwise.default(buf7, _frozen_param3, None, [3, 3])
    buf2 = reinterpret_tensor(buf0, (3, 1), (1, 1), 0); del buf0  # reuse
    extern_kernels.addmm(buf9, buf2, out=buf3)
    buf4 = aten._scaled_dot_product_flash_attention_for_cpu(arg0_1, arg0_1)
    return (buf4, )
def benchmark_compiled_module():
    extern_kernels.mm(buf0, buf0)
"""
    assert [(k.name, k.kind, k.precision) for k in read_kernels(code)] == [
        ("cpp_fused_relu_0", "Fused", "f32"),
        ("mkldnn._convolution_pointwise", "Convolution", "bf16"),
        ("extern_kernels.addmm", "MatMul", "f32"),
        ("aten._scaled_dot_product_flash_attention_for_cpu", "Attention", "unknown"),
    ]
    assert read_kernels("") == ()
