"""`RemoveRedundant`: what a network computes the same without, is taken out."""

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeAlias

from pydantic import Field
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    Edit,
    ModelError,
    Step,
    evaluating,
    matching_names,
    owner_of,
)
from overhaul.evaluation import count_parameters, model_device
from overhaul.graph import (
    FoldNorm,
    Graph,
    RemoveUnits,
    check_removal,
    foldable_norms,
    relative_difference,
    watch_layers,
)
from overhaul.pruning._give_bias import GiveBias
from overhaul.pruning._redundant_units import GroupPlan, computed_together, redundant_units
from overhaul.pruning._take_out import align_config


class RemoveRedundant(Step):
    r"""Take out what the outputs do not depend on: the smaller network computes the same.

    - A *dead* unit is read by nobody (all weights that read it are zero), or is zero for any input.
      Of recurrent units and attention heads only those that nobody reads are found, and nothing
      else of this list; a recurrent unit is one of all layers and directions, which go together.
    - A *constant* unit has no weights of its own: its value :math:`c` goes into the bias of the
      layers that read it, :math:`b \leftarrow b + W_{:j}\,c`. Not where a convolution puts zeros
      around it, since it is not constant there.
    - A *duplicate* unit has the weights of another one, :math:`w_j = w_i`; a *proportional* one a
      multiple, :math:`w_j = a\,w_i`, and only operations with :math:`f(a x) = a f(x)` follow (for
      :math:`a > 0`: ReLU, max pooling). The other one does its work,
      :math:`W_{:i} \leftarrow W_{:i} + a\,W_{:j}`.
    - A *BatchNorm* that alone gets the output of a linear or convolutional layer goes into it.

    They are looked for again until there is none, since one makes another. Each removal is proved
    twice before it is kept: its structure by `check_removal`, on random weights, and its outputs on
    the model itself and training inputs, in double precision where the model can be run so. What
    fails is left as it was, and a fact says so.

    Folded norms are gone from later training, so put the step after it, or leave them with
    `fold_norms=False`.

    Args:
        fold_norms: Whether BatchNorms are folded. Default True.
        exclude: Patterns of module paths that are left as they are.
        tolerance: Largest difference of the outputs, relative to the largest output. Default 1e-5:
            a folded weight is rounded to the model's own precision.
        samples: How many training inputs the outputs are compared on. Default 32.

    Raises:
        ModelError: a pattern matches nothing.

    Example:
        >>> RemoveRedundant()
        RemoveRedundant()

    Paper: Serra, Kumar and Ramalingam, CPAIOR 2020 (lossless compression); Srinivas and Babu, BMVC
    2015 (merging of equal units).  Differs: a unit is known by its weights for any input and not by
    bounds over a range of inputs, and a unit that depends on several others stays.
    """

    fold_norms: bool = True
    exclude: tuple[str, ...] = ()
    tolerance: float = Field(
        default=1e-5, gt=0, lt=1, description="It is the difference relative to the largest output."
    )
    samples: int = Field(
        default=32, ge=1, description="How many inputs the outputs are compared on."
    )

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Fold, then remove until nothing is found."""
        paths = [path for path, _ in model.named_modules()]
        spared = matching_names(paths, self.exclude, "exclude") if self.exclude else set()
        before = count_parameters(model)
        judge = _Judge(model, next(ctx.data.train.in_order(self.samples)), self.tolerance)
        counts: Counter[str] = Counter()
        if self.fold_norms:
            model = _fold(model, ctx, judge, spared, counts)
        model = _remove(model, ctx, judge, spared, counts)
        model = align_config(model, judge.batch, ctx)
        for kind in ("dead", "constant", "duplicate", "proportional"):
            ctx.log(f"{kind}_units", counts[kind])
        ctx.log("folded_norms", counts["norm"])
        after = count_parameters(model)
        ctx.log(
            "removed_parameters",
            before - after,
            reason=None if counts.total() else _NOTHING,
            detail={"before": before, "after": after},
        )
        detail = {"tolerance": self.tolerance, "type": judge.type_name}
        n = len(judge.batch)
        ctx.log("output_error", judge.difference(model), split="train", n=n, detail=detail)
        return model


_NOTHING = (
    "no unit is dead, constant, or equal or proportional to another, and no BatchNorm folds; zero "
    "weights alone, as PruneWeights leaves them, make no unit dead"
)

_Apply: TypeAlias = Callable[[nn.Module, Edit], nn.Module]


class _Judge:
    """Compares the outputs of a changed model with those of the model before all changes."""

    def __init__(self, model: nn.Module, batch: Batch, tolerance: float) -> None:
        self.batch = batch.to(model_device(model))
        self.tolerance = tolerance
        self.double = True
        try:
            self.expected = self.outputs(model)
        except (RuntimeError, TypeError):  # it makes tensors of a type of its own on the way
            self.double = False
            self.expected = self.outputs(model)

    @property
    def type_name(self) -> str:
        return "float64" if self.double else "as it is"

    def exact(self, model: nn.Module) -> nn.Module:
        """Return a copy in the precision that is judged in."""
        copy = deepcopy(model)
        return copy.double() if self.double else copy

    def run(self, model: nn.Module) -> Any:
        batch = self.batch.map_inputs(_double) if self.double else self.batch
        inputs, named_inputs = batch.arguments
        return model(*inputs, **named_inputs)

    def outputs(self, model: nn.Module) -> Any:
        exact = self.exact(model)
        with evaluating(exact):
            return self.run(exact)

    def difference(self, model: nn.Module) -> float:
        """Return the largest difference, relative to the largest output."""
        return relative_difference(self.expected, self.outputs(model))

    def objection(self, model: nn.Module) -> str | None:
        """Return why a changed model cannot be kept, or None."""
        difference = self.difference(model)
        if difference <= self.tolerance:
            return None
        return f"the outputs would differ by {difference:.2g} of the largest"


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _applied(model: nn.Module, edit: Edit) -> nn.Module:
    return edit.apply(model)


def _kept(
    changes: Sequence[Any], objection: Callable[[list[Any]], str | None], ctx: Context
) -> list[Any]:
    """Return the changes that can be kept together; those that cannot become facts.

    Most of the time all can, so they are tried together first, and by halves only if one fails.
    """
    kept: list[Any] = []
    queue = [list(changes)] if changes else []
    while queue:
        part = queue.pop(0)
        reason = objection([*kept, *part])
        if reason is None:
            kept += part
        elif len(part) == 1:
            ctx.log("skipped", _name_of(part[0]), reason=f"{reason}, so it was left as it was")
        else:
            queue[:0] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return kept


def _name_of(change: Any) -> str:
    return change.norm if isinstance(change, FoldNorm) else change.group.name


def _fold(
    model: nn.Module, ctx: Context, judge: _Judge, spared: set[str], counts: Counter[str]
) -> nn.Module:
    norms = [
        edit
        for edit in foldable_norms(judge.exact(model), judge.run)
        if spared.isdisjoint((edit.layer, edit.norm))
    ]

    def objection(edits: list[FoldNorm]) -> str | None:
        trial = deepcopy(model)
        for edit in edits:
            trial = edit.apply(trial)
        return _judged(judge, trial)

    for edit in _kept(norms, objection, ctx):
        model = ctx.edit(model, edit)
        counts["norm"] += 1
    return model


def _judged(judge: _Judge, trial: nn.Module) -> str | None:
    try:
        return judge.objection(trial)
    except Exception as error:  # the user's own code, which may want what is not there any more
        return f"the model would not run ({type(error).__name__}: {error})"


def _remove(
    model: nn.Module, ctx: Context, judge: _Judge, spared: set[str], counts: Counter[str]
) -> nn.Module:
    refused: set[str] = set()
    given = judge.batch.arguments
    while True:
        try:
            graph = Graph(model, *given)
        except ModelError as error:
            ctx.log("skipped", "units", reason=str(error))
            return model
        flow, together = watch_layers(judge.exact(model), judge.run), computed_together(graph)
        plans = []
        for group in graph.groups:
            if group.name not in refused and spared.isdisjoint(group.owners):
                plan = redundant_units(model, group, flow, together)
                plans += [plan] if plan.found else []

        def objection(
            chosen: list[GroupPlan], graph: Graph = graph, model: nn.Module = model
        ) -> str | None:
            try:
                units = {plan.group.name: plan.units for plan in chosen}
                check_removal(model, graph, units, *given)
                trial = _without(deepcopy(model), graph, chosen, _applied)
                disturbed = deepcopy(model)
                for plan in chosen:
                    plan.disturb_(disturbed)
            except (ModelError, RuntimeError) as error:
                return f"the removal has no proof ({error})"
            if any(plan.makers for plan in chosen) and _judged(judge, disturbed) is not None:
                return "something else than the weights of the next layers reads its units"
            return _judged(judge, trial)

        kept: list[GroupPlan] = _kept(plans, objection, ctx)
        refused |= {plan.group.name for plan in plans} - {plan.group.name for plan in kept}
        if not kept:
            _say_what_is_fixed(graph, ctx)
            return model
        model = _without(model, graph, kept, ctx.edit)
        counts.update(each.kind for plan in kept for each in plan.found)


def _say_what_is_fixed(graph: Graph, ctx: Context) -> None:
    """Say of which layers no unit could go, whatever its weights are."""
    for refused in graph.refusals:
        ctx.log("skipped", owner_of(refused.tensor), reason=str(refused.reason))


def _without(model: nn.Module, graph: Graph, plans: Sequence[GroupPlan], edit: _Apply) -> nn.Module:
    """Let other weights take over from the units, and remove them."""
    no_bias = sorted({path for plan in plans for path in plan.no_bias})
    for path in no_bias:
        model = edit(model, GiveBias(layer=path))
    for plan in plans:
        plan.rewrite_(model)
    removal = graph.remove({plan.group.name: plan.units for plan in plans})
    return edit(model, _with_new_biases(removal, no_bias))


def _with_new_biases(removal: RemoveUnits, no_bias: Sequence[str]) -> RemoveUnits:
    """Take from the biases that the graph did not see the outputs that their layers lose."""
    removed = dict(removal.removed)
    for path in no_bias:
        prefix = f"{path}." if path else ""
        outputs = removed.get(f"{prefix}weight", {}).get(0)
        if outputs is not None:
            removed[f"{prefix}bias"] = {0: outputs}
    return removal.model_copy(update={"removed": removed})
