"""Operators written out call by call, held against tracing the whole program again."""

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.export import ExportedProgram

from fxopt.backends import export_program
from fxopt.backends.stepwise import StepwiseProgram, _steps
from fxopt.frontend import capture_program
from fxopt.testing.strategies import generated_cases
from tests.building import aten
from tests.random_models import on_random_models


def exported(model, *inputs, dynamic=True):
    return export_program(capture_program(model.eval(), inputs, {}), inputs, dynamic=dynamic)


def targets(program):
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def compared(program, table, inputs):
    """The program written out; it must be as if it had been traced again."""
    whole = ExportedProgram.run_decompositions(program, table)
    own = program.run_decompositions(table)
    assert own is program  # else it was traced as a whole
    assert set(targets(own)) == set(targets(whole))
    for mine, theirs in zip(own.module()(*inputs), whole.module()(*inputs), strict=True):
        assert torch.equal(mine, theirs)
    return own, whole


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = self.norm(
                x + layer(x).reshape(x.shape[0], 5, 3, 4).transpose(1, 2).reshape(x.shape)
            )
        return x


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_is_as_if_all_had_been_traced_again(dynamic):
    inputs = (torch.randn(3, 5, 12),)
    program = exported(Encoder(), *inputs, dynamic=dynamic)
    own, _ = compared(program, torch.export.default_decompositions(), inputs)
    assert aten.reshape.default not in targets(own)


def test_a_symbolic_batch_stays_symbolic():
    program = exported(Encoder(), torch.randn(3, 5, 12))
    own = program.run_decompositions(torch.export.default_decompositions())
    x = torch.randn(7, 5, 12)
    (output,) = own.module()(x)
    assert output.shape == x.shape
    values = [node.meta["val"] for node in own.graph.nodes if node.op == "call_function"]
    shapes = [
        value.shape for value in values if isinstance(value, torch.Tensor) and value.dim() == 3
    ]
    assert shapes
    assert all(isinstance(shape[0], torch.SymInt) for shape in shapes)


def test_only_what_has_steps_is_touched_and_calls_that_are_alike_share_them():
    program = exported(Encoder(), torch.randn(3, 5, 12))
    steps = _steps(program.graph, {aten.layer_norm.default: None})
    norms = [steps[node] for node in program.graph.nodes if node.target is aten.layer_norm.default]
    assert len(norms) == 4
    assert len({id(each) for each in norms}) == 1
    kept = [node for node in program.graph.nodes if node.target is aten.linear.default]
    assert len(kept) == 4
    assert not steps.keys() & set(kept)


def test_other_sizes_and_settings_have_steps_of_their_own():
    class Pools(nn.Module):
        def forward(self, x):
            pool = nn.functional.adaptive_avg_pool2d
            rounded, turned = x.double(), x.transpose(2, 3)
            same = pool(x, 2), pool(x.relu(), 2)
            return *same, pool(x, 1), pool(x[:, :, :4], 2), pool(rounded, 2), pool(turned, 2)

    inputs = (torch.randn(2, 3, 8, 8),)
    program = exported(Pools(), *inputs)
    table = torch.export.default_decompositions()
    pools = [n for n in program.graph.nodes if n.target is aten.adaptive_avg_pool2d.default]
    steps = _steps(program.graph, dict(table))
    assert len({id(steps[node]) for node in pools}) == 5
    compared(program, table, inputs)


def test_several_results_go_where_they_went():
    class Halves(nn.Module):
        def forward(self, x):
            left, _, right = x.chunk(3, 1)
            values, places = nn.functional.max_pool1d(x, 2, return_indices=True)
            return left * right, values, places

    inputs = (torch.randn(2, 6, 4),)
    own, _ = compared(exported(Halves(), *inputs), torch.export.default_decompositions(), inputs)
    assert aten.chunk.default not in targets(own)


def test_what_is_returned_keeps_its_place():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.ConvTranspose2d(3, 4, 2)

        def forward(self, x):
            return self.layer(x), x.reshape(-1, 16), x

    inputs = (torch.randn(2, 3, 4, 4),)
    own, _ = compared(exported(Last(), *inputs), torch.export.default_decompositions(), inputs)
    (output,) = own.graph.find_nodes(op="output")
    listed = [spec.arg.name for spec in own.graph_signature.output_specs]
    assert listed == [node.name for node in output.args[0]]


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_random_or_not_what_is_written_out_is_gone(kind):
    inputs = (torch.randn(2, 5, 4),)
    program = exported(nn.RNN(4, 4, nonlinearity=kind, batch_first=True), *inputs, dynamic=False)
    (expected, _) = program.module()(*inputs)
    operator = getattr(aten, f"rnn_{kind}").input
    own = program.run_decompositions({operator: operator.decompose})
    assert operator not in targets(own)
    assert torch.allclose(own.module()(*inputs)[0], expected, atol=1e-6)


def test_a_memory_format_is_no_write():
    inputs = (torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last),)
    program = exported(nn.Sequential(nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1)), *inputs)
    own, _ = compared(program, torch.export.default_decompositions(), inputs)
    assert not any(t._schema.is_mutable for t in targets(own) if hasattr(t, "_schema"))


class Writes(nn.Module):
    def forward(self, x):
        y = x * 2
        y.add_(1)
        return (y,)


def test_what_writes_is_traced_as_a_whole():
    inputs = (torch.randn(2, 3),)
    plain = torch.export.export(Writes(), inputs)
    assert aten.add_.Tensor in targets(plain)
    program = StepwiseProgram.of(plain)
    own = program.run_decompositions({})
    assert own is not program
    assert aten.add_.Tensor not in targets(own)
    assert torch.equal(own.module()(*inputs)[0], inputs[0] * 2 + 1)


def test_a_recurrent_layer_is_left_whole_where_it_has_no_entry():
    inputs = (torch.randn(2, 7, 4),)
    program = exported(nn.LSTM(4, 4, batch_first=True), *inputs, dynamic=False)
    own = program.run_decompositions({})
    assert aten.lstm.input in targets(own)


@on_random_models(6)
@given(generated_cases())
def test_generated_programs(case):
    inputs = case.inputs[0]
    program = export_program(case.program, inputs)
    own, whole = compared(program, torch.export.default_decompositions(), inputs)
    assert own is not whole
    for mine, wanted in zip(own.module()(*inputs), case.program(*inputs), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)
