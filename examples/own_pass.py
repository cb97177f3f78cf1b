"""Writes a pass and runs it, without installing anything. See docs/writing-a-pass.md.

python examples/own_pass.py
"""

from dataclasses import dataclass

import torch
from torch import nn

import fxopt
from fxopt.plugin import Context, Exact, Pass, PassInfo, PassResult, Program


@dataclass(frozen=True)
class SquareByMultiplication(Pass):
    """Turns x ** 2 into x * x, which needs no transcendental function."""

    info = PassInfo(name="square", stage="simplify", fidelity=Exact())

    def run(self, program: Program, context: Context) -> PassResult:
        """Replaces each power whose exponent is the number 2."""
        with program.edit() as edit:
            for power in program.find(torch.ops.aten.pow.Tensor_Scalar):
                base, exponent = power.args
                if exponent == 2:
                    edit.replace(power, torch.ops.aten.mul.Tensor, base, base)
                else:
                    edit.refuse(power, f"the exponent is {exponent}")
        return edit.result()


class Energy(nn.Module):
    """A model with two powers, of which one is a square."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (n, 16) to (n,)."""
        return (self.layer(x) ** 2).sum(1) + (x**3).mean(1)


def main() -> None:
    model = Energy().eval()
    fast = fxopt.optimize(
        model, (torch.randn(4, 16),), passes=[SquareByMultiplication()], backends=["eager"]
    )
    print(fast.report)
    record = fast.report.passes[0]
    assert record.status == "applied"
    assert record.refused[0].endswith("the exponent is 3")


if __name__ == "__main__":
    main()
