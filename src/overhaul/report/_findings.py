"""Facts that are not in the table of steps: data, what was skipped, what else was found."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from overhaul.core import Fact
from overhaul.report._cells import MISSING, spoken
from overhaul.report._numbers import (
    change,
    change_interval,
    duration,
    figure,
    interval,
    number,
    plain,
)
from overhaul.report._rows import COSTS, is_quality, is_subject, latencies, selection_metric

_MOST_NAMES = 6
_MOST_LETTERS = 240
_HASH, _HASH_LETTERS = re.compile(r"[0-9a-f-]{32,}"), 12


@dataclass(frozen=True)
class Line:
    """One fact as text.

    Attributes:
        subject: What it is about.
        name: What was measured.
        split: On which data.
        value: The figure or word.
        interval: Its 95 % interval.
        n: Samples or timings behind it.
        detail: The rest, in one line.
        reason: Why.
    """

    subject: str
    name: str
    split: str
    value: str
    interval: str
    n: str
    detail: str
    reason: str


@dataclass(frozen=True)
class Skipped:
    """What one step left out for one reason."""

    subject: str
    reason: str
    what: str


@dataclass(frozen=True)
class Timing:
    """One latency with the settings that it depends on, as text."""

    subject: str
    engine: str
    batch_size: str
    threads: str
    median: str
    interval: str
    p95: str
    note: str


@dataclass(frozen=True)
class Quality:
    """One metric on the test split, for each subject as text."""

    metric: str
    values: tuple[str, ...]


def data_lines(facts: Sequence[Fact]) -> tuple[Line, ...]:
    """Return what was found in the data: sizes of the splits, class counts, seeds."""
    return tuple(_line(fact, "") for fact in facts if fact.subject in ("", "data") and _free(fact))


def other_lines(facts: Sequence[Fact]) -> tuple[Line, ...]:
    """Return what the steps found beside quality and cost."""
    found = (fact for fact in facts if fact.subject not in ("", "data") and _free(fact))
    return tuple(_line(fact, "") for fact in found)


def all_lines(facts: Sequence[Fact]) -> tuple[Line, ...]:
    """Return every fact but those of single epochs, and what was skipped: that is gathered."""
    metric = selection_metric(facts) or ""
    return tuple(
        _line(fact, metric)
        for fact in facts
        if "epoch" not in fact.detail and fact.name != "skipped"
    )


def skipped_lines(facts: Sequence[Fact]) -> tuple[Skipped, ...]:
    """Return what was skipped, gathered by step and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for fact in facts:
        if fact.name == "skipped":
            key = (fact.subject, fact.reason or "no reason given")
            groups.setdefault(key, []).append("" if fact.value is None else str(fact.value))
    return tuple(
        Skipped(subject, reason, _names(names)) for (subject, reason), names in groups.items()
    )


def timings(facts: Sequence[Fact]) -> tuple[Timing, ...]:
    """Return every latency with its engine, batch size and threads."""
    return tuple(_timing(fact) for fact in latencies(facts))


def quality_on_test(facts: Sequence[Fact]) -> tuple[tuple[str, ...], tuple[Quality, ...]]:
    """Return the subjects that were measured on the test split, and each metric of them."""
    measured = [fact for fact in facts if is_quality(fact) and fact.split == "test"]
    subjects = tuple(dict.fromkeys(fact.subject for fact in measured))
    by_name: dict[str, dict[str, Fact]] = {}
    for fact in measured:
        by_name.setdefault(fact.name, {})[fact.subject] = fact
    rows = tuple(
        Quality(spoken(name), tuple(_with_interval(of.get(subject)) for subject in subjects))
        for name, of in by_name.items()
    )
    return subjects, rows


def compact(value: object) -> str:
    """Return a value of a manifest or of a fact's detail in one line; hashes are cut short.

    Example:
        >>> compact({"torch": "2.14", "threads": [1, 2]})
        'torch: 2.14, threads: 1, 2'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {compact(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(compact(item) for item in value)
    if isinstance(value, float):
        return plain(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:_HASH_LETTERS]}..." if _HASH.fullmatch(text) else text


def shortened(text: str) -> str:
    """Return a text of at most a few lines, with how much was cut off."""
    if len(text) <= _MOST_LETTERS:
        return text
    return f"{text[:_MOST_LETTERS]} ... ({len(text) - _MOST_LETTERS} more characters)"


def _free(fact: Fact) -> bool:
    """Tell whether no other part of the report shows the fact."""
    shown = fact.name in ("difference", "verdict", "skipped", "engine_chosen")
    is_cost = fact.name in COSTS and is_subject(fact.subject)
    return not (shown or is_cost or is_quality(fact) or "epoch" in fact.detail)


def _line(fact: Fact, metric: str) -> Line:
    bounds = interval(fact)
    if fact.name == "difference" and fact.interval is not None:
        bounds = change_interval(fact.interval, str(fact.detail.get("metric", metric)))
    detail = {key: item for key, item in fact.detail.items() if key != "sentences"}
    value = _value(fact, metric)
    if value == MISSING and fact.value is None and fact.reason is None and detail:
        value = ""
    return Line(
        subject=fact.subject,
        name=spoken(fact.name),
        split=fact.split or "",
        value=value,
        interval=bounds,
        n=plain(fact.n) if fact.n is not None else "",
        detail=shortened(compact(detail)),
        reason=fact.reason or "",
    )


def _value(fact: Fact, metric: str) -> str:
    value = number(fact)
    if value is None:
        if isinstance(fact.value, bool):
            return "yes" if fact.value else "no"
        return fact.value if isinstance(fact.value, str) else MISSING
    if fact.name == "difference":
        return change(value, str(fact.detail.get("metric", metric)))
    return figure(value, fact.name, fact.unit)


def _with_interval(fact: Fact | None) -> str:
    if fact is None or number(fact) is None:
        return MISSING
    bounds = interval(fact)
    return f"{_value(fact, '')} ({bounds})" if bounds else _value(fact, "")


def _timing(fact: Fact) -> Timing:
    detail, value = fact.detail, number(fact)
    p95 = detail.get("p95_ms")
    notes = [fact.reason or "", "noisy machine" if detail.get("noisy") else ""]
    return Timing(
        subject=fact.subject,
        engine=str(detail.get("engine", MISSING)),
        batch_size=str(detail.get("batch_size", MISSING)),
        threads=str(detail.get("threads", MISSING)),
        median=duration(value) if value is not None else MISSING,
        interval=interval(fact) or MISSING,
        p95=duration(float(p95)) if isinstance(p95, int | float) else MISSING,
        note="; ".join(note for note in notes if note),
    )


def _names(names: Iterable[str]) -> str:
    known = [name for name in names if name]
    if not known:
        return ""
    more = len(known) - _MOST_NAMES
    rest = f" and {more} more" if more > 0 else ""
    return ", ".join(known[:_MOST_NAMES]) + rest
