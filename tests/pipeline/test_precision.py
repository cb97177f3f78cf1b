"""What is compared is computed in full precision, and the user's settings come back."""

import pytest
import torch
from torch import backends, nn

from fxopt.frontend import capture_program
from fxopt.pipeline import full_precision
from fxopt.pipeline.sandbox import run_program

KERNELS = [
    backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul,
    backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul,
]  # fmt: skip


def read(setting):
    try:
        return setting()
    except RuntimeError:  # torch refuses to tell where only the newer names were set
        return "refused"


def settings():
    older = [torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32]
    return [kernel.fp32_precision for kernel in KERNELS], [read(each) for each in older]


@pytest.fixture(autouse=True)
def restored():
    before = [kernel.fp32_precision for kernel in KERNELS]
    yield
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    for kernel, precision in zip(KERNELS, before, strict=True):
        kernel.fp32_precision = precision


def set_newer(kernel, precision):
    kernel.fp32_precision = precision


CHOICES = {
    "default": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "newer": lambda: set_newer(backends.cuda.matmul, "tf32"),
    "convolutions": lambda: set_newer(backends.cudnn.conv, "ieee"),
}


def fail_inside():
    with full_precision():
        assert settings() == (["ieee"] * len(KERNELS), ["highest", False])
        raise KeyError


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_settings_are_full_inside_and_come_back(choice):
    choice()
    before = settings()
    with pytest.raises(KeyError):
        fail_inside()
    assert settings() == before


def test_programs_are_run_in_full_precision():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(backends.mkldnn.matmul.fp32_precision)
            return x + 1

    torch.set_float32_matmul_precision("medium")
    program = capture_program(nn.Linear(3, 3).eval(), (torch.zeros(2, 3),), {})
    (node,) = program.find(nn.Linear)
    program.module.set_submodule(node.target, Spy())
    run_program(program, [torch.zeros(2, 3)], 0)
    assert seen == ["ieee"]
    assert torch.get_float32_matmul_precision() == "medium"
