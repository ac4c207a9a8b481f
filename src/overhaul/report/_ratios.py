"""Costs as ratios to the original, where the two can be compared."""

from dataclasses import dataclass

from overhaul.core import Fact
from overhaul.report._numbers import number

_WITHOUT_INTERVAL = 0.1


@dataclass(frozen=True)
class Ratio:
    """A ratio to the original and the range that it may lie in.

    Attributes:
        value: The ratio.
        low: Its lower bound.
        high: Its upper bound.
        is_interval: Whether the bounds come from intervals; else they are 10 % to either side.
    """

    value: float
    low: float
    high: float
    is_interval: bool


def cost_ratio(fact: Fact | None, reference: Fact | None) -> float | None:
    """Return the ratio of two costs of one name; None where they cannot be compared.

    Example:
        >>> cost_ratio(Fact(name="macs", value=30), Fact(name="macs", value=40))
        0.75
    """
    if fact is not None and fact.name == "latency_ms":
        found = latency_ratio(fact, reference)
        return None if found is None else found.value
    value, other = number(fact), number(reference)
    return value / other if value is not None and other is not None and other > 0 else None


def latency_ratio(fact: Fact | None, reference: Fact | None) -> Ratio | None:
    """Return the ratio of two latencies; None where they cannot be compared.

    A ratio that was taken while both were timed in turns is used as it is. Otherwise latencies at
    another batch size or number of threads are not compared, and the bounds are the most cautious
    ones: lower end over upper end, and the reverse.
    """
    value, other = number(fact), number(reference)
    if fact is None or reference is None or value is None or other is None or other <= 0:
        return None
    paired = _paired(fact, reference)
    if paired is not None:
        return paired
    if other_setting(fact, reference) is not None:
        return None
    if fact.interval is None or reference.interval is None or min(reference.interval) <= 0:
        spread = value / other * _WITHOUT_INTERVAL
        return Ratio(value / other, value / other - spread, value / other + spread, False)
    low = fact.interval[0] / reference.interval[1]
    return Ratio(value / other, low, fact.interval[1] / reference.interval[0], True)


def other_setting(fact: Fact | None, reference: Fact | None) -> str | None:
    """Name the setting in which two latencies differ so that they cannot be compared."""
    if fact is None or reference is None:
        return None
    for setting, title in (("batch_size", "batch size"), ("threads", "threads")):
        mine, other = fact.detail.get(setting), reference.detail.get(setting)
        if mine is not None and other is not None and mine != other:
            return f"{title} {mine} here, {other} there"
    return None


def _paired(fact: Fact, reference: Fact) -> Ratio | None:
    value, bounds = fact.detail.get("ratio"), fact.detail.get("ratio_interval")
    if fact.detail.get("reference") != reference.subject or not isinstance(value, int | float):
        return None
    if not isinstance(bounds, list | tuple) or len(bounds) != 2 or value <= 0:
        return None
    return Ratio(float(value), float(bounds[0]), float(bounds[1]), True)
