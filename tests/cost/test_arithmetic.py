"""Counted arithmetic, and what it is for another batch than that of the capture."""

import pytest
import torch
from torch import nn

from fxopt.cost import batch_scale, multiply_adds
from fxopt.frontend import capture_program
from tests.building import image, small_cnn


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_scaled_to_a_batch_it_is_the_arithmetic_of_that_batch(rows):
    x = torch.randn(rows, 12)
    program = capture_program(nn.Linear(12, 7), (x,), {})
    counted = sum(multiply_adds(program).values())
    assert counted * batch_scale(program, [x]) == rows * 12 * 7
    assert counted * batch_scale(program, [torch.randn(3, 12)]) == pytest.approx(3 * 12 * 7)


def test_a_fixed_batch_is_what_it_is():
    assert batch_scale(small_cnn(), [image()]) == 1.0
