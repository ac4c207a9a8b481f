"""`Comparison`: whether one model is not worse than another by more than was allowed."""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from overhaul.core import Task
from overhaul.evaluation._goal import Goal
from overhaul.evaluation._metric_scale import is_in_points
from overhaul.evaluation._paired_difference import paired_difference
from overhaul.evaluation._predictions import Predictions

Status: TypeAlias = Literal["proved", "not proved", "refuted"]
"""What the data say about "not worse by more than `max_drop`"."""
Effect: TypeAlias = Literal["gain shown", "no gain shown", "harm shown"]
"""What the data say about "better than the reference"."""


class Comparison(BaseModel):
    """One model against another on the same test samples.

    Attributes:
        metric: The task's selection metric.
        higher_is_better: Which way is better.
        subject: What was judged: `final`.
        reference: What it was compared with: `original`, `control`.
        value: The metric of the subject.
        reference_value: The metric of the reference.
        difference: The first less the second.
        interval: 95 % interval of the difference; None where the data gives none.
        method: How the interval was found, or why there is none.
        mcnemar_p: Exact p-value, where each sample is right or wrong.
        n: Test samples.
        max_drop: How much worse was allowed.
        status: `proved`: the whole interval is within what was allowed. `refuted`: the whole
            interval is beyond it. `not proved`: neither, or there is no interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    higher_is_better: bool
    subject: str
    reference: str
    value: float
    reference_value: float
    difference: float
    interval: tuple[float, float] | None
    method: str
    mcnemar_p: float | None
    n: int
    max_drop: float
    status: Status

    @property
    def effect(self) -> Effect:
        """Whether the subject is shown to be better, or worse, than the reference at all.

        It is read off the interval, as the status is, whichever the metric. The exact McNemar
        p-value beside it is of another test: at the edge the two can disagree at 5 %.
        """
        if self.interval is None:
            return "no gain shown"
        lower, upper = self.interval
        worst, best = (lower, upper) if self.higher_is_better else (-upper, -lower)
        if worst > 0:
            return "gain shown"
        return "harm shown" if best < 0 else "no gain shown"

    def describe(self) -> str:
        """Return the status and what it rests on, as one sentence."""
        return (
            f"not worse than the {self.reference} by more than {self._size(self.max_drop)}: "
            f"{self.status} ({self.evidence()})"
        )

    def evidence(self) -> str:
        """Return both values, their difference with its interval, the p-value and `n`."""
        parts = [
            f"{self.metric} {self._plain(self.value)} against {self._plain(self.reference_value)}",
            f"difference {self._signed(self.difference)}{self._points()}",
        ]
        if self.interval is None:
            parts.append(self.method)
        else:
            lower, upper = self.interval
            parts.append(f"95 % interval {self._signed(lower)} to {self._signed(upper)}")
        if self.mcnemar_p is not None:
            p = "< 0.001" if self.mcnemar_p < 0.001 else f"= {self.mcnemar_p:.2g}"
            words = f"exact McNemar p {p}"
            if (self.mcnemar_p < 0.05) != (self.effect != "no gain shown"):
                words += " (another method than the interval's; the words follow the interval)"
            parts.append(words)
        return ", ".join([*parts, f"n = {self.n}"])

    def _points(self) -> str:
        return " points" if self._in_points() else ""

    def _in_points(self) -> bool:
        return is_in_points(self.metric)

    def _plain(self, value: float) -> str:
        return f"{value:.4f}" if self._in_points() else f"{value:.4g}"

    def _signed(self, value: float) -> str:
        return f"{100 * value:+.2f}" if self._in_points() else f"{value:+.4g}"

    def _size(self, value: float) -> str:
        if not self._in_points():
            return f"{value:g}"
        return "1 point" if round(100 * value, 9) == 1 else f"{100 * value:g} points"


def compare(
    task: Task,
    predictions: Predictions,
    reference_predictions: Predictions,
    *,
    goal: Goal,
    subject: str = "final",
    reference: str = "original",
    seed: int = 0,
) -> Comparison:
    """Judge whether a model is not worse than another by more than `goal.max_drop`.

    A non-inferiority test by the 95 % interval of `paired_difference`: on the side that matters
    it errs in one case of forty.

    Args:
        task: Gives the metric and which way is better.
        predictions: Of the model to be judged.
        reference_predictions: Of the other, on the same samples.
        goal: How much worse is allowed.
        subject: What to call the first. Default `final`.
        reference: What to call the second. Default `original`.
        seed: Of the bootstrap.

    Raises:
        DataError: the two are not on the same samples, or the metric is not a finite number.

    Paper: Piaggio et al., Reporting of noninferiority and equivalence randomized trials, JAMA
    308, 2012.
    """
    found = paired_difference(task, predictions, reference_predictions, seed=seed)
    return Comparison(
        metric=task.selection_metric,
        higher_is_better=task.higher_is_better,
        subject=subject,
        reference=reference,
        value=found.value,
        reference_value=found.reference_value,
        difference=found.difference,
        interval=found.interval,
        method=found.method,
        mcnemar_p=found.mcnemar_p,
        n=found.n,
        max_drop=goal.max_drop,
        status=_status(found.interval, goal.max_drop, task.higher_is_better),
    )


def _status(
    interval: tuple[float, float] | None, max_drop: float, higher_is_better: bool
) -> Status:
    if interval is None:
        return "not proved"
    lower, upper = interval
    least, most = (-upper, -lower) if higher_is_better else (lower, upper)
    if most <= max_drop:
        return "proved"
    return "refuted" if least > max_drop else "not proved"
