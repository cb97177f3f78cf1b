"""Whole recipes: what shrinks, what trains, what is exact and what rounds, in one call."""

import pytest
import torch
from torch import nn

import fxopt

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(30):
            model(X)  # batch norms find their statistics
    return model.eval()


RECIPES = {
    "pruned": ("prune{ratio=0.3,round_to=1,reconstruct=false}", "distill{match=outputs}"),
    "low_rank": ("low_rank{cost=work,keep=0.5}", "distill{match=outputs}"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_runs_from_end_to_end(recipe):
    model = net()
    training = fxopt.Training(list(X.split(16)), loss=None, epochs=8, learning_rate=1e-2)
    fast = fxopt.optimize(
        model,
        (X[:8],),
        # in any order: the stages decide
        passes=",".join(("quantize", "fold_bn", *reversed(recipe))),
        backends=["eager"],
        calibration=list(X.split(16)),
        training=training,
    )
    shrunk, distilled, folded, rounded = fast.report.passes
    first = recipe[0].split("{")[0]
    assert [r.name for r in fast.report.passes] == [first, "distill", "fold_bn", "quantize"]
    for record in fast.report.passes:  # eager is not faster for int8, nor for so small a net
        assert record.status == "applied" or "not faster" in record.reason, record
    assert distilled.drift < 0.8 * shrunk.drift
    assert folded.error < 1e-5
    assert 0 < rounded.error < 0.05
    assert abs(rounded.drift - distilled.drift) < 0.05
    with torch.no_grad():
        wanted, found = model(X), fast(X)
    assert float((found - wanted).norm() / wanted.norm()) < 0.5
