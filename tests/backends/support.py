"""The first-party backends, each skipped where it is not available, and how to lower to one."""

import pytest

from fxopt.cost import find_target
from fxopt_eager import Eager
from fxopt_inductor import Inductor
from fxopt_onnxruntime import ONNXRuntime
from fxopt_openvino import OpenVINO

CPU = find_target("cpu")


def compile_for(backend, program, *inputs):
    return backend.lower(program, inputs, CPU).compile(inputs)


def _with(*backends):
    def given(backend):
        missing = backend.unavailable()
        skip = pytest.mark.skipif(missing is not None, reason=str(missing))
        return pytest.param(backend, marks=skip, id=backend.info.name)

    return pytest.mark.parametrize("backend", [given(backend) for backend in backends])


with_torch_alone = _with(Eager(), Inductor())
with_each_runtime = _with(OpenVINO(), ONNXRuntime())
with_each_backend = _with(Eager(), Inductor(), OpenVINO(), ONNXRuntime())
needs_inductor = pytest.mark.skipif(Inductor().unavailable() is not None, reason="no toolchain")
