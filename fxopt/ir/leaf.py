"""Which modules may stand in a program as one node."""

from __future__ import annotations

from torch import nn


class LeafModule(nn.Module):
    """Base of module classes that a plugin adds as leaves of a program.

    A subclass must be traceable by ``torch.export`` (so that any backend can be handed a region
    as plain ATen), functional (no in-place change of inputs) and deep-copyable.
    """


def is_leaf(module: nn.Module) -> bool:
    """Whether ``module`` may be called by one node: standard, registered, or without weights."""
    if isinstance(module, LeafModule):
        return True
    if any(True for _ in module.children()):
        return False
    standard = type(module).__module__.startswith("torch.nn.modules.")
    return standard or not any(True for _ in module.parameters())
