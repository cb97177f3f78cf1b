from dataclasses import dataclass

import pytest
import torch

from fxopt.plugin import Exact, Pass, PassInfo, hookimpl
from fxopt.registry import default_registry


@dataclass(frozen=True)
class ReluToGelu(Pass):
    """Lies about being exact."""

    info = PassInfo(name="liar", stage="simplify", fidelity=Exact())

    def run(self, program, context):
        with program.edit() as edit:
            for node in program.find(torch.ops.aten.relu.default, torch.nn.ReLU):
                edit.replace(node, torch.ops.aten.gelu.default, node.args[0])
        return edit.result()


class Liar:
    @hookimpl
    def fxopt_passes(self):
        return [ReluToGelu]


@pytest.fixture
def liar():
    default_registry.cache_clear()
    default_registry().register(Liar(), "liar")
    yield
    default_registry.cache_clear()


def test_names_the_pass_and_the_rewrite(fxopt, models, liar):
    result = fxopt("bisect", f"{models}:Net", "--input", "2x3x16x16", "--passes", "cleanup,liar")
    assert result.exit_code == 1, result.output
    assert "guilty pass: liar, number 2" in result.stdout
    assert "guilty rewrite: number 1: relu -> aten.gelu.default" in result.stdout


def test_says_when_nothing_is_broken(fxopt, models):
    result = fxopt("bisect", f"{models}:Net", "--input", "2x3x16x16", "--passes", "cleanup")
    assert result.exit_code == 0, result.output
    assert "not broken" in result.stdout


def test_lossy_passes_need_a_tolerance(fxopt, models):
    result = fxopt("bisect", f"{models}:Net", "--input", "2x3x16x16", "--passes", "quantize")
    assert result.exit_code == 2
    assert "--tolerance 0.05" in result.stderr
