"""`Selection`: from scores to the units that go, for any amount."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from overhaul.graph import Graph, Group
from overhaul.pruning._criterion import Scores

Units = dict[str, list[int]]
"""The units that go, by the name of their group."""


class Selection:
    """Which units go, for every amount between nothing and all that may go.

    Args:
        graph: The groups.
        scores: The scores of those that may be pruned.
        scope: `layer`: the same fraction of each group; `global`: the units of lowest score of all;
            `normalized`: the same, with scores divided by their group's mean.
        multiple: What sizes are rounded up to.
        most: The largest fraction of a group that may go.
        before: How many units a group had that `most` is a fraction of. Default: those of now.
    """

    def __init__(
        self,
        graph: Graph,
        scores: Mapping[str, Scores],
        scope: Literal["layer", "global", "normalized"],
        multiple: int = 1,
        most: float = 0.9,
        before: Callable[[Group], int] = lambda group: group.units,
    ) -> None:
        """Sort the units of each group, and all units."""
        self.groups = [group for group in graph.groups if group.name in scores]
        self.scope = scope
        self.multiple = multiple
        self.order = {g.name: np.argsort(scores[g.name], kind="stable") for g in self.groups}
        self.largest = {g.name: _largest(g.units, before(g), most) for g in self.groups}
        ranked: list[tuple[float, int, int]] = []
        for index, group in enumerate(self.groups):
            own = np.asarray(scores[group.name], dtype=np.float64)
            mean = float(own.mean())
            own = own / mean if scope == "normalized" and mean > 0 else own
            chosen = self.order[group.name][: self.largest[group.name]]
            ranked += [(float(own[unit]), index, rank) for rank, unit in enumerate(chosen)]
        self.ranked = sorted(ranked)
        self.steps = 1000 if scope == "layer" else len(self.ranked)

    def units(self, step: int, *, rounded: bool = True) -> Units:
        """Return the units that go at a step between 0 and `steps`.

        Args:
            step: How far.
            rounded: Whether what stays is rounded up to the multiple.
        """
        counts = dict.fromkeys(self.order, 0)
        if self.scope == "layer":
            for group in self.groups:
                wanted = math.floor(step / self.steps * group.units + 1e-9)
                counts[group.name] = min(wanted, self.largest[group.name])
        else:
            for _, index, _ in self.ranked[:step]:
                counts[self.groups[index].name] += 1
        result: Units = {}
        for group in self.groups:
            count = counts[group.name]
            count = self._rounded(group, count) if rounded else count
            if count > 0:
                result[group.name] = sorted(self.order[group.name][:count].tolist())
        return result

    def fraction(self, fraction: float) -> Units:
        """Return the units that go when this fraction of them goes."""
        if self.scope == "layer":
            return self.units(round(fraction * self.steps))
        total = sum(group.units for group in self.groups)
        return self.units(min(round(fraction * total), self.steps))

    def smallest(self, enough: Callable[[Units], bool]) -> Units | None:
        """Return the units of the smallest step that is enough; None if none is."""
        low, high = 0, self.steps
        if not enough(self.units(high)):
            return None
        while low < high:
            middle = (low + high) // 2
            if enough(self.units(middle)):
                high = middle
            else:
                low = middle + 1
        return self.units(high)

    def _rounded(self, group: Group, count: int) -> int:
        """Return how many go when what stays is rounded up to the multiple."""
        width = min(place.positions.shape[1] for place in group.places)
        step = self.multiple // math.gcd(self.multiple, width)
        kept = group.units - count
        return group.units - min(math.ceil(kept / step) * step, group.units)


def _largest(now: int, before: int, most: float) -> int:
    """Return how many units of a group may go, of which some may have gone in earlier rounds."""
    allowed = math.floor(most * before + 1e-9) - (before - now)
    return min(max(allowed, 0), now - 1)
