"""`Graph`: what of a model can be removed, in units that go together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from overhaul.core import ModelError, nearest, owner_of
from overhaul.graph._capture import OUTPUT, capture
from overhaul.graph._enough import keep_enough
from overhaul.graph._equations import Conflict, Gone, solve
from overhaul.graph._labels import Positions, Reason
from overhaul.graph._relations import settle
from overhaul.graph._remove_units import RemoveUnits
from overhaul.graph._same_size import settle_sizes
from overhaul.graph._sizes import Attribute, Extent, leaves
from overhaul.graph._trace import Equation, Trace


@dataclass(frozen=True, eq=False)
class Place:
    """Where the units of a group are: positions of one dimension of one tensor.

    Attributes:
        tensor: The name of a parameter or buffer.
        dim: Which dimension.
        positions: `[units, k]`: the positions that each unit has there.
        reads: Whether they take the units in, as the columns of a weight do, and do not make them.
    """

    tensor: str
    dim: int
    positions: Positions
    reads: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Units of the same kind, each of which can be removed: channels, heads, hidden units.

    Attributes:
        name: The module that makes them, as a path.
        kind: `heads` of attention, `units` of a recurrent layer, or else `channels`.
        units: How many there are.
        places: Everywhere they are.
        labels: The label of each unit.
    """

    name: str
    kind: Literal["channels", "heads", "units"]
    units: int
    places: tuple[Place, ...]
    labels: Positions = field(repr=False)

    @property
    def owners(self) -> set[str]:
        """The paths of the modules that the places are in."""
        return {owner_of(place.tensor) for place in self.places}

    def __str__(self) -> str:
        return f"{self.name} ({self.units} {self.kind} in {len(self.places)} places)"


@dataclass(frozen=True)
class Unprunable:
    """Positions that cannot be removed, and why."""

    tensor: str
    dim: int
    count: int
    reason: Reason

    def __str__(self) -> str:
        return f"{self.tensor}, dimension {self.dim}, {self.count} positions: {self.reason}"


class Graph:
    """What of a model can be removed, found from one forward pass.

    Each operation of the pass has a rule that says which positions of which dimensions go together:
    the outputs of a layer and the inputs of the next, the two sides of an addition, the rows of the
    gates of an LSTM, the heads of query, key and value. Positions that go together through the
    whole model are a *unit*; units of the same kind are a `Group`. What an unknown operation
    touches, and what the program fixes by a number in its text, is not removable, and the reason
    names the line.

    Args:
        model: Any module; it is left as it was.
        inputs: Positional inputs of one forward pass.
        named_inputs: Named inputs of it.

    Raises:
        ModelError: the program's way depends on the values of the inputs.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> graph = Graph(model, (torch.zeros(1, 4),))
        >>> [str(group) for group in graph.groups]
        ['0 (8 channels in 3 places)']
        >>> smaller = graph.remove({"0": [1, 5]}).apply(model)
        >>> smaller[0].out_features, smaller[2].in_features
        (6, 6)

    Paper: Fang et al., CVPR 2023 (the dependency graph).  Differs: positions and not layers are
    followed, through the operations of the forward pass and not through those of the backward pass,
    and an operation that is not known fixes what it touches.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Any] = (),
        named_inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Run the pass and work out the groups."""
        self.trace = capture(model, inputs, named_inputs)
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        settle(self.trace)
        settle_sizes(self.trace)
        self._root = self.trace.labels.find(np.arange(self.trace.labels.used, dtype=np.int64))
        while True:
            free = self.trace.labels.free(np.arange(len(self._root)))
            candidates = _groups(self.trace, self._root, free)
            if not keep_enough(self.trace, self._root, [group.labels for group in candidates]):
                break
        self.groups, refused = _followed(self.trace, self._root, candidates)
        self.unprunable = _unprunable(self.trace, self._root, free, refused)

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def __getitem__(self, name: str) -> Group:
        """Return a group by its name."""
        if name not in self._by_name:
            raise ModelError(f"there is no group '{name}' to prune. {nearest(name, self._by_name)}")
        return self._by_name[name]

    @property
    def refusals(self) -> tuple[Unprunable, ...]:
        """The layers that no output can be removed of, unless they make the model's output."""
        whole = []
        for each in self.unprunable:
            dims = self.trace.state[each.tensor].dims
            dim = dims[each.dim]
            reads = (each.tensor, each.dim) in self.trace.reads
            makes = each.tensor.endswith("weight") and len(dims) > 1 and each.dim < 2
            if makes and not reads and dim is not None and each.count == len(dim):
                whole.append(each)
        return tuple(each for each in whole if each.reason != OUTPUT)

    @property
    def main_reason(self) -> str:
        """What stands against a removal most often, as a sentence; empty where nothing does."""
        reasons = [str(refused.reason) for refused in self.refusals]
        if not reasons:
            only_outputs = any(each.reason == OUTPUT for each in self.unprunable)
            if self.groups or not only_outputs:
                return ""
            return "What its layers make is the model's output, and nothing is in between."
        most = max(dict.fromkeys(reasons), key=reasons.count)
        sentence = f"What stands against it most often: {most}."
        if _WRITTEN in most:
            sentence += (
                " Let the size follow instead: `x.flatten(1)` for `x.view(-1, number)`, "
                "`x.shape[1]` for a number of channels."
            )
        return sentence

    def gone(self, units: Mapping[str, Sequence[int]]) -> Gone:
        """Return for each label whether it goes with these units."""
        removed = np.zeros(len(self._root), dtype=np.bool_)
        for name, chosen in units.items():
            group = self[name]
            index = np.unique(np.asarray(chosen, dtype=np.int64))
            if len(index) and (index[0] < 0 or index[-1] >= group.units):
                raise ModelError(
                    f"'{name}' has units 0 to {group.units - 1}, got {index[0]} to {index[-1]}."
                )
            if len(index) >= group.units:
                raise ModelError(
                    f"all {group.units} units of '{name}' were to be removed. Keep one."
                )
            removed[group.labels[index]] = True
        return np.asarray(removed[self._root])

    def macs(self, gone: Gone | None = None) -> int:
        """Return the multiply-accumulate operations of the pass, for the whole batch."""
        total = 0
        for term in self.trace.macs:
            product = term.constant
            for dim in term.dims:
                product *= len(dim) if gone is None else len(dim) - int(gone[dim].sum())
            total += product
        return total

    def parameters(self, gone: Gone | None = None) -> int:
        """Return the number of parameters."""
        total = 0
        for name in self.trace.parameters:
            sizes = self._shapes[name]
            for d, dim in enumerate(self.trace.state[name].dims):
                if dim is not None and gone is not None:
                    sizes = (*sizes[:d], sizes[d] - int(gone[dim].sum()), *sizes[d + 1 :])
            total += math.prod(sizes)
        return total

    def remove(self, units: Mapping[str, Sequence[int]]) -> RemoveUnits:
        """Return the edit that removes these units, by the names of their groups.

        Raises:
            ModelError: a group or unit does not exist, or nothing of a group would be left, or the
                program gives sizes that do not follow.
        """
        gone = self.gone(units)
        try:
            changed = solve(
                self.trace.equations, self.trace.attributes, self.trace.kept_attributes, gone
            )
        except Conflict as conflict:
            raise ModelError(
                f"these units cannot be removed together: {conflict.reason}."
            ) from None
        removed: dict[str, dict[int, tuple[int, ...]]] = {}
        for name, flow in self.trace.state.items():
            for d, dim in enumerate(flow.dims):
                if dim is not None and (places := np.flatnonzero(gone[dim])).size:
                    removed.setdefault(name, {})[d] = tuple(places.tolist())
        attributes: dict[str, dict[str, int]] = {}
        for attribute, value in sorted(changed.items(), key=str):
            attributes.setdefault(attribute.module, {})[attribute.name] = value
        return RemoveUnits(
            removed=removed, attributes=attributes, renumbered=self._renumbered(gone)
        )

    def _renumbered(self, gone: Gone) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(np.flatnonzero(gone[dim]).tolist())
            for name, dim in self.trace.renumbered.items()
            if gone[dim].any()
        }


_WRITTEN = "written as the number"


def _groups(trace: Trace, root: Positions, free: NDArray[np.bool_]) -> list[Group]:
    """Put units with the same places together."""
    places: list[tuple[str, int, Positions]] = []
    for name, flow in trace.state.items():
        if name in trace.used:
            places += [(name, d, root[dim]) for d, dim in enumerate(flow.dims) if dim is not None]
    if not places:
        return []
    random = np.random.default_rng(0)
    keys = random.integers(1, 2**63, size=len(places), dtype=np.uint64)
    signature = np.zeros(len(root), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key, (_, _, roots) in zip(keys, places, strict=True):
            np.add.at(signature, roots, key)
    signature[~free] = 0
    found: dict[int, list[int]] = {}
    for label in np.flatnonzero(signature).tolist():
        found.setdefault(int(signature[label]), []).append(label)
    number = np.full(len(root), -1, dtype=np.int64)
    group_of = np.full(len(root), -1, dtype=np.int64)
    members = list(found.values())
    for index, labels in enumerate(members):
        number[labels] = np.arange(len(labels))
        group_of[labels] = index
    located: list[list[Place]] = [[] for _ in members]
    for name, d, roots in places:
        here = group_of[roots]
        for index in np.unique(here[here >= 0]).tolist():
            where = np.flatnonzero(here == index)
            order = np.argsort(number[roots[where]], kind="stable")
            positions = where[order].reshape(len(members[index]), -1)
            located[index].append(Place(name, d, positions, (name, d) in trace.reads))
    of_heads = np.zeros(len(root), dtype=np.bool_)
    for dim in trace.heads:
        of_heads[root[dim]] = True
    groups, names = [], set[str]()
    for labels, own in zip(members, located, strict=True):
        if len(labels) < 2:
            continue
        name = base = _name(own)
        count = 1
        while name in names:
            count += 1
            name = f"{base}#{count}"
        names.add(name)
        kind = _kind(trace, own, bool(of_heads[labels].any()))
        groups.append(Group(name, kind, len(labels), tuple(own), np.array(labels)))
    return groups


def _kind(
    trace: Trace, places: Sequence[Place], of_heads: bool
) -> Literal["channels", "heads", "units"]:
    if any(place.tensor in trace.recurrent and place.dim == 0 for place in places):
        return "units"
    wide = any(place.positions.shape[1] > 1 for place in places)
    return "heads" if of_heads and wide else "channels"


def _name(places: Sequence[Place]) -> str:
    makers = [place for place in places if not place.reads and place.tensor.endswith("weight")]
    return owner_of((makers or list(places))[0].tensor) or places[0].tensor


def _followed(
    trace: Trace, root: Positions, groups: list[Group]
) -> tuple[tuple[Group, ...], dict[int, Reason]]:
    """Leave out groups whose removal the sizes in the program would not follow."""
    group_of = np.full(len(root), -1, dtype=np.int64)
    for index, group in enumerate(groups):
        group_of[group.labels] = index
    of_group: list[list[Equation]] = [[] for _ in groups]
    of_attribute: dict[Attribute, list[Equation]] = {}
    for equation in trace.equations:
        touched: set[int] = set()
        for leaf in (*leaves(equation.left), *leaves(equation.right)):
            if isinstance(leaf, Extent) and leaf.dim is not None:
                touched.update(np.unique(group_of[root[leaf.dim]]).tolist())
            elif isinstance(leaf, Attribute):
                of_attribute.setdefault(leaf, []).append(equation)
        for index in touched - {-1}:
            of_group[index].append(equation)
    kept, refused = [], {}
    for group, own in zip(groups, of_group, strict=True):
        try:
            # A quotient may stay when one unit goes, and not when many do.
            for left in {group.units - 1, group.units // 2, 1} if own else ():
                gone = np.zeros(len(root), dtype=np.bool_)
                gone[group.labels[left:]] = True
                _solve_all(trace, own, of_attribute, gone[root])
        except Conflict as conflict:
            refused.update(dict.fromkeys(group.labels.tolist(), conflict.reason))
        else:
            kept.append(group)
    return tuple(kept), refused


def _solve_all(
    trace: Trace,
    own: list[Equation],
    of_attribute: Mapping[Attribute, list[Equation]],
    gone: Gone,
) -> None:
    """Solve the equations of a group, and those of every attribute that changes with them."""
    equations = {id(equation): equation for equation in own}
    while True:
        changed = solve(equations.values(), trace.attributes, trace.kept_attributes, gone)
        more = {id(e): e for name in changed for e in of_attribute.get(name, ())}
        if more.keys() <= equations.keys():
            return
        equations |= more


def _unprunable(
    trace: Trace, root: Positions, free: NDArray[np.bool_], refused: Mapping[int, Reason]
) -> tuple[Unprunable, ...]:
    found: list[Unprunable] = []
    for name, flow in trace.state.items():
        for d, dim in enumerate(flow.dims):
            if dim is None:
                continue
            reasons: dict[Reason, int] = {}
            for label in root[dim].tolist():
                if not free[label]:
                    reason = trace.labels.why(label)
                elif label in refused:
                    reason = refused[label]
                else:
                    continue
                reasons[reason] = reasons.get(reason, 0) + 1
            found += [Unprunable(name, d, count, reason) for reason, count in reasons.items()]
    return tuple(found)
