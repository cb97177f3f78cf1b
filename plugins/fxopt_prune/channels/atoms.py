"""Atoms: what can be removed, each a number, and which of them only together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
"""The atom at each position along one dimension of a tensor."""

FIXED = 0
"""The label of a position that always stays."""


@dataclass(frozen=True)
class Classes:
    """Atoms grouped by what has to go together.

    Attributes:
        of_atom: The class of each atom; :data:`FIXED` where it cannot be removed.
        reasons: Why not, by atom, as far as it is known.
    """

    of_atom: Labels
    reasons: dict[int, str]


class Atoms:
    """Hands out atoms, and remembers which of them are coupled or have to stay."""

    def __init__(self) -> None:
        self._count = FIXED + 1
        self._couples: list[npt.NDArray[np.int64]] = []
        self._fixed: list[tuple[Labels, str]] = []

    def fresh(self, size: int) -> Labels:
        """As many new atoms; a dimension of size 1 is there to be broadcast, so it stays."""
        if size == 1:
            return fixed(1)
        first, self._count = self._count, self._count + size
        return np.arange(first, self._count, dtype=np.int64)

    def couple(self, these: Labels, those: Labels, reason: str) -> None:
        """Position by position, one goes only with the other.

        Args:
            these: Labels that can be broadcast against ``those``.
            those: Labels; where one of the two is fixed, the other becomes so.
            reason: Why what becomes fixed here cannot be removed.
        """
        one, other = (each.ravel() for each in np.broadcast_arrays(these, those))
        self.fix(other[one == FIXED], reason)
        self.fix(one[other == FIXED], reason)
        free = (one != other) & (one != FIXED) & (other != FIXED)
        if free.any():
            self._couples.append(np.stack([one[free], other[free]]))

    def fix(self, labels: Labels, reason: str) -> None:
        """Lets them stay."""
        free = np.unique(labels[labels != FIXED])
        if free.size:
            self._fixed.append((free, reason))

    def classes(self) -> Classes:
        """What has to go together, by all that was said so far."""
        components = self._components()
        reason_of: dict[int, str] = {}
        for labels, reason in self._fixed:
            for component in np.unique(components[labels]):
                reason_of.setdefault(int(component), reason)
        stays = np.isin(components, list(reason_of))
        reasons = {int(a): reason_of[int(components[a])] for a in np.flatnonzero(stays)}
        return Classes(np.where(stays, FIXED, components), reasons)

    def _components(self) -> Labels:
        """The smallest atom that each is coupled with."""
        from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
        from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

        pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *self._couples], axis=1)
        ones = np.ones(pairs.shape[1], dtype=np.int8)
        matrix = coo_matrix((ones, (pairs[0], pairs[1])), shape=(self._count, self._count))
        _, number = connected_components(matrix, directed=False)
        _, first = np.unique(number, return_index=True)
        return np.asarray(first[number], dtype=np.int64)


def fixed(size: int) -> Labels:
    """Labels of a dimension that stays as it is."""
    return np.full(size, FIXED, dtype=np.int64)


def is_free(labels: Labels) -> bool:
    """Whether some of the positions may go, as far as the labels alone tell."""
    return bool((labels != FIXED).any())
