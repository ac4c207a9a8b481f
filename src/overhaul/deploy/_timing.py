"""What trials cost: time at a batch size and a number of threads, opening, memory."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from overhaul.core import Batch, Fact
from overhaul.deploy._artifact_cost import artifact_cost
from overhaul.deploy._trial import Trial
from overhaul.evaluation import Latency, forward_call, latency_facts, measure_latency

_MOST_S = 20.0


def time_trials(
    trials: Sequence[Trial],
    batch: Batch,
    others: Mapping[str, Callable[[], object]],
    *,
    threads: int,
    time_s: float,
    seed: int = 0,
) -> tuple[list[Fact], dict[str, Latency]]:
    """Time a call of every trial, and of what stands beside them, in turns.

    Args:
        trials: At least one if there are no others; all opened for one number of threads.
        batch: The inputs of a call.
        others: Further calls by subject; the first is what ratios refer to.
        threads: That number.
        time_s: Seconds for each.
        seed: Of the order within rounds.
    """
    own = {trial.subject: forward_call(trial.artifact, batch) for trial in trials}
    calls = {**others, **own}
    found = measure_latency(calls, threads=threads, time_s=time_s, max_time_s=_MOST_S, seed=seed)
    engines = {trial.subject: trial.engine for trial in trials}
    return latency_facts(found, batch_size=len(batch), engines=engines), found


def throughput_fact(latency: Fact) -> Fact:
    """Return the samples in a second of a latency.

    Example:
        >>> latency = Fact(name="latency_ms", value=20.0, detail={"batch_size": 32})
        >>> throughput_fact(latency).value
        1600.0
    """
    assert isinstance(latency.value, float)
    size = int(latency.detail["batch_size"])
    interval = None
    if latency.interval is not None:
        interval = (size * 1e3 / latency.interval[1], size * 1e3 / latency.interval[0])
    change = {
        "name": "throughput",
        "value": size * 1e3 / latency.value,
        "unit": "samples/s",
        "interval": interval,
    }
    return latency.model_copy(update=change)


def trial_costs(trial: Trial, threads: int) -> list[Fact]:
    """Return how long opening takes, and the memory of a call, in a process of its own."""
    found = artifact_cost(trial.artifact.path, threads=threads)
    about: dict[str, Any] = {
        "subject": trial.subject,
        "reason": found.reason,
        "detail": {"engine": trial.engine, "threads": threads},
        "reproducible": False,
    }
    return [
        Fact(name="load_s", value=found.load_s, unit="s", **about),
        Fact(name="peak_memory_bytes", value=found.peak_bytes, unit="B", **about),
    ]


def all_threads() -> int:
    """Return how many threads this machine has for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
