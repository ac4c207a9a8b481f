"""`Labels`: which positions of which dimensions stay or go together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Dim = Positions | None
"""The label of each position of a dimension; None where nothing can be removed."""


@dataclass(frozen=True)
class Reason:
    """Why something cannot be removed.

    Attributes:
        text: The rule that stands against it.
        where: The user's line, `file:line`, or "" for what has none.
    """

    text: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.where})" if self.where else self.text


class Labels:
    """A union-find structure over positions, by whole arrays at a time.

    Positions with the same root are removed together or not at all. A root with a reason is never
    removed.

    Example:
        >>> labels = Labels()
        >>> a, b = labels.fresh(3), labels.fresh(3)
        >>> labels.tie(a, b[::-1])
        >>> labels.find(a).tolist(), labels.find(b).tolist()
        ([0, 1, 2], [2, 1, 0])
    """

    def __init__(self) -> None:
        """Start without a position."""
        self._parent = np.arange(1024, dtype=np.int64)
        self._why = np.zeros(1024, dtype=np.int32)
        self._used = 0
        self.reasons: list[Reason] = [Reason("it can be removed")]
        self._reason_index: dict[Reason, int] = {}

    def fresh(self, count: int) -> Positions:
        """Return labels for `count` new positions, each for itself."""
        while self._used + count > len(self._parent):
            size = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(size, 2 * size)])
            self._why = np.concatenate([self._why, np.zeros(size, dtype=np.int32)])
        start = self._used
        self._used += count
        return np.arange(start, self._used, dtype=np.int64)

    @property
    def used(self) -> int:
        """How many positions there are."""
        return self._used

    def find(self, labels: Positions) -> Positions:
        """Return the root of each label."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    def tie(self, first: Positions, second: Positions) -> None:
        """Let the positions of two arrays of the same shape go together, one by one."""
        while True:
            one, other = self.find(first), self.find(second)
            apart = one != other
            if not apart.any():
                return
            low = np.minimum(one, other)[apart]
            high = np.maximum(one, other)[apart]
            np.minimum.at(self._parent, high, low)
            np.maximum.at(self._why, self.find(high), self._why[high])

    def fix(self, labels: Positions, reason: Reason) -> None:
        """Let these positions stay."""
        index = self._reason_index.setdefault(reason, len(self.reasons))
        if index == len(self.reasons):
            self.reasons.append(reason)
        roots = self.find(labels.ravel())
        free = roots[self._why[roots] == 0]
        self._why[free] = index

    def free(self, labels: Positions) -> NDArray[np.bool_]:
        """Return for each label whether it can be removed."""
        return np.asarray(self._why[self.find(labels)] == 0)

    def why(self, label: int) -> Reason:
        """Return why this label stays."""
        return self.reasons[int(self._why[self.find(np.array([label]))[0]])]
