"""Compiled code by input shapes: bounded, and kept for the shapes that are used most."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from fxopt.backends.base import Executable

Key = tuple[tuple[torch.Size, torch.dtype], ...]

LIMIT = 8  # sets of shapes whose code is kept at a time
_PERIOD = 1000  # lookups after which what was counted so far counts half


@dataclass
class _Code:
    """Compiled code, and how often it was asked for."""

    executable: Executable
    uses: int


class CodeCache:
    """Code for the sets of shapes that are asked for most often.

    Compiling takes up to minutes. A caller whose batch sizes keep changing would wait for that on
    each call if the oldest code had to go for the newest, so a newcomer is let in only once it
    has been asked for more often than the least used set that is held. The counts are halved
    from time to time, so that what was used long ago makes room (TinyLFU, Einziger et al. 2017).

    Lookups take no lock: a count that two threads raise at once may lose one.
    """

    def __init__(self) -> None:
        self._codes: dict[Key, _Code] = {}
        self._refused: Counter[Key] = Counter()
        self._lookups = 0
        self._newest: Executable | None = None

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def newest(self) -> Executable | None:
        """The code that was compiled last."""
        return self._newest

    def find(self, key: Key) -> Executable | None:
        """The code for these shapes, and a use counted for them."""
        self._lookups += 1
        if self._lookups >= _PERIOD:
            self._age()
        found = self._codes.get(key)
        if found is None:
            self._refused[key] += 1
            return None
        found.uses += 1
        return found.executable

    def holds(self, key: Key) -> Executable | None:
        """The code for these shapes; not a use."""
        found = self._codes.get(key)
        return None if found is None else found.executable

    def admits(self, key: Key) -> bool:
        """Whether code for these shapes is worth compiling."""
        return len(self._codes) < LIMIT or self._refused[key] > self._codes[self._least()].uses

    def add(self, key: Key, executable: Executable) -> None:
        """Keeps code; where there is no room, that for the least used shapes goes."""
        while len(self._codes) >= LIMIT:
            least = self._least()
            self._refused[least] = self._codes.pop(least).uses
        self._codes[key] = _Code(executable, self._refused.pop(key, 0))
        self._newest = executable

    def _least(self) -> Key:
        # a list: another thread may add to the dict meanwhile
        return min(list(self._codes.items()), key=lambda item: item[1].uses)[0]

    def _age(self) -> None:
        for code in list(self._codes.values()):
            code.uses //= 2
        halved = {key: count // 2 for key, count in list(self._refused.items())}
        self._refused = Counter({key: count for key, count in halved.items() if count})
        self._lookups = 0
