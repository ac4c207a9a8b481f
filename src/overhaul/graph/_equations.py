"""`solve`: which attributes have to change with the sizes, so that the program stays right."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from overhaul.graph._labels import Reason
from overhaul.graph._sizes import Attribute, Expression, Extent, evaluate, leaves
from overhaul.graph._trace import Equation

Gone = NDArray[np.bool_]
"""For each label whether it is removed."""


class Conflict(Exception):  # noqa: N818 - not an error: the answer is no
    """Sizes that the program gives do not fit any more; `reason` says which."""

    def __init__(self, reason: Reason) -> None:
        """Keep the reason."""
        super().__init__(str(reason))
        self.reason = reason


def solve(
    equations: Iterable[Equation],
    attributes: Mapping[Attribute, int],
    kept: Mapping[Attribute, Reason],
    gone: Gone,
) -> dict[Attribute, int]:
    """Return new values of attributes for which every equation holds.

    Args:
        equations: Sizes that are equal whenever the program runs.
        attributes: The values that attributes have now.
        kept: Attributes that may not change, with the reason.
        gone: Which labels are removed.

    Raises:
        Conflict: there are none: a size is computed in a way that does not follow the removal.
    """
    changed: dict[Attribute, int] = {}
    extents: dict[int, int] = {}

    def extent(size: Extent) -> int:
        if size.dim is None:
            return size.size
        if id(size) not in extents:
            extents[id(size)] = size.size - int(gone[size.dim].sum())
        return extents[id(size)]

    def value(expression: Expression) -> int:
        return evaluate(expression, {**attributes, **changed}, extent)

    def holds(equation: Equation) -> bool:
        try:
            return value(equation.left) == value(equation.right)
        except ZeroDivisionError:
            return False

    waiting = list(equations)
    for equation in waiting:
        for side, other in ((equation.left, equation.right), (equation.right, equation.left)):
            if isinstance(side, Attribute) and isinstance(other, Extent):
                wanted = extent(other)
                if wanted != changed.get(side, attributes[side] if side in changed else wanted):
                    raise Conflict(_two_sizes(side, equation))
                if wanted != attributes[side]:
                    if side in kept:
                        raise Conflict(kept[side])
                    changed[side] = wanted
    while True:
        broken = [equation for equation in waiting if not holds(equation)]
        if not broken:
            return changed
        if not any(_mend(each, attributes, kept, changed, value, holds) for each in broken):
            raise Conflict(Reason(broken[0].text, broken[0].where))


def _two_sizes(attribute: Attribute, equation: Equation) -> Reason:
    return Reason(f"`{attribute}` would have to be two sizes at once", equation.where)


def _mend(
    equation: Equation,
    attributes: Mapping[Attribute, int],
    kept: Mapping[Attribute, Reason],
    changed: dict[Attribute, int],
    value: object,
    holds: object,
) -> bool:
    """Change the one attribute of a broken equation that can be, if it is only one."""
    assert callable(value)
    assert callable(holds)
    found: list[tuple[Attribute, int]] = []
    sides = ((equation.left, equation.right), (equation.right, equation.left))
    for side, other in sides:
        for leaf in leaves(side):
            if not isinstance(leaf, Attribute) or leaf in changed or leaf in kept:
                continue
            before, wanted = value(side), value(other)
            if before == 0 or attributes[leaf] * wanted % before:
                continue
            changed[leaf] = attributes[leaf] * wanted // before
            if holds(equation) and changed[leaf] > 0:
                found.append((leaf, changed[leaf]))
            del changed[leaf]
    if len({leaf for leaf, _ in found}) != 1:
        return False
    changed[found[0][0]] = found[0][1]
    return True
