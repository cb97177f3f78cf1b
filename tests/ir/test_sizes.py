"""Symbolic sizes are known as they are in the examples."""

import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.ir import size_hint


class Selected(nn.Module):
    def forward(self, x):
        kept = torch.nonzero(x.sum(1) > 0)
        pairs = torch.zeros(kept.shape[0], 2, 8)
        return torch.cat([pairs.reshape(-1, 8), x])


def test_a_size_is_that_of_the_examples_and_counts_as_1_where_values_decide():
    program = capture_program(Selected(), (torch.ones(6, 8),), {})
    (joined,) = program.find(torch.ops.aten.cat.default)
    rows, columns = joined.meta["val"].shape
    assert size_hint(columns) == columns == 8
    assert size_hint(rows) == 2 + 6
