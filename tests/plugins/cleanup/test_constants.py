"""cleanup: what needs no input is computed once, as far as memory allows."""

import torch
from torch import nn

from tests.building import Builder, aten
from tests.plugins.cleanup.support import (
    F64,
    Calls,
    clean,
    cleaned,
    operations,
)


def test_what_depends_on_buffers_and_constants_alone_is_folded():
    def forward(m, x):
        steps = torch.arange(4, dtype=x.dtype) * 2
        mask = torch.full((4, 4), float("-inf"), dtype=x.dtype).triu(1)
        return torch.softmax(x @ ((m.table / steps.add(1)).exp()[:, None] * m.table) + mask, -1)

    program, result = cleaned(Calls(forward, table=torch.randn(4)), torch.randn(2, 4, 4, dtype=F64))
    assert operations(program) == ["matmul", "add", "softmax"]
    assert result.summary == "2 folded"
    folded = {name: tensor.dtype for name, tensor in program.module.named_buffers()}
    assert set(folded.values()) == {F64}
    assert len(folded) == 2  # the table itself is used no more


def test_a_shape_is_all_that_is_taken_from_an_input():
    program, result = cleaned(Calls(lambda m, x: x + x.new_zeros((6, 6)).cos().triu(1)))
    assert "new_zeros" not in operations(program)
    assert result.details["folded"] == 1


def test_what_depends_on_the_batch_is_not_folded():
    program, result = cleaned(Calls(lambda m, x: x + x.new_ones((x.shape[0], 1, 1, 1))))
    assert "new_ones" in operations(program)
    assert "folded" not in result.details


def test_parameters_stay_trainable_unless_asked_otherwise():
    def forward(m, x):
        return x * (m.weight * 2).exp()

    program, _ = cleaned(Calls(forward, weight=nn.Parameter(torch.randn(6))))
    assert operations(program) == ["mul", "exp", "mul"]
    program, result = cleaned(Calls(forward, weight=nn.Parameter(torch.randn(6))), parameters=True)
    assert operations(program) == ["mul"]
    assert result.summary == "1 folded"
    assert not list(program.module.parameters())


def test_a_frozen_parameter_is_a_parameter():
    weight = nn.Parameter(torch.randn(6), requires_grad=False)
    program, _ = cleaned(Calls(lambda m, x: x * m.weight.exp(), weight=weight))
    assert operations(program) == ["exp", "mul"]


def outer_sum(m, x):
    return x + (m.row[:, None] + m.row[None, :]).exp()


def test_a_constant_does_not_blow_up_memory():
    program, _ = cleaned(Calls(outer_sum, row=torch.randn(6)), constant_mb=6 * 6 * 8 / 2**20 - 1e-6)
    # the views of the row are small enough, their sum is not
    assert operations(program) == ["add", "exp", "add"]
    program, _ = cleaned(Calls(outer_sum, row=torch.randn(6)), constant_mb=6 * 6 * 8 / 2**20)
    assert operations(program) == ["add"]


def test_a_constant_no_larger_than_its_sources_is_folded_whatever_the_limit():
    program, _ = cleaned(Calls(lambda m, x: x + m.row.exp(), row=torch.randn(6)), constant_mb=0.0)
    assert operations(program) == ["add"]


def test_a_broadcast_is_not_stored():
    def forward(m, x):
        return torch.cat([x, m.row.exp().expand(4, 6, 6)[None].expand(x.shape)], 1)

    program, result = cleaned(Calls(forward, row=torch.randn(6)))
    assert result.details["folded"] == 1
    assert max(t.numel() for t in program.module.buffers()) == 6


def test_random_numbers_are_not_constants():
    b = Builder()
    x = b.input("x", 2, 4)
    noise = b.call(aten.rand.default, [4])
    program = b.program(b.call(aten.add.Tensor, x, noise))
    assert not clean(program).changed


def test_a_constant_that_is_returned_is_computed_anew():
    b = Builder()
    x = b.input("x", 2, 4)
    ramp = b.call(aten.arange.default, 4)
    view = b.call(aten.view.default, b.call(aten.mul.Tensor, ramp, 2), [2, 2])
    program = b.program(b.call(aten.relu.default, x), view)
    clean(program)
    program(torch.ones(2, 4))[1].zero_()  # as the user may do
    assert program(torch.ones(2, 4))[1].tolist() == [[0, 2], [4, 6]]
