"""`settle_sizes`: tie dimensions that the program gives one and the same size."""

import operator
from collections.abc import Iterator

import numpy as np

from overhaul.graph._labels import Dim, Reason
from overhaul.graph._sizes import Attribute, Combined, Expression, Extent, leaves
from overhaul.graph._trace import Equation, Trace

_Linear = dict[object, int]
"""A sum: a coefficient for each label and attribute, and under None the constant."""


def settle_sizes(trace: Trace) -> None:
    """Tie what must keep the same size, where nothing else sees to it.

    After a channel shuffle, the number of channels is that of before whatever is removed, for each
    of them is among the others. A split in halves needs more: its two parts must lose as many, so
    they lose the same places. Any pairing would be right; places of the same number are the
    obvious one. Equations that hold whatever is removed are dropped.
    """
    for equation in _not_held(trace, trace.equations):
        for first, second in _pairs(equation):
            trace.tie(first, second, Reason("its size is that of something fixed", equation.where))
    open_equations = _not_held(trace, trace.equations)
    of_size: dict[object, Extent] = {}
    for equation in open_equations:
        for side, other in ((equation.left, equation.right), (equation.right, equation.left)):
            if isinstance(other, Extent) and any(isinstance(s, Attribute) for s in leaves(side)):
                known = of_size.setdefault(_key(trace, side), other)
                if known is not other and known.size == other.size:
                    reason = Reason("its size is that of something fixed", equation.where)
                    trace.tie(known.dim, other.dim, reason)
    trace.equations = open_equations


def _not_held(trace: Trace, equations: list[Equation]) -> list[Equation]:
    """Return the equations that removal may break."""
    left = []
    for equation in equations:
        one, other = _linear(trace, equation.left), _linear(trace, equation.right)
        if one is None or other is None or one != other:
            left.append(equation)
    return left


def _pairs(equation: Equation) -> Iterator[tuple[Dim, Dim]]:
    """Yield dims that have to be tied for an equation of two sizes, or of one and its part."""
    for side, other in ((equation.left, equation.right), (equation.right, equation.left)):
        if not isinstance(side, Extent):
            continue
        if isinstance(other, Extent):
            if side.size == other.size:
                yield side.dim, other.dim
            return
        whole, count = _part_of(other)
        if whole is None or whole.size != count * side.size:
            continue
        if whole.dim is None:
            yield None, side.dim
            return
        parts = whole.dim.reshape(count, -1)
        for part in (*parts[1:], side.dim):
            yield parts[0], part
        return


def _part_of(expression: Expression) -> tuple[Extent | None, int]:
    """Return the size that an expression is a part of: of `c // 2` and `c - c // 2` the c."""
    if not isinstance(expression, Combined):
        return None, 0
    left, right = expression.left, expression.right
    if expression.operation is operator.floordiv and isinstance(left, Extent):
        if isinstance(right, int) and right > 1:
            return left, right
    elif expression.operation is operator.sub and isinstance(left, Extent):
        whole, count = _part_of(right)
        if whole is not None and count == 2 and whole.dim is left.dim:
            return whole, count
    return None, 0


def _linear(trace: Trace, expression: Expression) -> _Linear | None:
    """Return an expression as a sum, or None if it is none."""
    if isinstance(expression, Attribute):
        return {expression: 1}
    if isinstance(expression, Extent):
        return _counted(trace, expression)
    if isinstance(expression, int):
        return {None: int(expression)} if expression else {}
    one, other = _linear(trace, expression.left), _linear(trace, expression.right)
    if one is None or other is None:
        return None
    if expression.operation in (operator.add, operator.sub):
        sign = 1 if expression.operation is operator.add else -1
        total = {key: one.get(key, 0) + sign * other.get(key, 0) for key in {*one, *other}}
        return {key: value for key, value in total.items() if value}
    if expression.operation is operator.mul:
        if one.keys() <= {None}:
            one, other = other, one
        if other.keys() <= {None}:
            factor = other.get(None, 0)
            return {key: value * factor for key, value in one.items() if factor}
    if expression.operation is operator.floordiv and other.keys() == {None}:
        by = other[None]
        if not any(value % by for value in one.values()):
            return {key: value // by for key, value in one.items()}
    return None


def _counted(trace: Trace, extent: Extent) -> _Linear:
    if extent.dim is None:
        return {None: extent.size}
    roots, counts = np.unique(trace.labels.find(extent.dim), return_counts=True)
    free = trace.labels.free(roots)
    total: _Linear = dict(zip(roots[free].tolist(), counts[free].tolist(), strict=True))
    if not free.all():
        total[None] = int(counts[~free].sum())
    return total


def _key(trace: Trace, expression: Expression) -> object:
    """Return what is equal for equal expressions."""
    if (total := _linear(trace, expression)) is not None:
        return frozenset(total.items())
    if isinstance(expression, Combined):
        parts = _key(trace, expression.left), _key(trace, expression.right)
        return expression.operation, *parts
    return expression
