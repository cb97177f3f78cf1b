"""cleanup: the pass as a whole."""

import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.ir import ScaledDotProductAttention
from fxopt.testing import check_pass
from fxopt_cleanup import Cleanup
from tests.building import aten
from tests.plugins.cleanup.support import (
    CONTEXT,
    Calls,
    cleaned,
    operations,
)


def test_one_removal_that_enables_another_is_found():
    """Two views of a copy keep it, until merging makes them one."""

    def forward(m, x):
        y = m.conv(x).transpose(2, 3).contiguous()
        return m.head(y.view(x.shape[0], -1) + y.view(x.shape[0], -1))

    model = Calls(forward, conv=nn.Conv2d(4, 4, 1), head=nn.Linear(144, 2))
    program, result = cleaned(model)
    kept = [name for name in operations(program) if name != "sym_size"]
    assert kept == ["Conv2d", "transpose", "reshape", "add", "Linear"]
    assert result.details["merged"] >= 1


def test_the_summary_tells_what_was_done():
    def forward(m, x):
        y = m.dropout(x) + 0
        return torch.relu(y) * torch.relu(y) + torch.arange(6) * 2

    _, result = cleaned(Calls(forward, dropout=nn.Dropout()))
    assert result.summary == "2 no-ops, 1 folded, 1 merged"
    assert result.details == {"dropout": 1, "neutral": 1, "folded": 1, "merged": 1}


@pytest.mark.parametrize("check", check_pass(Cleanup()), ids=str)
def test_conformance(check):
    check()


def test_attention_that_drops_weights_in_training_becomes_the_operator() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    program = capture_program(layer, (x,), {})
    assert list(program.find(ScaledDotProductAttention))
    before = program(x)
    Cleanup().run(program, CONTEXT)
    program.verify()
    assert not list(program.find(ScaledDotProductAttention))
    assert list(program.find(aten.scaled_dot_product_attention.default))
    torch.testing.assert_close(program(x), before, rtol=1e-12, atol=1e-12)
