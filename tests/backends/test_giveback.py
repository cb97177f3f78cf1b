"""Weights of a loaded model leave memory once they are packed, and are there when they are read."""

import copy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import fxopt
from fxopt.backends import Backend, BackendInfo, Executable, LoweredModule, Lowering
from fxopt.backends.giveback import give_back
from fxopt.backends.smaps import mappings
from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt.ir import paged
from fxopt.ir.saving import load_program, save_program
from fxopt.passes import Context
from fxopt_openvino import OpenVINO
from fxopt_quantize import QuantizeWeights

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells of it")

SIDE = 512  # a weight of one megabyte


def mapping_of(tensor):
    start = tensor.untyped_storage().data_ptr()
    return next(each for each in mappings() if each.start <= start < each.end)


class Holder(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.weight = nn.Parameter(tensor)


@dataclass(frozen=True)
class Copying(Backend):
    """Runs a copy of the program, as runtimes do that pack weights in a way of their own."""

    info = BackendInfo(name="copying", targets=("cpu",))

    def lower(self, program, inputs, target):
        class Code(Executable):
            def __init__(self):
                self.own = copy.deepcopy(program.module)

            def __call__(self, *inputs):
                return self.own(*inputs)

        class Copied(Lowering):
            def compile(self, inputs):
                return Code()

        return Copied()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_what_is_given_back_is_read_again(dtype):
    values = torch.randint(0, 100, (SIDE, SIDE)).to(dtype)
    module = nn.Module()
    module.register_buffer("weight", paged(values))
    assert torch.equal(module.weight, values)
    assert mapping_of(module.weight).resident >= values.nbytes
    give_back([module.weight])
    assert mapping_of(module.weight).resident == 0
    assert torch.equal(module.weight, values)
    assert module.weight.dtype == dtype


def test_what_was_written_to_stays():
    module = Holder(paged(torch.ones(SIDE, SIDE)))
    with torch.no_grad():
        module.weight[3, 5] = 7.0
    give_back([module.weight])
    assert mapping_of(module.weight).resident > 0
    assert module.weight[3, 5] == 7.0
    assert module.weight.sum() == SIDE * SIDE + 6


def test_other_memory_stays():
    module = Holder(torch.ones(SIDE, SIDE))
    before = mapping_of(module.weight).resident
    give_back([module.weight])
    assert mapping_of(module.weight).resident >= min(before, module.weight.nbytes)


def test_nobody_else_reaches_the_file():
    weight = paged(torch.ones(SIDE, SIDE))
    mapping = mapping_of(weight)
    assert mapping.is_file
    assert not Path(mapping.name).exists()


def test_without_room_for_a_file_it_is_a_copy_in_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    values = torch.randn(SIDE, SIDE)
    copy = paged(values)
    assert torch.equal(copy, values)
    assert copy.data_ptr() != values.data_ptr()
    assert not mapping_of(copy).is_file


def test_what_is_loaded_to_be_compiled_can_be_given_back(tmp_path):
    model, x = nn.Linear(SIDE, SIDE).eval(), torch.randn(2, SIDE)
    fxopt.save(fxopt.optimize(model, (x,), backends=["eager"]), tmp_path / "model")
    for lowered in (True, False):
        loaded = fxopt.load(tmp_path / "model", lowered=lowered)
        weight = max(loaded.parameters(), key=torch.Tensor.numel)
        assert mapping_of(weight).is_file == lowered
        torch.testing.assert_close(loaded(x), model(x))


def test_a_program_leaves_memory_once_it_is_lowered(tmp_path):
    x = torch.randn(2, SIDE, generator=torch.Generator().manual_seed(0))
    captured = capture_program(nn.Linear(SIDE, SIDE), (x,), {})
    save_program(captured, tmp_path / "program")
    program = load_program(tmp_path / "program", pageable=True)
    weight = max(program.module.parameters(), key=torch.Tensor.numel)
    lowered = LoweredModule(program, Copying(), find_target("cpu"))
    (expected,) = lowered(x)
    assert mapping_of(weight).resident == 0
    torch.testing.assert_close(expected, captured(x)[0])
    with torch.no_grad():
        lowered.train()
        torch.testing.assert_close(lowered(x)[0], expected)  # it runs the program
        weight.mul_(2)
        lowered.eval()
        assert not torch.allclose(lowered(x)[0], expected)
    assert mapping_of(weight).anonymous > 0


def test_four_bit_constants_of_openvino_leave_memory_too():
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    x = torch.randn(1, SIDE)
    program = capture_program(nn.Linear(SIDE, SIDE), (x,), {}).clone()
    target = find_target("cpu")
    assert QuantizeWeights(bits=4).run(program, Context(target)).changed
    code = OpenVINO().lower(program, (x,), target).compile((x,))
    packed = max(code._memory, key=torch.Tensor.numel)  # the others are zero points
    assert packed.nbytes == SIDE * SIDE // 2
    assert mapping_of(packed).resident == 0
    with torch.no_grad():
        torch.testing.assert_close(code(x)[0], program(x)[0], rtol=1e-4, atol=1e-4)
