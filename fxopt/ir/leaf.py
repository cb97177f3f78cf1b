"""Which modules may stand in a program as one node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

_TRAINING_ONLY = "fxopt_training_only"


class LeafModule(nn.Module):
    """Base of module classes that a plugin adds as leaves of a program.

    A subclass must be traceable by ``torch.export`` (so that any backend can be handed a region
    as plain ATen), functional (no in-place change of inputs) and deep-copyable.

    Attributes:
        family: What kind of layer it is, ``convolution``, ``linear`` or ``recurrent``, where it is
            one; by that it is looked for in lowered code.
        precision: What it is meant to compute in once lowered, such as ``int8``.
        weight_bits: How many bits each of its weights takes, where they are stored in fewer than
            they are computed with; 0 elsewhere.
        bounds: The smallest and the largest of its results on calibration data, of shape
            (2, channels), where those are in float and a runtime whose integer kernels give bytes
            alone may round them; None elsewhere.
    """

    family: ClassVar[str] = ""
    precision: str = ""
    weight_bits: int = 0
    bounds: torch.Tensor | None = None

    def exported(self) -> nn.Module:
        """What takes its place where a program is exported for other runtimes; by default itself.

        Weights that are packed, for instance, are better read with a byte each.
        """
        return self


def is_leaf(module: nn.Module) -> bool:
    """Whether ``module`` may be called by one node: standard, registered, or without weights."""
    if isinstance(module, LeafModule):
        return True
    if any(True for _ in module.children()):
        return False
    standard = type(module).__module__.startswith("torch.nn.modules.")
    return standard or not any(True for _ in module.parameters())


def mark_training_only(module: nn.Module) -> None:
    """Notes that a leaf, of a class that fxopt does not know, is the identity in eval mode."""
    setattr(module, _TRAINING_ONLY, True)


def is_training_only(module: nn.Module) -> bool:
    """Whether a leaf was seen to be the identity in eval mode."""
    return getattr(module, _TRAINING_ONLY, False) is True


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of some tensors, one that occurs twice counted once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
