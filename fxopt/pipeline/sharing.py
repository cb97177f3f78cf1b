"""Shares the weights that a pass left alone with the program that it was given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator

import torch
from torch import nn

from fxopt.ir import Program
from fxopt.pipeline.identity import named_tensors, same_bits


def share_tensors(before: Program, after: Program) -> int:
    """Puts tensors of ``before`` in the place of equal ones of ``after``, which is changed.

    A pass works on a copy of all weights. Once its result is accepted, the copies of those that
    it did not touch are dropped, so that in the end untouched weights are the user's own ones.
    A tensor is looked for under its own name first, then under any other one. What is tied in
    ``after`` stays tied, and what is not does not become so.

    Returns:
        How many tensors are shared now.
    """
    slots: dict[int, list[_Slot]] = defaultdict(list)
    for slot in _slots(after.module):
        slots[id(slot.tensor)].append(slot)
    chosen = _Matching(before).match(list(slots.values()))
    for key, replacement in chosen.items():
        for slot in slots[key]:
            slot.fill(replacement)
    return len(chosen)


class _Slot:
    """A place in a module that holds a tensor."""

    def __init__(self, owner: nn.Module, attribute: str, name: str, tensor: torch.Tensor) -> None:
        self.owner = owner
        self.attribute = attribute
        self.name = name
        self.tensor = tensor

    def fill(self, tensor: torch.Tensor) -> None:
        # through setattr: a recurrent module keeps a list of its weights up to date in there
        setattr(self.owner, self.attribute, tensor)


class _Matching:
    """Finds for each tensor its equal in a program, and hands none out twice."""

    def __init__(self, before: Program) -> None:
        self._named = named_tensors(before)
        self._taken: set[int] = set()
        self._alike: dict[Hashable, list[torch.Tensor]] = defaultdict(list)
        for tensor in {id(t): t for t in self._named.values()}.values():
            self._alike[tensor.dtype, tensor.shape].append(tensor)

    def match(self, groups: list[list[_Slot]]) -> dict[int, torch.Tensor]:
        """The equal of each group of tied slots that has one, by the id of their tensor."""
        chosen: dict[int, torch.Tensor] = {}
        for by_name in (True, False):  # a namesake must not be lost to an equal elsewhere
            for slots in groups:
                tensor = slots[0].tensor
                if id(tensor) in chosen:
                    continue
                found = self._find(tensor, [slot.name for slot in slots] if by_name else None)
                if found is not None:
                    self._taken.add(id(found))
                    chosen[id(tensor)] = found
        return chosen

    def _find(self, tensor: torch.Tensor, names: list[str] | None) -> torch.Tensor | None:
        if names is not None:
            candidates = [self._named[name] for name in names if name in self._named]
        else:
            candidates = self._alike[tensor.dtype, tensor.shape]
        free = (other for other in candidates if id(other) not in self._taken)
        return next((other for other in free if same_bits(other, tensor)), None)


def _slots(module: nn.Module) -> Iterator[_Slot]:
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        for attribute, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is not None:
                yield _Slot(owner, attribute, f"{prefix}{attribute}", tensor)
