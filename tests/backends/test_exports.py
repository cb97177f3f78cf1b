"""Exports of the same program: made once, and handed out as copies."""

import gc
import weakref

import pytest
import torch
from hypothesis import given
from torch import nn

from fxopt.backends import export_program
from fxopt.backends.export import _export
from fxopt.frontend import capture_program
from fxopt.testing.strategies import generated_cases
from tests.building import aten
from tests.random_models import on_random_models


@pytest.fixture
def exports(monkeypatch):
    """What was not handed out as a copy."""
    made = []

    def counting(*args):
        made.append(args)
        return _export(*args)

    monkeypatch.setattr("fxopt.backends.export._export", counting)
    return made


def captured():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    x = torch.randn(3, 4)
    return capture_program(model.eval(), (x,), {}), (x,)


def targets(exported):
    return [node.target for node in exported.graph.nodes if node.op == "call_function"]


def test_a_copy_is_not_changed_by_what_happens_to_another(exports):
    program, inputs = captured()
    first = export_program(program, inputs, dynamic=True)
    before = targets(first)
    first.run_decompositions(torch.export.default_decompositions())
    assert targets(first) != before
    second = export_program(program, inputs, dynamic=True)
    assert targets(second) == before
    second.run_decompositions(torch.export.default_decompositions())
    third = export_program(program, inputs, dynamic=True)
    assert targets(third) == before
    assert len(exports) == 1
    for each in (first, second, third):
        torch.testing.assert_close(each.module()(*inputs), program(*inputs), rtol=1e-5, atol=1e-6)


def test_weights_are_the_programs():
    program, inputs = captured()
    copies = [export_program(program, inputs) for _ in range(3)]
    own = {tensor.data_ptr() for tensor in program.module.parameters()}
    for each in copies:
        assert {tensor.data_ptr() for tensor in each.state_dict.values()} == own


def test_other_inputs_and_batches_are_exported_anew(exports):
    program, (x,) = captured()
    export_program(program, (x,))
    export_program(program, (x[:2],))
    export_program(program, (x[:2],), dynamic=True)
    assert len(exports) == 3
    assert export_program(program, (x[:2],), dynamic=True).module()(x)[0].shape == (3, 4)
    assert len(exports) == 3


def test_what_has_been_edited_is_exported_anew(exports):
    program, inputs = captured()
    assert aten.relu.default not in targets(export_program(program, inputs))
    last = program.nodes[-2]
    with program.edit() as edit:
        edit.redirect(last, edit.call(aten.relu.default, last, before=program.output))
    assert aten.relu.default in targets(export_program(program, inputs))
    assert len(exports) == 2


def test_a_weight_that_was_replaced_is_exported_anew():
    program, inputs = captured()
    export_program(program, inputs)
    layer = next(leaf for leaf in program.module.modules() if isinstance(leaf, nn.Linear))
    layer.weight = nn.Parameter(2 * layer.weight.detach())
    now = export_program(program, inputs)
    torch.testing.assert_close(now.module()(*inputs), program(*inputs))


def test_nothing_outlives_the_program():
    program, inputs = captured()
    exported = export_program(program, inputs)
    weight = weakref.ref(next(program.module.parameters()))
    del program, exported
    gc.collect()
    assert weight() is None


@on_random_models(6)
@given(generated_cases())
def test_generated_programs(case):
    inputs = case.inputs[0]
    first = export_program(case.program, inputs)
    second = export_program(case.program, inputs)
    assert first.graph is not second.graph
    wanted = case.program(*inputs)
    for each in (first, second):
        torch.testing.assert_close(each.module()(*inputs), wanted, rtol=1e-10, atol=1e-10)
