"""`PruneByTrial`: remove units one after the other for as long as the loss does not notice."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    Fact,
    ModelError,
    Outputs,
    Step,
    Targets,
    Task,
    Trait,
    Traits,
    evaluating,
    matching_names,
)
from overhaul.evaluation import model_device
from overhaul.graph import Graph, Group, check_removal
from overhaul.pruning._rise_test import RiseTest
from overhaul.pruning._take_out import Cost, take_out
from overhaul.pruning._unit_norms import squared_norms, unit_size

_Units: TypeAlias = tuple[str, tuple[int, ...]]
"""Units of one group, by its name."""
_Outcome: TypeAlias = Literal["removed", "kept", "undecided", "refused"]


class PruneByTrial(Step):
    r"""Remove units, look whether the loss rises significantly, and put them back if it does.

    Each trial removes the next units (channels, heads, hidden units: whatever goes together through
    the whole model) from a copy and compares the loss of each sample of `val`, with and without
    them. With :math:`L` the mean loss before the step, :math:`\ell_i` that of sample :math:`i`
    before it, :math:`a_i` with all that has been removed so far and :math:`b_i` with this trial's
    units removed too, the units go for good when it is shown that

    .. math:: \overline{b - a} \le \text{tolerance} \cdot L \quad\text{and}\quad
              \overline{b - \ell} \le \text{total\_tolerance} \cdot L

    and stay when one of the two is refuted, or when it is still open after `samples`. The samples
    come in a random order of each trial's own, in batches, and the test stops as soon as it is
    clear: after each batch it may, at the stated confidence, by a bound that holds at any time
    (betting without replacement). It is about the mean over `val`, whatever was removed before.
    At the end the loss is measured on all of `val`; while it is more than `total_tolerance` above
    that of the original, the latest removals are undone. The loss of a sample is the task's loss
    on it alone.

    The step does not train. Put `Train` after it, and both into a recipe more than once for rounds
    of both. The validation split is a *selection set* here: the trials choose by it, so what is
    measured on it afterwards is too good. Only `test`, which stays sealed, says what is lost.

    Args:
        tolerance: Largest rise of the mean loss by one trial, as a fraction of the loss before the
            step. Default 0.002.
        total_tolerance: Largest rise by all removals together, as such a fraction. Default 0.05.
        confidence: Of each trial's test, in (0, 1). Default 0.95.
        clip: Largest change of one sample's loss that a test counts, in multiples of the mean loss;
            smaller values need fewer samples and see less of rare, large changes. The measurement
            at the end does not clip. Default 10.
        units_per_trial: How many units of one group are tried together. Default 1.
        order: `random`, or `smallest` norm first, over the mean of the norms of the group's units.
        samples: Most samples of one trial; None for all of `val`.
        batch_size: Samples between two looks of a test. Default 64.
        trials: Most trials; None tries each unit once.
        total_samples: Stop before a trial once the step has computed the loss of so many samples,
            over all models. It is a count and not a time, so that two runs agree.
        macs: Stop once at most this fraction of the multiply-accumulate operations is left.
        exclude: Patterns of paths of modules that are left as they are.

    Raises:
        ModelError: a pattern matches nothing, nothing can be removed, the loss before the step is
            not a positive number, or the smaller model would not compute what it should.

    Example:
        >>> PruneByTrial(tolerance=0.005, macs=0.5)
        PruneByTrial(tolerance=0.005, macs=0.5)

    Paper: Mittal et al., WACV 2018, and Li et al., CVPR 2022 (random removal is hard to beat);
    Waudby-Smith and Ramdas, JRSS B 2024 (the test).  Differs: the known algorithm removes at
    random, trains, and keeps the removal if a loss, often that of the test set, looks no worse;
    here nothing is trained between, a removal needs evidence and not its absence, and the data of
    the verdict are not touched.
    """

    needs: ClassVar[Traits] = frozenset({Trait.EDITABLE, Trait.FITS_TASK})

    tolerance: float = Field(
        default=0.002, gt=0, description="It is a fraction of the loss before the step."
    )
    total_tolerance: float = Field(
        default=0.05, gt=0, description="It is a fraction of the loss before the step."
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="For 95 % write 0.95.")
    clip: float = Field(
        default=10.0, gt=0, description="It is in multiples of the mean loss before the step."
    )
    units_per_trial: int = Field(
        default=1, ge=1, description="How many units of one group are tried together."
    )
    order: Literal["random", "smallest"] = "random"
    samples: int | None = Field(default=None, ge=1, description="Most samples of one trial.")
    batch_size: int = Field(
        default=64, ge=1, description="Samples between two looks of a trial's test."
    )
    trials: int | None = Field(default=None, ge=1, description="None tries each unit once.")
    total_samples: int | None = Field(
        default=None, ge=1, description="Most samples over all trials."
    )
    macs: float | None = Field(
        default=None, gt=0, lt=1, description="It is the fraction that is left: 0.5 for a half."
    )
    exclude: tuple[str, ...] = ()

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Try, choose, prove the choice on random weights, and make one edit of it."""
        batch = next(ctx.data.train.in_order(2))
        probe = deepcopy(model).cpu()
        graph = Graph(probe, *batch.arguments)
        groups = self._groups(probe, graph, ctx, batch)
        trials = _Trials(self, model, ctx, graph, self._in_order(model, groups, ctx))
        chosen = trials.run_()
        if not chosen:
            ctx.log("removed_units", 0, reason=trials.why_none())
            return model
        error = check_removal(probe, graph, chosen, *batch.arguments)
        return take_out(model, graph, chosen, error, batch, ctx)

    def _groups(self, probe: nn.Module, graph: Graph, ctx: Context, batch: Batch) -> list[Group]:
        """Return the groups that units are taken from: not excluded, and proved to work."""
        modules = dict(probe.named_modules())
        spared = matching_names(modules, self.exclude, "exclude") if self.exclude else set()
        groups = []
        for group in graph.groups:
            if not spared.isdisjoint(group.owners):
                continue
            try:
                check_removal(probe, graph, {group.name: [group.units - 1]}, *batch.arguments)
            except ModelError as error:
                ctx.log("skipped", group.name, reason=str(error))
            else:
                groups.append(group)
        if not groups:
            spare = f", apart from `exclude` ({', '.join(self.exclude)})" if self.exclude else ""
            hint = "`overhaul profile --prunable` lists what could go." if self.exclude else ""
            raise ModelError(
                f"PruneByTrial found nothing that can be removed{spare}. "
                f"{hint or graph.main_reason}".rstrip()
            )
        return groups

    def _in_order(self, model: nn.Module, groups: list[Group], ctx: Context) -> list[_Units]:
        """Return all units in the order of their trials; of each group one unit is not tried."""
        draws = ctx.generator("units")
        found: list[tuple[float, _Units]] = []
        for group in groups:
            if self.order == "random":
                worth = torch.rand(group.units, generator=draws, dtype=torch.float64)
            else:
                worth = _relative_norms(model, group)
            ranked = worth.argsort(stable=True)[: group.units - 1]
            for units in ranked.split(self.units_per_trial):
                found.append((float(worth[units].mean()), (group.name, tuple(units.tolist()))))
        if self.order == "smallest":
            return [units for _, units in sorted(found, key=lambda item: item[0])]
        return [found[i][1] for i in torch.randperm(len(found), generator=draws).tolist()]


@torch.no_grad()
def _relative_norms(model: nn.Module, group: Group) -> Tensor:
    tensors = {name: p.detach() for name, p in model.named_parameters() if p.is_floating_point()}
    if not unit_size(group, tensors):
        return torch.ones(group.units, dtype=torch.float64)
    norms = squared_norms(group, tensors).double().sqrt().cpu()
    return norms / norms.mean().clamp_min(torch.finfo(torch.float64).tiny)


@dataclass
class _State:
    """All that a checkpoint must hold.

    Attributes:
        before: `[N]`, the loss of each sample of `val` before the step.
        now: `[N]`, the same with what is removed so far; NaN where it was not needed yet.
        tried: How many trials there were.
        computed: How many losses were computed.
        removed: What was removed, in order.
        outcomes: How many trials ended how.
    """

    before: Tensor
    now: Tensor
    tried: int = 0
    computed: int = 0
    removed: list[_Units] = field(default_factory=list)
    outcomes: dict[_Outcome, int] = field(
        default_factory=lambda: {"removed": 0, "kept": 0, "undecided": 0, "refused": 0}
    )


class _Trials:
    """The trials of one step."""

    def __init__(
        self,
        plan: PruneByTrial,
        model: nn.Module,
        ctx: Context,
        graph: Graph,
        candidates: list[_Units],
    ) -> None:
        self.plan, self.model, self.ctx, self.graph = plan, model, ctx, graph
        self.candidates = candidates
        self.size = len(ctx.data.val)
        self.full = Cost.of(graph)
        checkpoint = ctx.checkpoints.latest()
        if checkpoint is None:
            before = torch.full((self.size,), torch.nan, dtype=torch.float64)
            self.state = _State(before, before)
            before = self._losses(model, torch.arange(self.size))
            self.state.before, self.state.now = before, before.clone()
        else:
            self.state = _State(**checkpoint["state"])
            self.state.removed = [(name, tuple(units)) for name, units in self.state.removed]
            ctx.facts[:] = [Fact.model_validate(fact) for fact in checkpoint["facts"]]
        self.loss = float(self.state.before.mean())
        if not 0 < self.loss < float("inf"):
            raise ModelError(
                f"the loss on val must be a positive number before PruneByTrial, got {self.loss}: "
                "a rise relative to it would mean nothing."
            )
        self.smaller = self._without(self.state.removed)

    def run_(self) -> dict[str, list[int]]:
        """Make the trials and return what is to be removed, by the names of the groups."""
        state, total = self.state, len(self.candidates)
        with self.ctx.progress.bar(self.ctx.label, total - state.tried) as advance:
            while (end := self._end()) is None:
                outcome = self._try(self.candidates[state.tried])
                state.tried += 1
                state.outcomes[outcome] += 1
                self.ctx.checkpoints.save(state.tried, self._checkpoint())
                advance(f"{state.outcomes['removed']} removed")
        withdrawn = self._withdraw_()
        after = float(state.now.mean())
        self.ctx.log("trials", state.tried, reason=end, detail=dict(state.outcomes))
        if withdrawn:
            self.ctx.log(
                "withdrawn",
                withdrawn,
                reason="on all of val the loss was above `total_tolerance` with them removed",
            )
        self.ctx.log("samples_used", state.computed)
        self.ctx.log("loss_before", self.loss, split="val", n=self.size)
        self.ctx.log(
            "loss_after", after, split="val", n=self.size, detail={"rise": after / self.loss - 1}
        )
        return self._merged(state.removed)

    def why_none(self) -> str:
        """Say why nothing was removed, and what would let something go."""
        found, tried = self.state.outcomes, self.state.tried
        text = (
            f"no removal was shown to be tolerable: of {tried} trial{'s' * (tried != 1)}, in "
            f"{found['kept']} the loss rose too much, {found['undecided']} were open after all "
            f"their samples, {found['refused']} could not be made"
        )
        if found["removed"]:
            text += f", {found['removed']} were undone at the end"
        if found["undecided"] > found["kept"]:
            return f"{text}. More samples of val, or a larger `tolerance`, decide more of them"
        return f"{text}. A larger `tolerance` allows more"

    def _end(self) -> str | None:
        """Return why there is no further trial, or None."""
        plan, state = self.plan, self.state
        if state.tried >= len(self.candidates):
            return "every unit was tried"
        if plan.trials is not None and state.tried >= plan.trials:
            return f"`trials` allows {plan.trials}"
        if plan.total_samples is not None and state.computed >= plan.total_samples:
            return f"`total_samples` allows {plan.total_samples}"
        if plan.macs is not None and self._kept_macs() <= plan.macs:
            return f"at most {plan.macs:g} of the operations were left"
        return None

    def _kept_macs(self) -> float:
        gone = self.graph.gone(self._merged(self.state.removed))
        return Cost.of(self.graph, gone).over(self.full)[0]

    def _try(self, units: _Units) -> _Outcome:
        """Compare the loss with and without these units, sample by sample."""
        plan, state = self.plan, self.state
        try:
            candidate = self._without([*state.removed, units])
        except ModelError:
            return "refused"
        unit_rise, total_rise = (
            RiseTest(
                limit=share * self.loss,
                clip=plan.clip * self.loss,
                size=self.size,
                confidence=plan.confidence,
            )
            for share in (plan.tolerance, plan.total_tolerance)
        )
        order = torch.randperm(self.size, generator=self.ctx.generator("trial", state.tried))
        losses = torch.full_like(state.now, torch.nan)
        for index_B in order[: plan.samples].split(plan.batch_size):
            self._fill_now_(index_B)
            losses[index_B] = self._losses(candidate, index_B)
            verdicts = {
                unit_rise.update(losses[index_B] - state.now[index_B]),
                total_rise.update(losses[index_B] - state.before[index_B]),
            }
            if "above" in verdicts:
                return "kept"
            if verdicts == {"below"}:
                state.removed.append(units)
                state.now, self.smaller = losses, candidate
                return "removed"
        return "undecided"

    def _withdraw_(self) -> int:
        """Undo the latest removals until the total rise is tolerated; return how many trials."""
        state, limit = self.state, (1 + self.plan.total_tolerance) * self.loss
        removed = len(state.removed)
        self._fill_now_(torch.arange(self.size))
        while state.removed and not float(state.now.mean()) <= limit:
            state.removed.pop()
            self.smaller = self._without(state.removed)
            state.now = torch.full_like(state.now, torch.nan) if state.removed else state.before
            self._fill_now_(torch.arange(self.size))
        return removed - len(state.removed)

    def _fill_now_(self, index_B: Tensor) -> None:
        missing = index_B[self.state.now[index_B].isnan()]
        if len(missing):
            self.state.now[missing] = self._losses(self.smaller, missing)

    def _losses(self, model: nn.Module, index_N: Tensor) -> Tensor:
        """Return the loss of each of these samples of val, `[N]`."""
        batches = self.ctx.data.val.batches(list(index_N.split(self.plan.batch_size)))
        device = model_device(model)
        with evaluating(model):
            losses = [_sample_losses(self.ctx.task, model, batch.to(device)) for batch in batches]
        self.state.computed += len(index_N)
        return torch.cat(losses)

    def _without(self, removed: list[_Units]) -> nn.Module:
        """Return the model without these units, whose places are taken out of a copy."""
        if not removed:
            return self.model
        return self.graph.remove(self._merged(removed)).apply(deepcopy(self.model))

    def _merged(self, removed: list[_Units]) -> dict[str, list[int]]:
        merged: dict[str, list[int]] = {}
        for name, units in removed:
            merged.setdefault(name, []).extend(units)
        return {name: sorted(units) for name, units in merged.items()}

    def _checkpoint(self) -> dict[str, Any]:
        facts = [fact.model_dump(mode="json") for fact in self.ctx.facts]
        return {"state": vars(self.state), "facts": facts}


def _sample_losses(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of each sample of a batch on its own, `[B]`, NaN as infinite."""
    outputs = batch.forward(model)
    losses = [task.loss(_sample(outputs, i), _sample(batch.targets, i)) for i in range(len(batch))]
    return torch.stack(losses).double().cpu().nan_to_num(nan=torch.inf, posinf=torch.inf)


def _sample(values: Outputs | Targets, index: int) -> Tensor | dict[str, Tensor]:
    if isinstance(values, Tensor):
        return values[index : index + 1]
    return {name: part[index : index + 1] for name, part in values.items()}
