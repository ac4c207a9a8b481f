"""`PruneChannels`: whole channels, heads and hidden units are taken out."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn

from overhaul.core import (
    Batch,
    CheckpointFolder,
    Context,
    ModelError,
    Step,
    derived_seed,
    matching_names,
    owner_of,
)
from overhaul.evaluation import forward_call, measure_latency, model_device
from overhaul.graph import Graph, Group, check_removal
from overhaul.pruning._criterion import Criterion, Scores
from overhaul.pruning._magnitude import Magnitude
from overhaul.pruning._repair import Repair, readers_that_lose
from overhaul.pruning._selection import Selection, Units
from overhaul.pruning._take_out import Cost, take_out
from overhaul.training import Train

Kind = Literal["channels", "heads", "units"]
_TARGETS = ("macs", "params", "latency_ms", "fraction")


class PruneChannels(Step):
    r"""Take out the channels, attention heads and recurrent units that are worth least.

    One forward pass on training samples shows what goes together (`overhaul.graph.Graph`): a unit
    is removed everywhere at once, so the result is an ordinary, smaller network of the same class
    that trains, exports and reloads. Before anything changes, the removal is proved on a copy
    (`overhaul.graph.check_removal`); what the program fixes by a number in its text is left as it
    is, and a fact names the line.

    With scores :math:`s_u` from the criterion, units go in the order of their score until the
    target is met.

    Args:
        macs: Keep at most this fraction of the multiply-accumulate operations, in (0, 1).
        params: Keep at most this fraction of the parameters, in (0, 1).
        latency_ms: Largest median time of one sample on this machine, measured: candidates are
            built and timed (eager, one thread). Two runs may therefore differ.
        fraction: Remove this fraction of the units of each group, in (0, 1); of all units where
            `scope` is not `layer`.
        criterion: How much a unit is worth. Default `Magnitude()`.
        scope: `layer` removes the same fraction everywhere, `global` compares the scores of all
            units, `normalized` divides them by their group's mean before. Default `layer`.
        kinds: What may go: `channels`, `heads`, `units` (of recurrent layers). Default: all.
        multiple: Round the sizes that stay up to a multiple of this; `measured` takes the fastest
            of 1, 4, 8 and 16 on this machine. Default 1.
        most: The largest fraction of a group that may go, over all rounds, in (0, 1). Default 0.9.
        layers: Patterns of module paths: only groups that these modules make or take in. Default:
            all.
        exclude: Patterns of module paths that are left as they are, inputs included.
        repair: What makes up for the removal without training. Default none.
        rounds: In how many rounds to remove. Default 1.
        between: The training between two rounds; needed with more than one.

    Raises:
        SpecError: not exactly one target is given, `fraction` is above `most`, or there are rounds
            without training between them.
        ModelError: a pattern matches nothing, the target cannot be reached, or the removal fails
            its proof; the model is then as before.

    Example:
        >>> PruneChannels(macs=0.5)
        PruneChannels(macs=0.5)

    Paper: Li et al., ICLR 2017; Fang et al., CVPR 2023 (groups).  Differs: see `Graph`.
    """

    macs: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="It is the fraction that is kept: for 'half the MACs' write 0.5.",
    )
    params: float | None = Field(
        default=None, gt=0, lt=1, description="It is the fraction of parameters that is kept."
    )
    latency_ms: float | None = Field(default=None, gt=0, description="Milliseconds, measured.")
    fraction: float | None = Field(
        default=None, gt=0, lt=1, description="It is the fraction of units that is removed."
    )
    criterion: Criterion = Magnitude()
    scope: Literal["layer", "global", "normalized"] = "layer"
    kinds: tuple[Kind, ...] = ("channels", "heads", "units")
    multiple: int | Literal["measured"] = 1
    most: float = Field(default=0.9, gt=0, lt=1, description="Largest fraction of a group to go.")
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    repair: Repair | None = None
    rounds: int = Field(default=1, ge=1, description="Rounds of removal.")
    between: Train | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(f"`{name}`" for name in _TARGETS)
            raise ValueError(
                f"PruneChannels needs exactly one of {names}, got "
                f"{' and '.join(given) or 'none'}. For 'half the MACs' write macs=0.5."
            )
        if self.fraction is not None and self.fraction > self.most:
            raise ValueError(
                f"`fraction` must not be above `most`, the largest fraction of a group that may "
                f"go, got {self.fraction} and {self.most}. Write a smaller `fraction`, or a larger "
                "`most`."
            )
        if isinstance(self.multiple, int) and self.multiple < 1:
            raise ValueError(f"`multiple` must be at least 1, got {self.multiple}.")
        if (self.rounds > 1) != (self.between is not None):
            raise ValueError(
                "`rounds` above 1 and `between` belong together, and only one of them is given. "
                "Give the training that goes between two rounds: `between: {train: {epochs: 1}}` "
                "in a recipe file, `between=Train(epochs=1)` in Python."
            )
        if not self.kinds:
            raise ValueError("`kinds` is empty. Name what may go: channels, heads, units.")
        return self

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Remove in rounds, with training between them."""
        batch = next(ctx.data.train.in_order(2)).to(model_device(model))
        graph = Graph(model, *batch.arguments)
        full, before = Cost.of(graph), _UnitsBefore(graph)
        for number in range(1, self.rounds + 1):
            if number > 1:
                assert self.between is not None
                model = _train(self.between, model, ctx, number - 1)
                graph = Graph(model, *batch.arguments)
            done = number / self.rounds
            model = self._prune(_Round(model, graph, batch, full, before, done, ctx))
        return model

    def control(self) -> Step | None:
        """Return the training between the rounds, in one piece."""
        if self.between is None:
            return None
        once = self.between.control()
        return once.model_copy(update={"epochs": once.epochs * (self.rounds - 1)})

    def _prune(self, now: "_Round") -> nn.Module:
        model, graph, ctx = now.model, now.graph, now.ctx
        _say_what_is_left(graph, ctx)
        chosen = {group.name: group for group in self._chosen(graph, model)}
        scores = self.criterion.scores(graph, model, ctx)
        for name in chosen.keys() - scores.keys():
            why = f"{type(self.criterion).__name__} has nothing to judge it by"
            if not any((fact.value, fact.reason) == (name, why) for fact in ctx.facts):
                ctx.log("skipped", name, reason=why)
        scores = {name: values for name, values in scores.items() if name in chosen}
        if not scores:
            raise ModelError(
                f"no group is left to prune: of {_counted(list(chosen.values()))}, "
                f"{type(self.criterion).__name__} has nothing to judge one by. Take another "
                "`criterion`."
            )
        units = self._select(now, scores)
        if not units:
            ctx.log("removed_units", 0, reason=self._why_none([chosen[n].units for n in scores]))
            return model
        error = check_removal(model, graph, units, *now.batch.arguments)
        if self.repair is not None:
            readers = readers_that_lose(model, graph, graph.gone(units))
            self.repair.apply_(model, list(readers), ctx)
        return take_out(model, graph, units, error, now.batch, ctx, now.full)

    def _chosen(self, graph: Graph, model: nn.Module) -> list[Group]:
        """Return the groups that the settings leave.

        Raises:
            ModelError: a pattern matches nothing, or no group is left; the text says of which.
        """
        paths = dict(model.named_modules())
        wanted = matching_names(paths, self.layers, "layers") if self.layers else None
        spared = matching_names(paths, self.exclude, "exclude") if self.exclude else set()
        if not graph.groups:
            raise ModelError(f"nothing of this model can be removed. {graph.main_reason}".rstrip())
        left, said = list(graph.groups), [_counted(graph.groups)]
        settings: tuple[tuple[str, Callable[[Group], bool]], ...] = (
            ("kinds", lambda group: group.kind in self.kinds),
            ("layers", lambda group: wanted is None or not wanted.isdisjoint(group.owners)),
            ("exclude", lambda group: spared.isdisjoint(group.owners)),
        )
        for setting, fits in settings:
            kept = [group for group in left if fits(group)]
            if len(kept) < len(left):
                given = ", ".join(getattr(self, setting))
                said.append(f"`{setting}` ({given}) leaves {_counted(kept)}")
            left = kept
        if not left:
            raise ModelError(
                f"no group is left to prune: of {', '.join(said)}. `overhaul profile --prunable` "
                "lists the groups."
            )
        return left

    def _why_none(self, sizes: list[int]) -> str:
        """Say why no unit goes."""
        if self.fraction is None:
            return "the model meets the target as it is"
        rounding = f", with sizes rounded up to {self.multiple}" if self.multiple != 1 else ""
        return (
            f"no group loses a whole unit: `fraction` is {self.fraction}"
            f"{f' in {self.rounds} rounds' if self.rounds > 1 else ''}, and the largest group has "
            f"{max(sizes)} units{rounding}"
        )

    def _select(self, now: "_Round", scores: dict[str, Scores]) -> Units:
        multiples = (1, 4, 8, 16) if self.multiple == "measured" else (self.multiple,)
        plans: dict[int, Units] = {}
        for multiple in multiples:
            selection = Selection(now.graph, scores, self.scope, multiple, self.most, now.before.of)
            try:
                plans[multiple] = self._meet(now, selection)
            except ModelError:
                if not plans:
                    raise
                break  # what this multiple cannot reach, none of the larger ones can
        if len(plans) == 1:
            return next(iter(plans.values()))
        calls = {str(multiple): now.call_without(units) for multiple, units in plans.items()}
        timed = measure_latency(calls, time_s=0.5)
        best = min(timed, key=lambda name: timed[name].median_ms)
        detail = {name: found.median_ms for name, found in timed.items()}
        now.ctx.log("multiple", int(best), detail=detail, reproducible=False)
        return plans[int(best)]

    def _meet(self, now: "_Round", selection: Selection) -> Units:
        if self.fraction is not None:
            before = 1 - self.fraction * (now.progress - 1 / self.rounds)
            return selection.fraction(self.fraction / self.rounds / before)
        if self.latency_ms is not None:
            return _meet_latency(now, selection, self.latency_ms)

        def kept(units: Units) -> float:
            macs, parameters = now.kept(units)
            return macs if self.macs is not None else parameters

        target = self.macs if self.macs is not None else self.params
        assert target is not None
        goal = 1 - (1 - target) * now.progress
        found = selection.smallest(lambda units: kept(units) <= goal)
        if found is None:
            least = kept(selection.units(selection.steps))
            what = "MACs" if self.macs is not None else "parameters"
            too_much = (
                f"the model keeps at least {least:.3f} of its {what} when all goes that may go, "
                f"and {goal:.3f} was asked for."
            )
            if kept(selection.units(selection.steps, rounded=False)) <= goal:
                raise ModelError(
                    f"{too_much} It is `multiple` ({selection.multiple}) that is in the way, to "
                    "which the sizes that stay are rounded up: make it smaller."
                )
            raise ModelError(
                f"{too_much} Ask for more, raise `most` ({self.most}), or see with `overhaul "
                f"profile --prunable` what is in the way. {now.graph.main_reason}".rstrip()
            )
        return found


@dataclass(frozen=True)
class _Round:
    """What one round works on.

    Attributes:
        model: As it stands before the round.
        graph: Its graph.
        batch: Samples that it is looked at with.
        full: What the model cost before the first round.
        before: How many units the groups had then.
        progress: How much of the way to the target is to be done after it, in (0, 1].
        ctx: What the run provides.
    """

    model: nn.Module
    graph: Graph
    batch: Batch
    full: Cost
    before: "_UnitsBefore"
    progress: float
    ctx: Context

    def kept(self, units: Units) -> tuple[float, float]:
        """Return which fractions of MACs and parameters are left without these units."""
        return Cost.of(self.graph, self.graph.gone(units)).over(self.full)

    def call_without(self, units: Units) -> Callable[[], object]:
        """Return a call of the model without these units, on one sample."""
        smaller = copy.deepcopy(self.model)
        if units:
            smaller = self.graph.remove(units).apply(smaller)
        return forward_call(smaller.eval(), self.batch.map_inputs(lambda tensor: tensor[:1]))


def _meet_latency(now: _Round, selection: Selection, target_ms: float) -> Units:
    (whole,) = measure_latency({"now": now.call_without({})}, time_s=0.3).values()
    goal = whole.median_ms - (whole.median_ms - target_ms) * min(1.0, now.progress)
    table: dict[str, float] = {"1.000": whole.median_ms}

    def fast_enough(units: Units) -> bool:
        (found,) = measure_latency({"smaller": now.call_without(units)}, time_s=0.3).values()
        share, _ = Cost.of(now.graph, now.graph.gone(units)).over(Cost.of(now.graph))
        table[f"{share:.3f}"] = found.median_ms
        return found.median_ms <= goal

    found = {} if whole.median_ms <= goal else selection.smallest(fast_enough)
    now.ctx.log("latency_by_kept_macs", len(table), detail=table, reproducible=False)
    if found is None:
        raise ModelError(
            f"one sample takes {min(table.values()):.3g} ms when all goes that may go, and "
            f"{goal:.3g} ms was asked for. Ask for more, or deploy to a faster engine."
        )
    return found


def _train(train: Train, model: nn.Module, ctx: Context, number: int) -> nn.Module:
    """Train between two rounds, with checkpoints, facts and random numbers of its own."""
    inner = replace(
        ctx,
        seed=derived_seed(ctx.seed, "round", number),
        label=f"{ctx.label}, after round {number}",
        facts=[],
        checkpoints=CheckpointFolder(ctx.checkpoints.path / f"round-{number}"),
    )
    model = train.apply(model, inner)
    ctx.facts += inner.facts
    return model


class _UnitsBefore:
    """How many units each group had before the first round.

    A group is known again by the places that its units have, since its name may be another one when
    a group beside it is gone.
    """

    def __init__(self, graph: Graph) -> None:
        self.tensors = {place.tensor for group in graph.groups for place in group.places}
        self.units = {self._key(group): group.units for group in graph.groups}

    def of(self, group: Group) -> int:
        return self.units.get(self._key(group), group.units)

    def _key(self, group: Group) -> frozenset[tuple[str, int, int]]:
        return frozenset(
            (place.tensor, place.dim, place.positions.shape[1])
            for place in group.places
            if place.tensor in self.tensors
        )


def _say_what_is_left(graph: Graph, ctx: Context) -> None:
    """Say once, and not in each round, which layers are left as they are."""
    said = {(fact.value, fact.reason) for fact in ctx.facts if fact.name == "skipped"}
    for refused in graph.refusals:
        found = (owner_of(refused.tensor), str(refused.reason))
        if found not in said:
            ctx.log("skipped", found[0], reason=found[1])


def _counted(groups: Sequence[Group]) -> str:
    """Return how many groups there are, by their kind."""
    if not groups:
        return "none"
    kinds = Counter(group.kind for group in groups)
    each = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
    return f"{len(groups)} group{'s' * (len(groups) > 1)} ({each})"
