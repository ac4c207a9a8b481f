"""`Call`: one operation that a model did, and what its rule may say about it."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from overhaul.graph._labels import Dim, Positions, Reason
from overhaul.graph._sizes import Combined, Extent
from overhaul.graph._trace import Equation, MacTerm, Mixing, Trace


class UnknownUse(Exception):  # noqa: N818 - not an error: the rule's answer
    """A rule does not know this use of its operation; the text says why."""


_PARTS = frozenset(
    [
        *("__getitem__", "narrow", "split", "split_with_sizes", "chunk", "tensor_split"),
        *("index_select", "gather", "take_along_dim"),
    ]
)


@dataclass
class Call:
    """One operation: what went in, what came out, and where it stands in the user's code."""

    trace: Trace
    index: int
    name: str
    out: Any
    where: str
    inputs: list[Tensor]
    merged: set[int] = field(default_factory=set)
    start: int = 0

    def __post_init__(self) -> None:
        """Remember which labels are older than the call."""
        self.start = self.trace.labels.used

    def dims(self, tensor: Any) -> list[Dim]:
        """Return the labels of a tensor's dimensions."""
        return list(self.trace.flow(tensor).dims)

    def reason(self, text: str) -> Reason:
        """Return a reason that names this line."""
        return Reason(text, self.where)

    @property
    def fixed_here(self) -> Reason:
        """The reason of what is computed together with something fixed."""
        return self.reason("it is computed together with something of fixed size")

    def tie(self, first: Dim, second: Dim) -> None:
        """Let two dimensions go together."""
        self.trace.tie(first, second, self.fixed_here)

    def fix(self, dim: Dim, text: str) -> None:
        """Let a dimension stay."""
        self.trace.fix(dim, self.reason(text))

    def fresh(self, count: int) -> Positions:
        """Return labels for new positions."""
        return self.trace.labels.fresh(count)

    def require(self, size: int, dim: Dim, count: int) -> None:
        """Write down that the program gives `size` as the size of `dim`."""
        new = dim is not None and int(dim[0]) >= self.start and int(dim[0]) not in self.merged
        self.trace.require(size, dim, count, self.where, new=new)

    def more_than(self, dim: Dim, size: int, least: int, text: str) -> None:
        """Write down that more than `least` positions of a dimension have to be left."""
        if dim is not None:
            more = Combined(operator.gt, Extent(dim, size), least)
            self.trace.equations.append(Equation(more, 1, self.where, text))

    def several(self, dim: Dim, size: int) -> Dim:
        """Return the labels of a dimension of a result; a part must not become empty."""
        if dim is None:
            return None
        if size == 1:
            self.fix(dim, "it is the only position of a dimension")
            return None
        if self.name in _PARTS:
            self.more_than(dim, size, 0, "nothing would be left of a part that is picked")
        return dim

    def concrete(self, dim: Dim, size: int) -> Positions:
        """Return labels of a dimension, if need be some that stay."""
        return self.trace.concrete(dim, size, self.fixed_here)

    def cut(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Return the factors of a dimension, outermost first."""
        if dim is None:
            return [None] * len(sizes)
        factors: list[Dim] = [self.fresh(size) if size > 1 else None for size in sizes]
        self.trace.relate(dim, list(zip(sizes, factors, strict=True)), self.fixed_here)
        return factors

    def merge(self, dims: Sequence[Dim], sizes: Sequence[int]) -> Dim:
        """Return the dimension that is the product of others, outermost first."""
        live = [place for place, dim in enumerate(dims) if dim is not None]
        if not live:
            return None
        if len(live) == 1:
            shape = [1] * len(sizes)
            shape[live[0]] = sizes[live[0]]
            dim = dims[live[0]]
            assert dim is not None
            return np.asarray(np.broadcast_to(dim.reshape(shape), tuple(sizes)).reshape(-1))
        whole = self.fresh(math.prod(sizes))
        self.merged.add(int(whole[0]))
        self.trace.relate(whole, list(zip(sizes, dims, strict=True)), self.fixed_here)
        return whole

    def together(self, dim: Dim, count: int) -> Dim:
        """Return the labels of one of `count` equal parts of a dimension; all parts are tied."""
        if dim is None:
            return None
        parts = dim.reshape(count, -1)
        for part in parts[1:]:
            self.trace.labels.tie(parts[0], part)
        first: Positions = parts[0]
        return first

    def broadcast(self, *tensors: Any) -> list[Dim]:
        """Tie tensors that are broadcast together, and return the dims of the result."""
        return self.broadcast_dims([(list(t.shape), self.dims(t)) for t in tensors])

    def broadcast_dims(self, operands: Sequence[tuple[list[int], list[Dim]]]) -> list[Dim]:
        """Tie dims that are broadcast together, given the shapes that they belong to."""
        rank = max((len(shape) for shape, _ in operands), default=0)
        result: list[Dim] = []
        for back in range(rank, 0, -1):
            parts = [
                (shape[-back], dims[-back])
                for shape, dims in operands
                if len(shape) >= back and shape[-back] != 1
            ]
            for _, dim in parts[1:]:
                self.tie(parts[0][1], dim)
            fixed = any(dim is None for _, dim in parts)
            result.append(None if fixed or not parts else parts[0][1])
        return result

    def macs(self, constant: int, dims: Sequence[Dim], sizes: Sequence[int]) -> None:
        """Count multiplications: a constant times the sizes of these dimensions."""
        live = tuple(dim for dim in dims if dim is not None)
        fixed = math.prod(size for dim, size in zip(dims, sizes, strict=True) if dim is None)
        self.trace.macs.append(MacTerm(constant * fixed, live))

    def reads(self, weight: Tensor, dim: int) -> None:
        """Say that the positions of this dimension of a weight each take in one of the inputs."""
        state = self.trace.flow(weight).state
        if state is not None:
            self.trace.reads.add((state, dim))

    def mixes(self, outputs: Sequence[Sequence[Dim]], groups: Dim = None) -> None:
        """Say that positions are computed with each other, so that removal shows in the rest."""
        inputs = tuple(tuple(self.dims(tensor)) for tensor in self.inputs)
        if any(dim is not None for dims in inputs for dim in dims):
            kept = tuple(tuple(dims) for dims in outputs)
            self.trace.mixing[self.index] = Mixing(inputs, kept, groups)


Dims = list[Dim]
Rule = Callable[..., "Dims | list[Dims] | None"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these operations.

    A rule gets the `Call` and the operation's own arguments. It ties labels and returns the dims of
    the output, or of each tensor of the output.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register
