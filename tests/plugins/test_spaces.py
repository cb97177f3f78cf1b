"""What passes offer a search: each choice is a pass that can be written down and that runs."""

from dataclasses import MISSING, fields, replace
from itertools import product

import pytest
import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context, format_pass
from fxopt.registry import default_registry

TARGET = find_target("cpu")
SEARCHED = ("low_rank", "prune", "sparsify", "substitute")


def program():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 4),
    )  # fmt: skip
    return capture_program(model.eval(), (torch.randn(2, 3, 8, 8),), {})


def test_all_that_offer_something_are_tried_here():
    original = program()
    passes = default_registry().passes.values()
    plain = [each for each in passes if not _without_default(each)]
    assert {each.info.name for each in plain if each().space(original, TARGET)} == set(SEARCHED)


@pytest.mark.parametrize("name", SEARCHED)
def test_each_choice_can_be_written_down_and_runs(name):
    original, registry = program(), default_registry()
    item = registry.passes[name]()
    space = item.space(original, TARGET)
    batches = Calibration([torch.randn(8, 3, 8, 8)], original.signature)
    texts = set()
    for values in product(*space.values()):
        choice = replace(item, **dict(zip(space, values, strict=True)))
        (parsed,) = registry.parse(format_pass(choice))
        assert parsed == choice
        twin = original.clone()
        choice.run(twin, Context(TARGET, calibration=batches))
        twin.verify()
        assert twin(torch.randn(5, 3, 8, 8))[0].isfinite().all()
        texts.add(twin.text() + twin.fingerprint())
    assert len(texts) > 1, "there is nothing to choose from"


def test_a_dense_convolution_may_become_a_depthwise_separable_one():
    original = program()
    item = default_registry().passes["low_rank"]()
    assert "separable" in item.space(original, TARGET)["method"]
    choice = replace(item, method="separable", cost="work", keep=0.6)
    choice.run(original, Context(TARGET))
    groups = {m.groups for m in original.module.modules() if isinstance(m, nn.Conv2d)}
    assert 32 in groups


def test_without_convolutions_there_is_no_such_choice():
    linear = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    original = capture_program(linear, (torch.randn(2, 8),), {})
    assert "method" not in default_registry().passes["low_rank"]().space(original, TARGET)


def _without_default(kind):
    return [f for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
