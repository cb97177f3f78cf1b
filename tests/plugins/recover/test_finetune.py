"""What finetune trains towards, what it keeps, and what it refuses."""

import pytest
import torch
from torch import nn

from fxopt.errors import PassError
from fxopt_recover import Finetune
from tests.plugins.recover.support import context, net, program_of


def test_finetuning_lowers_the_loss_and_keeps_zeros():
    program = program_of(net())
    (first, *_) = program.find(nn.Conv2d)
    weight = program.leaf(first).weight
    zeros = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        weight[zeros] = 0
    result = Finetune().run(program, context(program, labelled=True))
    assert result.changed
    assert result.details["losses"][-1] < result.details["losses"][0]
    trained = program.leaf(first).weight
    assert not trained[zeros].any()
    assert trained[~zeros].all()


def test_zeros_can_be_given_up():
    program = program_of(net())
    (first, *_) = program.find(nn.Conv2d)
    with torch.no_grad():
        program.leaf(first).weight[:, 0] = 0
    Finetune(keep_zeros=False).run(program, context(program, labelled=True))
    assert program.leaf(first).weight[:, 0].any()


def test_finetuning_needs_labels():
    program = program_of(net())
    with pytest.raises(PassError, match="needs labels"):
        Finetune().run(program, context(program))
