"""`keep_enough`: fix some positions, so that no removal leaves too few of a dimension."""

import operator
from collections.abc import Sequence

import numpy as np

from overhaul.graph._labels import Positions, Reason
from overhaul.graph._sizes import Combined, Extent
from overhaul.graph._trace import Equation, Trace


def keep_enough(trace: Trace, root: Positions, groups: Sequence[Positions]) -> bool:
    """Fix units that have to stay; return whether there were any, for then the groups change.

    Of a group any units may go, as long as one stays. A part that is picked out of a tensor can
    then lose all that it has, unless it has a whole group or something fixed in it. Which of its
    units stays is of no importance; it is the first.

    Args:
        trace: What one forward pass has shown.
        root: The root of each label.
        groups: The roots of the units of each group.
    """
    group_of = np.full(len(root), -1, dtype=np.int64)
    for index, labels in enumerate(groups):
        group_of[labels] = index
    left = [len(labels) for labels in groups]
    any_fixed = False
    for equation in trace.equations:
        if (bound := _bound(equation)) is None:
            continue
        extent, least = bound
        roots, counts = np.unique(root[extent.dim], return_counts=True)
        owner = np.where(trace.labels.free(roots), group_of[roots], -1)
        sure = int(counts[owner < 0].sum())
        for index in np.unique(owner[owner >= 0]).tolist():
            if (owner == index).sum() == left[index]:
                sure += int(counts[owner == index].min())
        for label, count in zip(roots[owner >= 0], counts[owner >= 0], strict=True):
            if sure > least:
                break
            trace.fix(np.array([label]), Reason(equation.text, equation.where))
            left[int(group_of[label])] -= 1
            sure += int(count)
            any_fixed = True
    return any_fixed


def _bound(equation: Equation) -> tuple[Extent, int] | None:
    """Return of an equation that says that a size is more than another the size and the other."""
    more = equation.left
    if not isinstance(more, Combined) or more.operation is not operator.gt or equation.right != 1:
        return None
    least = more.right.size if isinstance(more.right, Extent) else more.right
    if isinstance(more.left, Extent) and more.left.dim is not None and isinstance(least, int):
        return more.left, least
    return None
