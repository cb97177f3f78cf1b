"""Whole models with shuffles, gates and shifted windows: what is left computes what zeros do."""

from functools import cache

import pytest
import torch
from torch import nn
from torchvision import models

from fxopt.testing import make_case
from tests.plugins.prune.support import check, pruned, random

MODELS = {
    "shufflenet": lambda: models.shufflenet_v2_x0_5(),
    "mobilenet": lambda: models.mobilenet_v3_small(),
    "swin": lambda: models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4],
        num_classes=10,
    ),
}  # fmt: skip


@cache
def case_named(name):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    for parameter in model.parameters():
        if parameter.abs().max() < 1e-3:  # what is zero in a fresh model would hide errors
            nn.init.normal_(parameter, std=0.1)
    return make_case(name, model, random(2, 3, 64, 64))


@pytest.mark.parametrize("name", MODELS)
def test_removal_is_what_zeros_are(name):
    structure = check(case_named(name), share=0.3)
    assert not structure.barriers
    assert sum(len(group) > 1 and group.exact for group in structure.groups) > 3


@pytest.mark.parametrize("name", MODELS)
def test_what_is_pruned_runs_at_any_batch_size(name):
    case = case_named(name)
    program, result = pruned(case, ratio=0.3, importance="magnitude", reconstruct=False)
    assert program.weight_bytes() < 0.8 * case.program.weight_bytes()
    assert result.details["units"] > 100
    for (output,) in case.outputs(program):
        assert output.isfinite().all()
