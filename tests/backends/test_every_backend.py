"""What holds of the code of every backend: its numbers, its results, who may call it."""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from fxopt.backends import LoweredModule
from fxopt.frontend import capture_program
from tests.building import Builder, aten, image, small_cnn

from .support import CPU, compile_for, with_each_backend

NEAR = {"rtol": 1e-4, "atol": 1e-5}


@with_each_backend
def test_outputs_agree_for_any_strides(backend):
    program, x = small_cnn(), image()
    code = compile_for(backend, program, x)
    outputs = code(x)
    assert isinstance(outputs, tuple)
    torch.testing.assert_close(outputs, program(x), **NEAR)
    strided = x.permute(0, 1, 3, 2)
    for other in (strided, x.contiguous(memory_format=torch.channels_last), x[:, :, ::1]):
        torch.testing.assert_close(code(other), program(other), **NEAR)
    assert not code(x.clone().requires_grad_())[0].requires_grad


@with_each_backend
def test_outputs_are_not_overwritten(backend):
    x = image()
    code = compile_for(backend, small_cnn(), x)
    (first,) = code(x)
    kept = first.clone()
    code(torch.randn_like(x))
    assert torch.equal(first, kept)


@with_each_backend
def test_many_threads_can_call_at_once(backend):
    program = small_cnn()
    code = compile_for(backend, program, image())
    many = [torch.randn(2, 3, 8, 8) for _ in range(64)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda one: code(one), many))
    for one, result in zip(many, results, strict=True):
        torch.testing.assert_close(result, program(one), **NEAR)


@with_each_backend
def test_results_are_no_inference_tensors(backend):
    (output,) = compile_for(backend, small_cnn(), image())(image())
    head = nn.Linear(20, 2)
    head(output).sum().backward()  # an inference tensor could not be saved for this
    assert head.weight.grad is not None


@with_each_backend
def test_several_outputs_one_of_them_an_input(backend):
    b = Builder(fc=nn.Linear(4, 4))
    x, y = b.input("x", 2, 4), b.input("y", 2, 4)
    program = b.program(y, b.call("fc", x), b.call(aten.add.Tensor, x, y), y)
    inputs = torch.randn(2, 4), torch.randn(2, 4)
    outputs = compile_for(backend, program, *inputs)(*inputs)
    torch.testing.assert_close(outputs, program(*inputs))


class Fixed(nn.Module):
    """Takes batches of two alone."""

    def forward(self, x):
        return x.reshape(2, 12) @ torch.ones(12, 3)


@with_each_backend
def test_a_fixed_batch(backend):
    x = torch.randn(2, 3, 4)
    program = capture_program(Fixed(), (x,), {})
    assert not program.signature.batch
    torch.testing.assert_close(compile_for(backend, program, x)(x), program(x))


@with_each_backend
def test_a_lowered_module_can_be_deep_copied(backend):
    program, x = small_cnn(), image()
    module = LoweredModule(program, backend, CPU)
    expected = module(x)
    twin = copy.deepcopy(module)
    torch.testing.assert_close(twin(x), expected)
    with torch.no_grad():
        twin.fxopt_source.get_submodule("head").weight.zero_()
    torch.testing.assert_close(module(x), expected)


class Lookup(nn.Module):
    """Integers, truth values, and outputs that are inputs or constants."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.register_buffer("fixed", torch.arange(3.0))

    def forward(self, ids, scale, mask):
        y = self.table(ids) * scale
        return {
            "y": y.masked_fill(mask, 0.0),
            "same": ids,
            "row": scale.reshape(-1),
            "fixed": self.fixed,
            "mask": mask,
        }


@with_each_backend
def test_other_dtypes_and_outputs_that_are_inputs_or_constants(backend):
    ids, scale = torch.randint(0, 10, (2, 5)), torch.rand(2, 1, 1)
    mask = torch.rand(2, 5, 1) > 0.5
    program = capture_program(Lookup().eval(), (ids, scale, mask), {})
    code = compile_for(backend, program, ids, scale, mask)
    before = ids.clone()
    outputs, expected = code(ids, scale, mask), program(ids, scale, mask)
    for output, right in zip(outputs, expected, strict=True):
        assert output.dtype == right.dtype
        torch.testing.assert_close(output, right)
    code(ids.flip(1), scale, mask)
    for output, right in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, right)
    assert torch.equal(ids, before)
