"""Runtimes that are pointed to torch's memory, and remember where they point."""

import pytest
import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt_onnxruntime import ONNXRuntime
from fxopt_openvino import OpenVINO
from tests.building import image, small_cnn

CPU = find_target("cpu")


def runtime(backend, name):
    missing = backend.unavailable()
    skip = pytest.mark.skipif(missing is not None, reason=str(missing))
    return pytest.param(backend, marks=skip, id=name)


each_runtime = pytest.mark.parametrize(
    "backend", [runtime(OpenVINO(), "openvino"), runtime(ONNXRuntime(), "onnxruntime")]
)


def compile_for(backend, program, *inputs):
    return backend.lower(program, inputs, CPU).compile(inputs)


@each_runtime
def test_new_values_at_an_address_that_is_bound_already(backend):
    program, x = small_cnn(), image()
    code = compile_for(backend, program, x)
    code(x)
    x.mul_(-3.0)
    torch.testing.assert_close(code(x), program(x), rtol=1e-4, atol=1e-5)
    other = torch.randn_like(x)
    torch.testing.assert_close(code(other), program(other), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(code(x), program(x), rtol=1e-4, atol=1e-5)


class Both(nn.Module):
    """An output that is bound to fresh memory at each call, and one that is copied."""

    def forward(self, x):
        return x.relu(), x.mean((1, 2, 3))


@each_runtime
def test_small_and_large_outputs_are_right_and_not_overwritten(backend):
    x, other = torch.randn(2, 2, 3, 128, 128)
    program = capture_program(Both().eval(), (x[None],), {})
    code = compile_for(backend, program, x[None])
    first, second = code(x[None]), code(other[None])
    torch.testing.assert_close(first, program(x[None]))
    torch.testing.assert_close(second, program(other[None]))
