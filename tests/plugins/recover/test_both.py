"""What holds for finetune as for distill."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt_recover import Distill, Finetune
from tests.plugins.recover.support import context, net, program_of


@pytest.mark.parametrize("item", [Finetune(), Distill()], ids=lambda item: item.info.name)
def test_a_forbidden_rewrite_trains_nothing(item):
    program = program_of(net())
    before, program.rewrite_limit = program.fingerprint(), 0
    result = item.run(program, context(program, labelled=True))
    assert not result.changed
    assert program.fingerprint() == before


class FromZeros(nn.Module):
    """A position embedding, a class token and a head that begin with zeros, as many models have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.token, self.position = (nn.Parameter(torch.zeros(1, n, 8)) for n in (1, 5))
        with torch.no_grad():
            self.position[:, 1] = 1.0
        self.patch, self.head = nn.Linear(48, 8), nn.Linear(8, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        tokens = self.patch(x.flatten(1).unflatten(1, (4, 48)))
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        return self.head(nn.functional.gelu(tokens).mean(1))


@pytest.mark.parametrize("item", [Finetune(), Distill()], ids=lambda item: item.info.name)
def test_what_begins_with_zeros_learns(item):
    student = program_of(FromZeros())
    item.run(student, replace(context(student, True), original=program_of(net())))
    for name in ("head.weight", "position", "token"):
        assert student.module.get_parameter(name).all(), name
