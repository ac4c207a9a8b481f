"""`Trials`: one model in integers of many kinds, on copies."""

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import torch
from torch import nn

from overhaul.core import Context, model_tensors
from overhaul.quantization._integer_map import WeightType
from overhaul.quantization._judge import Judge
from overhaul.quantization._plan import LayerType, LayerTypes, Plan
from overhaul.quantization._ranges import Ranges, activation_names
from overhaul.quantization._write import quantized

Unit: TypeAlias = tuple[str, ...]
"""Paths of layers that share a weight, so that they have one type."""


class Trials:
    """Copies of a model, each with its own type for each layer, judged on val.

    Args:
        model: With real numbers; it is left as it was.
        make_plan: Says what becomes integers, given the types of layers that have their own.
        ranges: Of the activations that become integers if no layer has a type of its own. Those of
            other plans are added.
        observe: Returns the ranges of the activations of a plan. Where a layer stays in real
            numbers, what it reads with others becomes integers in another place.
        search: Whether scales of weights are searched.
        judge: Measures them.
        ctx: For facts and progress.
    """

    def __init__(
        self,
        model: nn.Module,
        make_plan: Callable[[LayerTypes], Plan],
        ranges: Ranges,
        observe: Callable[[Plan], Ranges],
        search: bool,
        judge: Judge,
        ctx: Context,
    ) -> None:
        """Hold what copies are made of."""
        self.model, self.ranges, self.search = model, ranges, search
        self.judge, self.ctx = judge, ctx
        self._make_plan, self._observe = make_plan, observe
        self._plans: dict[frozenset[tuple[str, LayerType]], Plan] = {}
        self._rises: dict[tuple[Unit, str], tuple[float, int]] = {}

    def plan(self, types: LayerTypes) -> Plan:
        """Return what becomes integers with these types; each is worked out once."""
        known = frozenset(types.items())
        if known not in self._plans:
            self._plans[known] = self._make_plan(types)
        return self._plans[known]

    @cached_property
    def units(self) -> list[Unit]:
        """The layers that can have a type of their own."""
        modules = dict(self.model.named_modules())
        layers = self.plan({}).layers
        found: dict[int, list[str]] = {}
        for path, form in layers.items():
            for name in form.weights:
                found.setdefault(id(getattr(modules[path], name)), []).append(path)
        joined: list[set[str]] = []
        for paths in map(set, found.values()):
            apart = [each for each in joined if each.isdisjoint(paths)]
            joined = [*apart, paths.union(*(each for each in joined if each not in apart))]
        order = {path: n for n, path in enumerate(layers)}
        units = [tuple(sorted(each, key=order.__getitem__)) for each in joined]
        return sorted(units, key=lambda unit: order[unit[0]])

    @cached_property
    def usual_types(self) -> dict[str, WeightType]:
        """The type of each layer that has none of its own."""
        return {
            path: next(iter(form.weights.values())).type
            for path, form in self.plan({}).layers.items()
            if form.weights
        }

    def build(self, types: LayerTypes, like: tuple[Plan, nn.Module] | None = None) -> nn.Module:
        """Return a copy in integers of these types.

        Args:
            types: Of the layers whose type is not the usual one.
            like: A repaired copy with its plan: layers of the same form are taken over from it.
        """
        plan = self.plan(types)
        if not self.ranges.keys() >= set(activation_names(plan)):
            self.ranges.update(self._observe(plan))
        made = quantized(self.model, plan, self.ranges, search=self.search)
        if like is not None:
            _take_over_(made, plan, *like)
        return made

    def bytes(self, model: nn.Module) -> int:
        """Return how many bytes the tensors of a model have."""
        return sum(tensor.nbytes for tensor in model_tensors(model).values())

    @cached_property
    def float_loss(self) -> float:
        """The loss of the model with real numbers."""
        return self.judge.loss(self.model)

    def rise(self, unit: Unit, type: WeightType) -> tuple[float, int]:
        """Return how much the loss rises, and the bytes change, with one layer alone in integers.

        It is measured once, and becomes a fact.
        """
        if (unit, type) not in self._rises:
            types: dict[str, LayerType] = {
                path: "float32" for others in self.units for path in others
            }
            made = self.build({**types, **dict.fromkeys(unit, type)})
            rise = self.judge.loss(made) - self.float_loss
            change = self.bytes(made) - self.bytes(self.model)
            self._rises[unit, type] = (rise, change)
            self.ctx.log(
                "sensitivity",
                rise,
                split="val",
                n=len(self.judge.indices),
                detail={"layers": list(unit), "type": type, "bytes": change},
            )
        return self._rises[unit, type]


@torch.no_grad()
def _take_over_(made: nn.Module, plan: Plan, old_plan: Plan, old: nn.Module) -> None:
    """Copy what the old model has, but for layers whose weights have another form there."""
    forms = [
        {path: form.weights for path, form in each.layers.items() if form.weights}
        for each in (plan, old_plan)
    ]
    known = model_tensors(old)
    for name, tensor in model_tensors(made).items():
        path = name.rpartition(".")[0]
        if name in known and forms[0].get(path) == forms[1].get(path):
            tensor.copy_(known[name])
