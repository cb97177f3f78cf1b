"""The declaration of a pass."""

import pytest
import torch

from fxopt.errors import PluginError
from fxopt.passes import STAGES, Exact, Lossy, PassInfo


def test_stages_are_in_the_order_of_the_pipeline():
    assert STAGES == ("prepare", "structure", "recover", "simplify", "numeric", "lower")


@pytest.mark.parametrize("name", ["", "Fold", "fold-bn", "1fold", "fold bn"])
def test_bad_names(name):
    with pytest.raises(PluginError, match="no name for a pass"):
        PassInfo(name=name, stage="simplify", fidelity=Exact())


def test_unknown_stage():
    with pytest.raises(PluginError, match="'simplfy'"):
        PassInfo(name="fold", stage="simplfy", fidelity=Lossy())


def test_tolerance_follows_the_dtype():
    tight, loose = Exact().tolerance(torch.float64), Exact().tolerance(torch.float32)
    assert 0 < tight < loose < Exact().tolerance(torch.float16)
    assert Exact().tolerance(torch.int64) == 0
    assert Exact(rtol=0.5).tolerance(torch.float64) == 0.5
