"""Runtimes that are pointed to torch's memory, and remember where they point."""

import torch
from torch import nn

from fxopt.frontend import capture_program
from tests.building import image, small_cnn

from .support import compile_for, with_each_runtime


@with_each_runtime
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


@with_each_runtime
def test_small_and_large_outputs_are_right_and_not_overwritten(backend):
    x, other = torch.randn(2, 2, 3, 128, 128)
    program = capture_program(Both().eval(), (x[None],), {})
    code = compile_for(backend, program, x[None])
    first, second = code(x[None]), code(other[None])
    torch.testing.assert_close(first, program(x[None]))
    torch.testing.assert_close(second, program(other[None]))


class Passed(nn.Module):
    """Yields its input, and a constant."""

    def __init__(self):
        super().__init__()
        self.register_buffer("fixed", torch.arange(3.0))

    def forward(self, x):
        return x, self.fixed, x + 1


@with_each_runtime
def test_what_is_written_into_outputs_changes_no_input_and_no_constant(backend):
    x = torch.randint(0, 10, (2, 5))
    before = x.clone()
    program = capture_program(Passed().eval(), (x,), {})
    code = compile_for(backend, program, x)
    outputs, others = code(x), code(x.flip(1))
    for output in (*outputs, *others):
        output.zero_()
    assert torch.equal(x, before)
    torch.testing.assert_close(code(x), program(x))
