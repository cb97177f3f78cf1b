"""What a removal is compared with: the same program with zeros in the place of what would go."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from fxopt.plugin import Program
from fxopt_prune.channels import Structure


def zeroed(program: Program, structure: Structure, units: Collection[int]) -> Program:
    """A copy whose slices of some units are zero; its sizes are as they were.

    Removing the units of a group that is ``exact`` does the same. Variances stay as they are, since
    what they divide is zero then.

    Args:
        program: Is not changed.
        structure: What was found in it.
        units: Classes of units.
    """
    twin = program.clone()
    gone = structure.gone(units)
    pairs = [
        *zip(program.module.parameters(), twin.module.parameters(), strict=True),
        *zip(program.module.buffers(), twin.module.buffers(), strict=True),
    ]
    variances = {id(b) for n, b in program.module.named_buffers() if n.endswith("running_var")}
    with torch.no_grad():
        for old, new in pairs:
            if id(old) in structure.trace.weights and id(old) not in variances:
                for dim, labels in enumerate(structure.trace.weights[id(old)][1]):
                    zero = torch.from_numpy(np.flatnonzero(gone[labels])).to(new.device)
                    new.index_fill_(dim, zero, 0)
    return twin
