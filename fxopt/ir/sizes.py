"""What symbolic sizes are in the examples that a model was captured with."""

from __future__ import annotations

import torch


def size_hint(size: int | torch.SymInt) -> int:
    """A size as it is in the examples, where what depends on values within a tensor counts as 1.

    Such numbers, as how many entries of a tensor are not zero, are unknown until the model runs.
    """
    if not isinstance(size, torch.SymInt):
        return size
    expression, env = size.node.expr, size.node.shape_env
    assert env is not None
    known = env.backed_var_to_val
    return int(expression.xreplace({s: known.get(s, 1) for s in expression.free_symbols}))
