"""`Size`: an integer that remembers where it comes from."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from overhaul.graph._labels import Dim


@dataclass(frozen=True)
class Attribute:
    """An integer that is an attribute of a module, or an element of one: `normalized_shape.0`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module or 'self'}.{self.name}"


@dataclass(frozen=True, eq=False)
class Extent:
    """The size of a dimension of a tensor."""

    dim: Dim
    size: int


@dataclass(frozen=True, eq=False)
class Combined:
    """Two integers and what is done with them."""

    operation: Callable[[int, int], int]
    left: "Expression"
    right: "Expression"


Expression = int | Attribute | Extent | Combined


class Watcher(Protocol):
    """Who is told what the model does with its sizes."""

    def equal(self, left: Expression, right: Expression) -> None:
        """Two sizes were compared and are equal."""

    def compared(self, comparison: Expression, result: bool) -> None:
        """Two sizes were compared in another way, with this result."""

    def number(self, size: Expression) -> None:
        """A size was used as a number: as a divisor, in a root."""


class Size(int):
    """An integer with the expression that it is the value of.

    It computes as the integer does. The sum, product, quotient and remainder of sizes are sizes.
    """

    expression: Expression
    watcher: Watcher

    def __new__(cls, value: int, expression: Expression, watcher: Watcher) -> "Size":
        """Return `value` with its origin."""
        size = super().__new__(cls, value)
        size.expression = expression
        size.watcher = watcher
        return size

    def _number(self) -> int:
        self.watcher.number(self.expression)
        return int.__int__(self)

    def __float__(self) -> float:
        return float(self._number())

    def __truediv__(self, other: Any) -> Any:
        return self._number() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._number()

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self._number(), other, modulo)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(other, self._number(), modulo)

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other) is True
        if not isinstance(other, int) or type(other) is bool:
            return same
        if same:
            self.watcher.equal(self.expression, expression_of(other))
        else:
            expression = Combined(operator.eq, self.expression, expression_of(other))
            self.watcher.compared(expression, result=False)
        return same

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return self != 0

    def __neg__(self) -> Any:
        return self * -1

    __hash__ = int.__hash__

    def __copy__(self) -> "Size":
        return self

    def __deepcopy__(self, memo: object) -> int:
        return int.__int__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int.__int__(self),)


def _arithmetic(operation: Callable[[int, int], int]) -> tuple[Any, Any]:
    def forward(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented if not isinstance(other, float) else _with_float(self, other)
        value = operation(int.__int__(self), int(other))
        return Size(value, Combined(operation, self.expression, expression_of(other)), self.watcher)

    def _with_float(self: Size, other: float) -> Any:
        return operation(self._number(), other)  # type: ignore[arg-type]

    def backward(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            if isinstance(other, float):
                return operation(other, self._number())  # type: ignore[arg-type]
            return NotImplemented
        value = operation(int(other), int.__int__(self))
        return Size(value, Combined(operation, expression_of(other), self.expression), self.watcher)

    return forward, backward


def _comparison(operation: Callable[[Any, Any], bool]) -> Any:
    def compare(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return operation(float(self), other) if isinstance(other, float) else NotImplemented
        result = operation(int.__int__(self), int.__int__(other))
        expression = Combined(operation, self.expression, expression_of(other))
        self.watcher.compared(expression, result)
        return result

    return compare


def _as_number(name: str) -> Any:
    plain = getattr(int, name)

    def compute(self: Size, *others: Any) -> Any:
        return plain(self._number(), *others)

    return compute


for _name, _order in (
    ("__lt__", operator.lt),
    ("__le__", operator.le),
    ("__gt__", operator.gt),
    ("__ge__", operator.ge),
):
    setattr(Size, _name, _comparison(_order))
for _name in (
    *(
        f"__{side}{name}__"
        for name in ("and", "or", "xor", "lshift", "rshift")
        for side in ("", "r")
    ),
    *("__divmod__", "__rdivmod__", "__invert__", "__round__", "bit_length"),
):
    setattr(Size, _name, _as_number(_name))
for _name, _operation in (
    ("add", operator.add),
    ("sub", operator.sub),
    ("mul", operator.mul),
    ("floordiv", operator.floordiv),
    ("mod", operator.mod),
):
    _forward, _backward = _arithmetic(_operation)
    setattr(Size, f"__{_name}__", _forward)
    setattr(Size, f"__r{_name}__", _backward)


def expression_of(value: int) -> Expression:
    """Return where an integer comes from; a plain one stands for itself."""
    return value.expression if isinstance(value, Size) else int(value)


def leaves(expression: Expression) -> Iterator[int | Attribute | Extent]:
    """Yield the numbers, attributes and extents of an expression."""
    if isinstance(expression, Combined):
        yield from leaves(expression.left)
        yield from leaves(expression.right)
    else:
        yield expression


def evaluate(
    expression: Expression,
    attributes: Mapping[Attribute, int],
    extent: Callable[[Extent], int],
) -> int:
    """Return the value of an expression for other attributes and extents.

    Raises:
        ZeroDivisionError: a size is divided by one that has become zero.
    """
    if isinstance(expression, Combined):
        left = evaluate(expression.left, attributes, extent)
        right = evaluate(expression.right, attributes, extent)
        return expression.operation(left, right)
    if isinstance(expression, Attribute):
        return attributes[expression]
    if isinstance(expression, Extent):
        return extent(expression)
    return expression
