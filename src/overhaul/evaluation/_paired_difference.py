"""`paired_difference`: how much better one model is than another on the same samples."""

from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overhaul.core import DataError, Task
from overhaul.evaluation._mcnemar import mcnemar_p
from overhaul.evaluation._predictions import Predictions
from overhaul.evaluation._tango import tango_interval

_RESAMPLES, _FEWEST_RESAMPLES = 2000, 400
_DRAWS = 200_000_000
_RECOMPUTED, _FEWEST_RECOMPUTED = 400, 100
_RECOMPUTED_SAMPLES = 20_000_000
_CHUNK = 2_000_000
_ROUNDING = 1e-5


@dataclass(frozen=True)
class PairedDifference:
    """The difference of the selection metric between two sets of predictions.

    Attributes:
        value: The metric of the first.
        reference_value: The metric of the second.
        difference: The first less the second.
        interval: 95 % interval of the difference; None where the data does not give one.
        method: How the interval was found, or why there is none.
        mcnemar_p: Exact p-value; for scores that are right or wrong only.
        n: How many samples.
    """

    value: float
    reference_value: float
    difference: float
    interval: tuple[float, float] | None
    method: str
    mcnemar_p: float | None
    n: int


def paired_difference(
    task: Task, predictions: Predictions, reference: Predictions, *, seed: int = 0
) -> PairedDifference:
    """Compare two sets of predictions on the same samples by the task's selection metric.

    The interval is a percentile interval of the paired bootstrap: both models are judged on the
    same resampled samples. On its own it is too narrow where the models rarely differ, and of width
    0 where they never do. So it is set against a second one and the wider is taken: Tango's score
    interval where each sample is right or wrong (or where scores between 0 and 1 do not differ on
    any sample), Student's t where its score is any number.

    A metric that is not a mean over samples (F1, AUROC, R2) is computed again on each resample:
    400 of them, fewer (never under 100) beyond 50,000 samples, which keeps it to some ten seconds.
    There the bootstrap stands alone. Where a width is 0 although the outputs differ by more than
    rounding, it says nothing and there is no interval. For means there are 2000 resamples, fewer
    (never under 400) beyond 100,000 samples.

    Args:
        task: Gives the metric.
        predictions: Of the model in question.
        reference: Of what it is compared with, on the same samples in the same order.
        seed: Of the resampling. Swapping the two sets mirrors the interval.

    Raises:
        DataError: the two are not on the same samples, or the metric is not a finite number.

    Paper: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    _check_same_samples(predictions, reference)
    rng = np.random.default_rng(seed)
    scores, other = _scores(task, predictions), _scores(task, reference)
    if scores is None or other is None:
        return _recomputed(task, predictions, reference, rng)
    n, p = len(scores), None
    value, reference_value = float(scores.mean()), float(other.mean())
    _check_finite(task, value, reference_value)
    both, gains = np.concatenate([scores, other]), scores - other
    candidates = {}
    difference = float(gains.mean())
    # Errors have no upper bound even where all that were seen are 0 or 1.
    bounded = task.higher_is_better and bool(((both >= 0) & (both <= 1)).all())
    right_or_wrong = bounded and bool(((both == 0) | (both == 1)).all())
    if right_or_wrong or (bounded and not gains.any()):
        first, second = int((gains > 0).sum()), int((gains < 0).sum())
        candidates["Tango score interval"] = tango_interval(first, second, n)
        p = mcnemar_p(first, second) if right_or_wrong else None
    elif n > 1:
        candidates["Student's t"] = _t_interval(gains)
    if n > 1:
        candidates["paired bootstrap"] = _quantiles(_resampled_means(gains, rng), difference)
    interval, method = _widest(candidates, predictions, reference)
    return PairedDifference(value, reference_value, difference, interval, method, p, n)


def _recomputed(
    task: Task, predictions: Predictions, reference: Predictions, rng: np.random.Generator
) -> PairedDifference:
    name, n = task.selection_metric, len(predictions)

    def metric(of: Predictions) -> float:
        return task.metrics(of.outputs, of.targets)[name]

    value, reference_value = metric(predictions), metric(reference)
    _check_finite(task, value, reference_value)
    resamples = max(_FEWEST_RECOMPUTED, min(_RECOMPUTED, _RECOMPUTED_SAMPLES // n))
    found = []
    for _ in range(resamples if n > 1 else 0):
        indices = torch.from_numpy(rng.integers(0, n, n))
        found.append(metric(predictions.take(indices)) - metric(reference.take(indices)))
    # A resample may lack a class, for which AUROC is not defined.
    differences = np.array([d for d in found if isfinite(d)])
    candidates = {}
    if len(differences) >= _FEWEST_RECOMPUTED // 2:
        candidates["paired bootstrap"] = _quantiles(differences, value - reference_value)
    interval, method = _widest(candidates, predictions, reference)
    return PairedDifference(
        value, reference_value, value - reference_value, interval, method, None, n
    )


def _scores(task: Task, predictions: Predictions) -> NDArray[np.float64] | None:
    scores = task.sample_scores(predictions.outputs, predictions.targets)
    return None if scores is None else scores.detach().double().numpy()


def _resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    n = len(values)
    resamples = max(_FEWEST_RESAMPLES, min(_RESAMPLES, _DRAWS // n))
    rows = max(1, _CHUNK // n)
    means = [
        values[rng.integers(0, n, (min(rows, resamples - done), n), dtype=np.int32)].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    return np.concatenate(means)


def _quantiles(differences: NDArray[np.float64], point: float) -> tuple[float, float]:
    lower, upper = np.quantile(differences, [0.025, 0.975])
    # A skewed statistic may leave the point itself outside.
    return min(float(lower), point), max(float(upper), point)


def _t_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    from scipy.stats import t

    n, mean = len(values), float(values.mean())
    half = float(t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / n**0.5
    return mean - half, mean + half


def _widest(
    candidates: dict[str, tuple[float, float]], predictions: Predictions, reference: Predictions
) -> tuple[tuple[float, float] | None, str]:
    if not candidates:
        return None, "no interval: too few samples"
    method = max(candidates, key=lambda name: candidates[name][1] - candidates[name][0])
    lower, upper = candidates[method]
    if lower < upper:
        return (lower, upper), method
    if _equal(predictions.outputs, reference.outputs, tolerance=_ROUNDING):
        return (lower, upper), "the outputs are the same but for rounding"
    return None, "no interval: the outputs differ, but on no sample in a way that the metric shows"


def _check_same_samples(predictions: Predictions, reference: Predictions) -> None:
    if len(predictions) != len(reference):
        raise DataError(
            "two models must be compared on the same samples, got "
            f"{len(predictions)} and {len(reference)}. Predict both on one split."
        )
    if not _equal(predictions.targets, reference.targets):
        raise DataError(
            "two models must be compared on the same samples, but their targets differ. "
            "Predict both on one split, in order."
        )


def _equal(
    left: Tensor | dict[str, Tensor], right: Tensor | dict[str, Tensor], tolerance: float = 0.0
) -> bool:
    if isinstance(left, dict) or isinstance(right, dict):
        if not (isinstance(left, dict) and isinstance(right, dict)):
            return False
        return left.keys() == right.keys() and all(
            _equal(left[name], right[name], tolerance) for name in left
        )
    if left.shape != right.shape:
        return False
    if not left.is_floating_point():
        return torch.equal(left, right)
    scale = float(torch.nan_to_num(right, posinf=0, neginf=0).abs().max()) if len(right) else 0.0
    return torch.allclose(left, right, rtol=0, atol=tolerance * scale, equal_nan=True)


def _check_finite(task: Task, *values: float) -> None:
    for value in values:
        if not isfinite(value):
            raise DataError(
                f"the metric '{task.selection_metric}' must be a finite number to be compared, got "
                f"{value}. Choose a metric that is defined on this split."
            )
