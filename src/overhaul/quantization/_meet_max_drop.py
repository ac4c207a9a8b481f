"""`meet_max_drop`: layers go back to finer types until the quality is as it has to be."""

from dataclasses import dataclass

from torch import nn

from overhaul.quantization._plan import LayerType, LayerTypes, Plan
from overhaul.quantization._trials import Trials, Unit


@dataclass(frozen=True)
class _Move:
    """A layer that gets a finer type."""

    unit: Unit
    old: LayerType
    new: LayerType
    rise: float


@dataclass(frozen=True)
class _Found:
    moves: int
    model: nn.Module
    after: float
    drop: float


def meet_max_drop(
    trials: Trials,
    types: LayerTypes,
    made: nn.Module,
    before: float,
    max_drop: float,
) -> tuple[Plan, nn.Module]:
    """Return a plan and its model whose drop on val is allowed, or the best that was found.

    Layers fall back in the order of their sensitivity, from `int4` to `int8` before any from there
    to real numbers. How many is found by doubling and halving; each model is measured, and that
    with the fewest layers back is kept whose drop is allowed, or else the one with the least drop.
    At least one layer stays in integers.

    Args:
        trials: Measures.
        types: Of the layers that have one of their own.
        made: The model with these types, repaired.
        before: The quality of the model in real numbers.
        max_drop: By how much it may drop, in the unit of the selection metric.
    """
    judge, ctx = trials.judge, trials.ctx
    like = (trials.plan(types), made)

    def tried(count: int, moves: list[_Move]) -> _Found:
        model = trials.build(_after(types, moves[:count]), like) if count else made
        after = judge.quality(model)
        return _Found(count, model, after, judge.drop(before, after))

    moves: list[_Move] = []
    best = tried(0, moves)
    if not best.drop <= max_drop:
        moves = _moves(trials, types)
        failed, last = 0, len(moves) - 1
        enough: int | None = None
        while failed < last if enough is None else enough - failed > 1:
            count = min(max(1, 2 * failed), last) if enough is None else (failed + enough) // 2
            found = tried(count, moves)
            if found.drop <= max_drop:
                best, enough = found, count
            else:
                failed = count
                if enough is None and found.drop < best.drop:
                    best = found
    for move in moves[: best.moves]:
        ctx.log(
            "fell_back",
            ", ".join(move.unit),
            reason=f"the quality dropped by more than {max_drop:g} with it in {move.old}",
            detail={"from": move.old, "to": move.new, "loss_rise": move.rise},
        )
    met = best.drop <= max_drop
    most, n = judge.drop_at_most(best.model, trials.model), len(judge.val)
    reason = None
    if not met:
        reason = (
            f"`max_drop` of {max_drop:g} cannot be met with a layer in integers; this is the best "
            "that was found"
        )
    elif most is None or most > max_drop:
        reach = "has no end" if most is None else f"ends at {most:.2g}"
        reason = (
            f"met on the {n} samples of val, and not proved: the 95 % interval of the drop "
            f"{reach}. More samples in val would tell."
        )
    ctx.log(
        "max_drop_met",
        met,
        split="val",
        n=n,
        reason=reason,
        detail={
            "metric": judge.metric,
            "before": before,
            "after": best.after,
            "drop": best.drop,
            "drop_at_most": most,
            "max_drop": max_drop,
        },
    )
    return trials.plan(_after(types, moves[: best.moves])), best.model


def _after(types: LayerTypes, moves: list[_Move]) -> dict[str, LayerType]:
    return {**types, **{path: move.new for move in moves for path in move.unit}}


def _moves(trials: Trials, types: LayerTypes) -> list[_Move]:
    """Return all moves in their order, the most sensitive layers first."""
    finer: list[_Move] = []
    to_float: list[_Move] = []
    usual = trials.usual_types
    for unit in trials.units:
        old = types.get(unit[0], usual[unit[0]])
        if old == "int4":
            finer.append(_Move(unit, old, "int8", trials.rise(unit, old)[0]))
            old = "int8"
        if old != "float32":
            to_float.append(_Move(unit, old, "float32", trials.rise(unit, old)[0]))
    return [
        move for stage in (finer, to_float) for move in sorted(stage, key=lambda move: -move.rise)
    ]
