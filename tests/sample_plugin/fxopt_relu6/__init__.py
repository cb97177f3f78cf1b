from dataclasses import dataclass

import torch

from fxopt.plugin import Exact, Pass, PassInfo, hookimpl


@dataclass(frozen=True)
class ClampToReLU6(Pass):
    """Turns clamp(x, 0, limit) into ReLU6 where it is one: every backend fuses that."""

    limit: float = 6.0
    info = PassInfo(name="relu6", stage="simplify", fidelity=Exact())

    def run(self, program, context):
        with program.edit() as edit:
            for clamp in program.find(torch.ops.aten.clamp.default):
                if clamp.args[1:] == (0, self.limit):
                    edit.replace(clamp, torch.nn.ReLU6(), clamp.args[0])
        return edit.result()


@hookimpl
def fxopt_passes():
    return [ClampToReLU6]
