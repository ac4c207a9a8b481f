"""Settings of an objective that are `auto`: chosen on `val`, by short trainings of copies."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace

from torch import nn
from torch.distributed import is_available, is_initialized

from overhaul.core import Context, NonFiniteLossError, Step, derived_seed
from overhaul.training._objective import Objective, OpenSetting

_SHARE = 10
_NOT_FINITE = "the loss of its training became infinite or no number"


def epochs_of_trial(epochs: int) -> int:
    """Return how long each trial is: a tenth of the training, in whole epochs.

    Example:
        >>> epochs_of_trial(3), epochs_of_trial(25)
        (1, 3)
    """
    return math.ceil(epochs / _SHARE)


def epochs_of_trials(objective: Objective, epochs: int) -> int:
    """Return how many epochs all trials before a training of so many epochs take together."""
    settings = objective.open_settings
    # What one setting starts with was tried when the one before it was chosen.
    trials = 1 + sum(len(setting.values) - 1 for setting in settings) if settings else 0
    return trials * epochs_of_trial(epochs)


def choose_settings(
    objective: Objective,
    trial: Callable[[Objective], Step],
    epochs: int,
    model: nn.Module,
    ctx: Context,
) -> Objective:
    """Return the objective with every open setting chosen on `val`.

    One setting after the other: each of its values is tried, with what was chosen of those before
    it and the start of those after it, by a short training of a copy of the model. All trials have
    one seed, so that they see the same batches and augmentations. The value that is best on `val`
    at the end of its trial is taken, of equals the first. One whose loss does not stay finite is
    worse than all others.

    Args:
        objective: Any; one without open settings is returned as it is.
        trial: Makes the short training of an objective, which is to log `val_<metric>`.
        epochs: Of each of these.
        model: What will be trained. It is not changed.
        ctx: For facts, and for checkpoints of an interrupted trial.
    """
    settings = objective.open_settings
    if not settings:
        return objective
    trials = _Trials(objective, trial, epochs, model, ctx)
    values = {setting.name: setting.start for setting in settings}
    for setting in settings:
        found = {
            value: trials.quality(setting.name, {**values, setting.name: value})
            for value in setting.values
        }
        best = _best(found, higher_is_better=ctx.task.higher_is_better)
        values[setting.name] = best
        _log_choice(setting, best, found, epochs, ctx)
    return objective.settled(values)


class _Trials:
    """Short trainings from one state, each made once, and never again after an interruption."""

    def __init__(
        self,
        objective: Objective,
        trial: Callable[[Objective], Step],
        epochs: int,
        model: nn.Module,
        ctx: Context,
    ) -> None:
        self.objective, self.trial, self.epochs = objective, trial, epochs
        self.model, self.ctx = model, ctx
        self.checkpoints = ctx.checkpoints.part("trials")
        saved = self.checkpoints.latest()
        self.saved: dict[str, float] = saved["quality"] if saved else {}
        self.found: dict[str, float] = {}

    def quality(self, setting: str, values: Mapping[str, float]) -> float:
        """Return the quality on `val` at the end of a training with these values, or NaN."""
        key = repr(dict(values))
        if key not in self.found:
            if key not in self.saved:
                self.saved[key] = self._train(setting, values)
                self.checkpoints.save(len(self.saved), {"quality": self.saved})
            self.found[key] = self.saved[key]
            ctx = self.ctx
            detail = {"metric": ctx.task.selection_metric, "epochs": self.epochs, **values}
            n = len(ctx.data.val)
            if math.isnan(self.found[key]):
                ctx.log("trial_quality", None, reason=_NOT_FINITE, detail=detail)
            else:
                ctx.log("trial_quality", self.found[key], split="val", n=n, detail=detail)
        return self.found[key]

    def _train(self, setting: str, values: Mapping[str, float]) -> float:
        ctx, number = self.ctx, len(self.saved) + 1
        inner = replace(
            ctx,
            seed=derived_seed(ctx.seed, "trial"),
            label=f"{ctx.label}, trial {number} ({setting} {values[setting]:g})",
            edits=list(ctx.edits),
            carried=list(ctx.carried),
            facts=[],
            checkpoints=self.checkpoints.part(f"trial-{number}"),
        )
        try:
            with inner.seeded("apply"):
                self.trial(self.objective.settled(values)).apply(deepcopy(self.model), inner)
        except NonFiniteLossError as error:
            if is_available() and is_initialized():
                raise  # of several processes, one would go on before the others
            ctx.progress.say(f"{inner.label}: {error}")
            return math.nan
        measured = f"val_{ctx.task.selection_metric}"
        *_, last = (fact.value for fact in inner.facts if fact.name == measured)
        assert isinstance(last, float)
        return last


def _best(found: Mapping[float, float], *, higher_is_better: bool) -> float:
    sign = 1 if higher_is_better else -1
    return max(
        found, key=lambda value: -math.inf if math.isnan(found[value]) else sign * found[value]
    )


def _log_choice(
    setting: OpenSetting, best: float, found: Mapping[float, float], epochs: int, ctx: Context
) -> None:
    trials = f"trials of {epochs} epoch{'s' * (epochs > 1)} each"
    others = ", ".join(
        f"{'not finite' if math.isnan(quality) else format(quality, '.4f')} with {value:g}"
        for value, quality in found.items()
    )
    meaning = f"{setting.meaning[best]}; " if best in setting.meaning else ""
    ctx.log(
        "setting_chosen",
        best,
        reason=f"{meaning}{ctx.task.selection_metric} on val after {trials}: {others}",
        detail={"setting": setting.name},
    )
    ctx.progress.say(f"{ctx.label}: {setting.name} {best:g} is best on val ({others})")
