"""Compiled code by input shapes: bounded, and kept for the shapes that are used most."""

from __future__ import annotations

from collections import Counter

import torch

from fxopt.backends.base import Executable

Key = tuple[tuple[torch.Size, torch.dtype], ...]

LIMIT = 8  # sets of shapes whose code is kept at a time
_PERIOD = 1000  # lookups after which what was counted so far counts half


class CodeCache:
    """Code for the sets of shapes that are asked for most often.

    Compiling takes up to minutes. A caller whose batch sizes keep changing would wait for that on
    each call if the oldest code had to go for the newest, so a newcomer is let in only once it
    has been asked for more often than the least used set that is held. The counts are halved
    from time to time, so that what was used long ago makes room (TinyLFU, Einziger et al. 2017).

    Lookups take no lock: a count that two threads raise at once may lose one.
    """

    def __init__(self) -> None:
        self._codes: dict[Key, Executable] = {}
        self._uses: Counter[Key] = Counter()
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
        self._uses[key] += 1
        self._lookups += 1
        if self._lookups >= _PERIOD:
            self._age()
        return self._codes.get(key)

    def holds(self, key: Key) -> Executable | None:
        """The code for these shapes; not a use."""
        return self._codes.get(key)

    def admits(self, key: Key) -> bool:
        """Whether code for these shapes is worth compiling."""
        return len(self._codes) < LIMIT or self._uses[key] > self._uses[self._least()]

    def add(self, key: Key, code: Executable) -> None:
        """Keeps code; where there is no room, that for the least used shapes goes."""
        while len(self._codes) >= LIMIT:
            del self._codes[self._least()]
        self._codes[key] = self._newest = code

    def _least(self) -> Key:
        # a list: another thread may add to the dict meanwhile
        return min(list(self._codes), key=self._uses.__getitem__)

    def _age(self) -> None:
        halved = {key: count // 2 for key, count in list(self._uses.items())}
        self._uses = Counter({key: count for key, count in halved.items() if count})
        self._lookups = 0
