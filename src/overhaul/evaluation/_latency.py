"""`measure_latency`: how long calls take, all candidates interleaved in one run."""

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from overhaul.core import Fact

_ENOUGH_FOR_AN_INTERVAL = 6
_QUARTERS, _STRETCHES = 4, 20
_SHORT_S = 0.02


class Latency(BaseModel):
    """How long one call takes.

    Attributes:
        median_ms: The median.
        p95_ms: What 95 % of the calls stay below.
        interval_ms: 95 % interval of the median.
        ratio: The median of this call's time over that of `reference` in the same round.
        ratio_interval: 95 % interval of it.
        reference: The candidate that `ratio` refers to.
        n: How many calls were timed.
        threads: How many threads torch was given.
        noisy: Whether the machine was too noisy for the figures to be relied on.
        reason: What was noisy, with the figure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    median_ms: float
    p95_ms: float
    interval_ms: tuple[float, float]
    ratio: float
    ratio_interval: tuple[float, float]
    reference: str
    n: int
    threads: int
    noisy: bool
    reason: str | None = None


def measure_latency(
    candidates: Mapping[str, Callable[[], object]],
    *,
    reference: str | None = None,
    threads: int = 1,
    time_s: float = 1.0,
    max_time_s: float = 30.0,
    min_rounds: int = 25,
    max_rounds: int = 2000,
    noise_limit: float = 0.05,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    r"""Time calls against each other.

    Every candidate is first called until it no longer gets faster. Then come rounds: in each, every
    candidate is timed once, in random order, so that a change of the machine's speed meets all
    alike; a call of less than 20 ms is made once untimed before, or it would find its data pushed
    out of the caches by the candidate before it, which costs a small network a tenth. Garbage
    collection is off meanwhile. The interval of a median is that of order statistics: with `l` the
    smallest number for which :math:`P(B(n, 1/2) \le l) \ge 0.025`, it reaches from the `l`-th
    smallest to the `l`-th largest timing and assumes nothing about their distribution. As timings
    that follow each other are alike, from 60 rounds on it is taken of the medians of 20 stretches
    of the run. Ratios are taken within a round. All this is about one run in one process: medians
    of two runs may differ by more than their intervals, ratios far less.

    The verdict `noisy` falls if the interval of a median or ratio is wider than `noise_limit`, if
    the medians of the four quarters of the run differ by more than twice that (the machine changed
    its speed), or if there were fewer than 6 rounds.

    Args:
        candidates: Functions without arguments by name; each does its whole work, device included,
            before it returns.
        reference: The candidate that ratios refer to; the first by default.
        threads: Threads that torch uses meanwhile. Other engines are given theirs when made.
        time_s: Seconds for each candidate, warm-up not included. Default 1.
        max_time_s: Seconds after which the rounds end although they are fewer than `min_rounds`.
            Default 30.
        min_rounds: How many rounds to have even if they take longer than asked. Default 25.
        max_rounds: How many rounds are enough. Default 2000.
        noise_limit: Relative width of an interval that counts as noisy. Default 0.05.
        seed: Of the order within rounds.
        clock: Returns seconds.

    Raises:
        ValueError: there is no candidate, or `reference` is not one.

    Example:
        >>> found = measure_latency({"a": lambda: sum(range(100))}, time_s=0.01)
        >>> found["a"].ratio, found["a"].n >= 25
        (1.0, True)

    Paper: Hahn and Meeker, Statistical Intervals, 1991, section 5.2 (interval of a median).
    """
    if not candidates:
        raise ValueError("`candidates` is empty. Give at least one function to time.")
    reference = next(iter(candidates)) if reference is None else reference
    if reference not in candidates:
        raise ValueError(f"`reference` must be one of {list(candidates)}, got '{reference}'.")
    names, order = list(candidates), random.Random(seed)
    rounds: list[dict[str, float]] = []
    with _quiet(threads):
        start = clock()
        budget_s = min(time_s, max_time_s / (2 * len(names)))
        fastest_s = {name: _warm_up(call, clock, budget_s) for name, call in candidates.items()}
        short = {name for name in names if len(names) > 1 and fastest_s[name] < _SHORT_S}
        first = clock()
        while len(rounds) < max_rounds:
            now = clock()
            wanted = now - first < time_s * len(names) or len(rounds) < min_rounds
            if rounds and (not wanted or now - start >= max_time_s):
                break
            order.shuffle(names)
            rounds.append({n: _seconds(candidates[n], clock, warm=n in short) for n in names})
    times = {name: np.array([r[name] for r in rounds]) * 1e3 for name in candidates}
    return {
        name: _summary(times[name], times[reference], reference, threads, noise_limit)
        for name in candidates
    }


def latency_facts(
    latencies: Mapping[str, Latency], *, batch_size: int, engines: Mapping[str, str] | None = None
) -> list[Fact]:
    """Return one fact for each candidate, whose name is the subject.

    Args:
        latencies: What `measure_latency` returned.
        batch_size: Samples in one call.
        engines: The engine of a candidate by its name; `torch` for the others.
    """
    return [
        Fact(
            name="latency_ms",
            value=found.median_ms,
            unit="ms",
            subject=name,
            n=found.n,
            interval=found.interval_ms,
            reason=found.reason,
            detail={
                "engine": (engines or {}).get(name, "torch"),
                "batch_size": batch_size,
                "threads": found.threads,
                "p95_ms": found.p95_ms,
                "noisy": found.noisy,
                "ratio": found.ratio,
                "ratio_interval": list(found.ratio_interval),
                "reference": found.reference,
            },
            reproducible=False,
        )
        for name, found in latencies.items()
    ]


@contextmanager
def _quiet(threads: int) -> Iterator[None]:
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


def _seconds(
    call: Callable[[], object], clock: Callable[[], float], *, warm: bool = False
) -> float:
    if warm:
        call()
    start = clock()
    call()
    return clock() - start


def _warm_up(call: Callable[[], object], clock: Callable[[], float], budget_s: float) -> float:
    """Call until the last three calls are not faster than all before them, or time is up.

    Returns:
        Seconds of the fastest call.
    """
    times: list[float] = []
    while not times or sum(times) < budget_s:
        times.append(_seconds(call, clock))
        if len(times) >= _ENOUGH_FOR_AN_INTERVAL and min(times[-3:]) >= 0.98 * min(times[:-3]):
            break
    return min(times)


def _summary(
    times: NDArray[np.float64],
    reference: NDArray[np.float64],
    name: str,
    threads: int,
    limit: float,
) -> Latency:
    ratios = times / reference
    median, ratio = float(np.median(times)), float(np.median(ratios))
    interval, ratio_interval = _median_interval(times), _median_interval(ratios)
    reasons = _noise(times, median, interval, limit)
    width = (ratio_interval[1] - ratio_interval[0]) / ratio
    if width > limit:
        reasons.append(f"the interval of its ratio to '{name}' is {width:.0%} wide")
    return Latency(
        median_ms=median,
        p95_ms=float(np.quantile(times, 0.95)),
        interval_ms=interval,
        ratio=ratio,
        ratio_interval=ratio_interval,
        reference=name,
        n=len(times),
        threads=threads,
        noisy=bool(reasons),
        reason="the machine is noisy: " + "; ".join(reasons) if reasons else None,
    )


def _noise(
    times: NDArray[np.float64], median: float, interval: tuple[float, float], limit: float
) -> list[str]:
    if len(times) < _ENOUGH_FOR_AN_INTERVAL:
        return [f"only {len(times)} calls could be timed in the time allowed"]
    reasons = []
    width = (interval[1] - interval[0]) / median
    if width > limit:
        reasons.append(f"the interval of the median is {width:.0%} wide")
    quarters = [float(np.median(part)) for part in np.array_split(times, _QUARTERS)]
    drift = (max(quarters) - min(quarters)) / median
    if drift > 2 * limit:
        reasons.append(f"the median moved by {drift:.0%} during the run")
    return reasons


def _median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    from scipy.stats import binom

    median = float(np.median(values))
    if len(values) >= 3 * _STRETCHES:
        values = np.array([np.median(part) for part in np.array_split(values, _STRETCHES)])
    ordered, n = np.sort(values), len(values)
    rank = max(1, int(binom.ppf(0.025, n, 0.5)))
    return min(float(ordered[rank - 1]), median), max(float(ordered[n - rank]), median)
