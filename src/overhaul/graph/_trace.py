"""`Trace`: what one forward pass has shown about a model."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from overhaul.graph._labels import Dim, Labels, Positions, Reason
from overhaul.graph._sizes import (
    Attribute,
    Combined,
    Expression,
    Extent,
    Size,
    evaluate,
    expression_of,
    leaves,
)


@dataclass
class Flow:
    """What is known of a tensor.

    Attributes:
        dims: The labels of each of its dimensions.
        depends: Whether its values depend on the model's inputs.
        state: The name of the parameter or buffer that it is.
        values: The name of the buffer of whole numbers that its values are copied from.
    """

    dims: list[Dim]
    depends: bool
    state: str | None = None
    values: str | None = None


@dataclass(frozen=True)
class Relation:
    """A dimension that is the product of others, as after a reshape.

    Attributes:
        whole: Its labels, in the shape of the factors' sizes.
        factors: The labels of the factors.
    """

    whole: Positions
    factors: tuple[Dim, ...]


@dataclass(frozen=True)
class Equation:
    """Two sizes that are equal whenever the model runs."""

    left: Expression
    right: Expression
    where: str
    text: str = "a size is computed in a way that does not follow"


@dataclass(frozen=True)
class MacTerm:
    """Multiplications: a constant times the sizes of some dimensions."""

    constant: int
    dims: tuple[Positions, ...]


@dataclass(frozen=True)
class Mixing:
    """A call that computes over a dimension of which positions can be removed.

    Attributes:
        inputs: The labels of each tensor among its arguments, in order.
        outputs: The labels of each tensor that it returns.
        groups: The labels of the groups of a group normalization.
    """

    inputs: tuple[tuple[Dim, ...], ...]
    outputs: tuple[tuple[Dim, ...], ...]
    groups: Dim = None


@dataclass
class Trace:
    """What one forward pass has shown, as it is written down call by call."""

    labels: Labels = field(default_factory=Labels)
    flows: Any = field(default_factory=WeakIdKeyDictionary)
    state: dict[str, Flow] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    relations: list[Relation] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    attributes: dict[Attribute, int] = field(default_factory=dict)
    kept_attributes: dict[Attribute, Reason] = field(default_factory=dict)
    macs: list[MacTerm] = field(default_factory=list)
    heads: list[Positions] = field(default_factory=list)
    mixing: dict[int, Mixing] = field(default_factory=dict)
    renumbered: dict[str, Positions] = field(default_factory=dict)
    valued: dict[str, Reason] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)
    reads: set[tuple[str, int]] = field(default_factory=set)
    recurrent: set[str] = field(default_factory=set)

    def flow(self, tensor: Tensor) -> Flow:
        """Return what is known of a tensor; of one from elsewhere, that nothing goes."""
        found: Flow | None = self.flows.get(tensor)
        if found is None:
            return Flow([None] * tensor.ndim, depends=False)
        if found.state is not None:
            self.used.add(found.state)
        return found

    def tie(self, first: Dim, second: Dim, reason: Reason) -> None:
        """Let two dimensions go together; one that cannot change fixes the other."""
        if first is not None and second is not None:
            self.labels.tie(first, second)
        else:
            self.fix(first, reason)
            self.fix(second, reason)

    def fix(self, dim: Dim, reason: Reason) -> None:
        """Let a dimension stay as it is."""
        if dim is not None:
            self.labels.fix(dim, reason)

    def relate(self, whole: Dim, factors: Sequence[tuple[int, Dim]], reason: Reason) -> None:
        """Let a dimension be the product of others, the first one outermost."""
        sizes = [size for size, _ in factors]
        if all(dim is None for _, dim in factors):
            self.fix(whole, reason)
        elif whole is None:
            for _, dim in factors:
                self.fix(dim, reason)
        else:
            dims = tuple(dim for _, dim in factors)
            self.relations.append(Relation(whole.reshape(sizes), dims))

    def require(self, size: int, dim: Dim, count: int, where: str, *, new: bool) -> None:
        """Write down that the program gives `size` as the size of `dim`.

        The positions of a new dimension are nothing yet: they become those that the size is of.
        """
        expression = expression_of(size)
        if isinstance(expression, int):
            self.fix(dim, Reason(f"its size is written as the number {size}", where))
        elif isinstance(expression, Extent) and new:
            self.tie(dim, expression.dim, Reason("its size is that of something fixed", where))
        else:
            self.equations.append(Equation(expression, Extent(dim, count), where))
            if isinstance(expression, Combined) and _of_attributes(expression) and dim is not None:
                # Of a quotient or a product that is zero, the attribute in it is not known.
                more = Combined(operator.gt, Extent(dim, count), 0)
                text = "the size that it is a part of would become zero"
                self.equations.append(Equation(more, 1, where, text))

    def number(self, size: Expression, where: str) -> None:
        """Write down that a size is used as a number, which then must not change."""
        text = "its size enters the computation as a number"
        if isinstance(size, Combined) and size.operation in (operator.floordiv, operator.mod):
            # The width of a head is the same when heads go.
            now = evaluate(size, self.attributes, lambda extent: extent.size)
            self.equations.append(Equation(size, now, where, text))
            return
        reason = Reason(text, where)
        for leaf in leaves(size):
            if isinstance(leaf, Extent):
                self.fix(leaf.dim, reason)
            elif isinstance(leaf, Attribute):
                self.kept_attributes.setdefault(leaf, reason)

    def concrete(self, dim: Dim, size: int, reason: Reason) -> Positions:
        """Return labels for a dimension, if need be some that stay."""
        if dim is not None:
            return dim
        labels = self.labels.fresh(size)
        self.labels.fix(labels, reason)
        return labels


def _of_attributes(expression: Expression) -> bool:
    return any(isinstance(leaf, Attribute) for leaf in leaves(expression))


def is_size(value: object) -> bool:
    """Return whether an argument is an integer whose origin is known."""
    return isinstance(value, Size)


def all_fixed(dims: Sequence[Dim]) -> bool:
    """Return whether nothing of these dimensions can be removed."""
    return all(dim is None for dim in dims)
