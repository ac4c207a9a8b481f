"""`redundant_units`: which units of a group the others can do without, found from the weights."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from overhaul.core import owner_of
from overhaul.graph import Graph, Group, LayerFlow, Place, WatchedLayer, can_take_bias

Kind: TypeAlias = Literal["dead", "constant", "duplicate", "proportional"]
_SAME = 1e-6
"""Weights that differ by some roundings of single precision are the same."""
_STEADY = 1e-6
"""How much a value may move, relative to itself, that nothing but rounding moves."""


@dataclass(frozen=True)
class Redundant:
    """A unit that is not needed.

    Attributes:
        unit: Which one.
        kind: Why.
        into: The unit that does its work, for duplicate and proportional ones.
        factor: How many times that unit it is.
    """

    unit: int
    kind: Kind
    into: int = -1
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """What can be removed of one group, and what takes over.

    Attributes:
        group: The group.
        found: The units, with the reason of each.
        readers: The places where layers read the units.
        layers: These layers, by the names of their weights.
        no_bias: The readers without a bias, which need one to take up constants.
        makers: Where weights make the units, if it is not known what else happens to them. That
            nothing reads them is then to be proved: see `disturb_`.
    """

    group: Group
    found: tuple[Redundant, ...]
    readers: tuple[Place, ...]
    layers: Mapping[str, WatchedLayer]
    no_bias: tuple[str, ...]
    makers: tuple[Place, ...] = ()

    @property
    def units(self) -> list[int]:
        """The units that go."""
        return [each.unit for each in self.found]

    @torch.no_grad()
    def disturb_(self, model: nn.Module) -> None:
        """Give the weights that make the units other values, which nobody may notice."""
        generator = torch.Generator().manual_seed(0)
        for place in self.makers:
            weight = model.get_parameter(place.tensor)
            gone = torch.from_numpy(place.positions[self.units]).flatten().to(weight.device)
            rows = weight.movedim(place.dim, 0)
            noise = torch.randn(rows[gone].shape, generator=generator, dtype=torch.float64)
            rows[gone] = noise.to(weight)

    @torch.no_grad()
    def rewrite_(self, model: nn.Module) -> None:
        """Let the weights that read other units, and the biases, take over from those that go."""
        for place in self.readers:
            layer = self.layers[place.tensor]
            weight = model.get_parameter(place.tensor)
            columns = weight.double().movedim(place.dim, 0).clone()
            shift = columns.new_zeros(columns.shape[1])
            for each in self.found:
                own = torch.from_numpy(place.positions[each.unit]).to(weight.device)
                if each.into >= 0:
                    other = torch.from_numpy(place.positions[each.into]).to(weight.device)
                    columns[other] += each.factor * columns[own]
                elif each.kind == "constant":
                    value = layer.low[own].to(columns)
                    taken = torch.tensordot(value, columns[own], 1)
                    shift += taken.reshape(len(shift), -1).sum(1)
                columns[own] = 0
            weight.copy_(columns.movedim(0, place.dim))
            if shift.any():
                bias = model.get_parameter(layer.bias or f"{owner_of(place.tensor)}.bias")
                bias.copy_(bias.double() + shift)


def redundant_units(
    model: nn.Module, group: Group, flow: LayerFlow, together: frozenset[int]
) -> GroupPlan:
    """Find the units of a group that the model computes the same without.

    Args:
        model: Its weights decide.
        group: The group.
        flow: What one pass showed of the layers between the units.
        together: What `computed_together` returns for the graph.
    """
    search = _Search(model, group, flow)
    if not search.understood or not together.isdisjoint(group.labels.tolist()):
        return _unread_units(model, group)
    found = search.dead() | search.constant()
    found |= search.copies(set(found))
    chosen = [found[unit] for unit in sorted(found)]
    if len(chosen) == group.units:
        chosen = chosen[1:]  # all were dead or constant, and one must stay
    takes_constant = any(each.kind == "constant" for each in chosen)
    missing = [p.tensor for p in search.readers if flow.layers[p.tensor].bias is None]
    return GroupPlan(
        group,
        tuple(chosen),
        tuple(search.readers),
        flow.layers,
        tuple(map(owner_of, missing)) if takes_constant else (),
    )


def _unread_units(model: nn.Module, group: Group) -> GroupPlan:
    """Find the units that nothing reads of a group that is not otherwise understood.

    Such are the units of a recurrent layer, and the heads of attention.
    """
    own = dict(model.named_parameters())
    places = [place for place in group.places if place.tensor in own]
    readers = [place for place in places if place.reads]
    makers = tuple(place for place in places if not place.reads)
    if group.kind == "channels" or not readers or not makers:
        return GroupPlan(group, (), (), {}, ())
    unread = np.ones(group.units, dtype=np.bool_)
    for place in readers:
        unread &= ~_values_at(own[place.tensor], place).any(1).cpu().numpy()
    found = [Redundant(unit, "dead") for unit in np.flatnonzero(unread).tolist()]
    if len(found) == group.units:
        found = found[1:]  # one must stay
    return GroupPlan(group, tuple(found), (), {}, (), makers)


def _values_at(tensor: Tensor, place: Place) -> Tensor:
    """Return `[units, n]`, what belongs to each unit at a place."""
    moved = tensor.detach().double().movedim(place.dim, 0)
    positions = torch.from_numpy(place.positions).to(moved.device)
    return moved.flatten(1)[positions].flatten(1) if moved.ndim > 1 else moved[positions]


_HOMOGENEOUS = frozenset(
    [
        *("relu", "relu_", "leaky_relu", "leaky_relu_", "abs"),
        *(f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)),
    ]
)
"""`f(a x) = a f(x)` for every positive `a`."""
_LINEAR = frozenset(
    [
        *("flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze"),
        *("contiguous", "clone", "dropout", "dropout1d", "dropout2d", "dropout3d"),
        *(f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)),
    ]
)
"""`f(a x) = a f(x)` for every `a`. Dropout does nothing in evaluation mode."""
_POINTWISE = frozenset(
    [
        *(f"{name}{end}" for name in ("sigmoid", "tanh", "hardtanh", "elu") for end in ("", "_")),
        *("relu6", "gelu", "silu", "silu_", "mish", "hardswish", "hardsigmoid", "batch_norm"),
    ]
)
"""Further operations after which a unit is still in its own channel and nowhere else."""


class _Search:
    def __init__(self, model: nn.Module, group: Group, flow: LayerFlow) -> None:
        self.model, self.group, self.flow = model, group, flow
        self.state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.makers: list[Place] = []
        self.own_channel: list[Place] = []
        self.readers: list[Place] = []
        self.others: list[Place] = []
        known = [self._sort(place) for place in group.places]
        self.understood = all(known) and bool(self.readers)

    def _sort(self, place: Place) -> bool:
        """Put a place where it belongs; return whether it is known what it does."""
        layer = self.flow.layers.get(place.tensor)
        if layer is None:
            self.others.append(place)
            biases = {each.bias for each in self.flow.layers.values()}
            operation = self.flow.operations.get(place.tensor)
            known = place.tensor in biases or operation in ("batch_norm", "prelu")
            return known and self.flow.uses[place.tensor] == 1
        weight = self.state[place.tensor]
        if layer.groups == 1 and place.dim in (0, 1):
            (self.makers if place.dim == layer.out_dim else self.readers).append(place)
            return True
        self.own_channel.append(place)
        depthwise = weight.shape[1] == 1 and layer.groups == len(weight) == len(layer.low)
        return depthwise and place.dim == 0 and not layer.transposed

    def dead(self) -> dict[int, Redundant]:
        """Find the units that nothing reads."""
        unread = np.ones(self.group.units, dtype=np.bool_)
        for place in self.readers:
            unread &= self._zero(place)
        return {unit: Redundant(unit, "dead") for unit in np.flatnonzero(unread).tolist()}

    def _zero(self, place: Place) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return ~self._values(place).any(1).cpu().numpy()

    def _values(self, place: Place) -> Tensor:
        return _values_at(self.state[place.tensor], place)

    def constant(self) -> dict[int, Redundant]:
        """Find the units that have the same value for any input; zero is the best of values."""
        silent = {place.tensor: self._zero(place) for place in (*self.makers, *self.own_channel)}
        for place in (*self.makers, *self.own_channel):
            layer = self.flow.layers[place.tensor]
            scale = None if layer.norm is None else _scale_of(layer.norm)
            for other in self.others:
                if other.tensor == scale:
                    silent[place.tensor] |= self._zero(other)
        own = {place.tensor for place in self.own_channel}
        for place in self.makers:
            layer = self.flow.layers[place.tensor]
            if layer.readers and layer.readers <= own and self._stays_in_channel(layer):
                stopped = np.logical_and.reduce([silent[name] for name in layer.readers])
                silent[place.tensor] |= stopped
        if not silent:
            return {}
        candidates = np.flatnonzero(np.logical_and.reduce(list(silent.values())))
        found = {}
        for unit in candidates.tolist():
            kind = self._kind_of_constant(unit)
            if kind is not None:
                found[unit] = Redundant(unit, kind)
        return found

    @staticmethod
    def _stays_in_channel(layer: WatchedLayer) -> bool:
        return layer.operations <= _LINEAR | _HOMOGENEOUS | _POINTWISE

    def _kind_of_constant(self, unit: int) -> Kind | None:
        kind: Kind = "dead"
        for place in self.readers:
            layer = self.flow.layers[place.tensor]
            at = torch.from_numpy(place.positions[unit]).to(layer.low.device)
            low, high = layer.low[at], layer.high[at]
            if not bool((high - low <= _STEADY * torch.maximum(low.abs(), high.abs())).all()):
                return None
            columns = self._values(place)[unit]
            if bool((low == 0).all()) or not columns.any():
                continue
            if layer.pads or layer.transposed or not self._can_shift(layer):
                return None  # a constant is not constant where zeros are put around it
            kind = "constant"
        return kind

    def _can_shift(self, layer: WatchedLayer) -> bool:
        if layer.bias is None:
            return can_take_bias(self.model, layer.weight)
        return layer.bias in self.state and self.flow.uses[layer.bias] == 1

    def copies(self, taken: set[int]) -> dict[int, Redundant]:
        """Find the units that are a multiple of an earlier one for any input."""
        makers = [*self.makers, *self.own_channel, *self.others]
        values = [self._values(place) for place in makers]
        if not values:
            return {}
        every = torch.cat(values, 1)
        size = every.norm(dim=1, keepdim=True)
        # Four numbers tell most units apart; only those with the same four are compared in full.
        generator = torch.Generator().manual_seed(0)
        axes = torch.randn(every.shape[1], 4, generator=generator, dtype=torch.float64)
        sketch = (every / size.clamp_min(1e-300)) @ axes.to(every.device)
        signs = self._factors_allowed()
        near = torch.zeros(len(every), len(every), dtype=torch.bool, device=every.device)
        for sign in signs or (1,):
            near |= torch.cdist(sketch, sign * sketch, p=torch.inf) < 1e-4
        found: dict[int, Redundant] = {}
        for unit, into in near.tril(-1).nonzero().tolist():
            if {unit, into} & (taken | found.keys()):
                continue
            if all(_same(part[unit], part[into], 1.0) for part in values):
                found[unit] = Redundant(unit, "duplicate", into)
            elif signs:
                factor = float(every[unit] @ every[into] / size[into].square())
                if factor * signs[-1] < 0 and len(signs) == 1:
                    continue
                if all(_same(part[unit], part[into], factor) for part in values):
                    found[unit] = Redundant(unit, "proportional", into, factor)
        return found

    def _factors_allowed(self) -> tuple[int, ...]:
        """Return the signs of the factors that pass through all that is done to the units."""
        if len(self.makers) != 1 or self.own_channel:
            return ()
        (maker,) = self.makers
        layer = self.flow.layers[maker.tensor]
        plain = {place.tensor for place in self.others} <= {layer.bias}
        alone = layer.readers == {place.tensor for place in self.readers}
        if not plain or not alone or not layer.operations <= _LINEAR | _HOMOGENEOUS:
            return ()
        return (1, -1) if layer.operations <= _LINEAR else (1,)


def _scale_of(running_mean: str) -> str:
    return f"{owner_of(running_mean)}.weight".removeprefix(".")


def _same(left: Tensor, right: Tensor, factor: float) -> bool:
    """Return whether `left` is `factor` times `right`, to some roundings."""
    return float((left - factor * right).abs().max()) <= _SAME * float(left.abs().max())


def computed_together(graph: Graph) -> frozenset[int]:
    """Return the labels of units that an operation computes with each other (a LayerNorm)."""
    found: set[int] = set()
    for mixing in graph.trace.mixing.values():
        for dim in itertools.chain(*mixing.inputs, *mixing.outputs):
            if dim is not None:
                found.update(graph.trace.labels.find(dim).tolist())
    return frozenset(found)
