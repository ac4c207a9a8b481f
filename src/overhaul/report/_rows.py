"""From facts to rows: which subject has which measurements."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from overhaul.core import Fact
from overhaul.report._numbers import number, plain
from overhaul.report._reasons import derived_reasons
from overhaul.report._row import Row

COSTS = (
    "parameters",
    "nonzero_parameters",
    "macs",
    "size_bytes",
    "compressed_bytes",
    "peak_memory_bytes",
    "latency_ms",
)
TITLES = {
    "val": "quality on val",
    "test": "quality on test",
    "parameters": "parameters",
    "nonzero_parameters": "non-zero parameters",
    "macs": "MACs",
    "size_bytes": "bytes",
    "compressed_bytes": "compressed bytes",
    "peak_memory_bytes": "peak memory",
    "latency_ms": "latency",
}
_NO_QUALITY = (
    *("difference", "verdict", "skipped", "output_error"),
    *("stage_quality", "trial_quality"),  # of a network or copy on the way
)
_STEP = re.compile(r"(\d+) ")
_CONTROL, _TRIAL = "control/", "artifact/"


def selection_metric(facts: Sequence[Fact]) -> str | None:
    """Return the metric that choices were made by, as far as the facts tell.

    It is what the verdict compares; before there is one, what training watched; else the first
    metric on the validation split that is not the loss.
    """
    for fact in facts:
        if fact.name == "difference" and isinstance(fact.detail.get("metric"), str):
            return str(fact.detail["metric"])
    measured = [fact.name for fact in facts if is_quality(fact)]
    for fact in facts:
        if "epoch" in fact.detail and fact.name.startswith("val_"):
            name = fact.name.removeprefix("val_")
            if name in measured and name != "loss":
                return name
    return next((name for name in measured if name != "loss"), next(iter(measured), None))


def is_quality(fact: Fact) -> bool:
    """Tell whether the fact is a metric of one subject on one split."""
    return (
        fact.split is not None
        and is_subject(fact.subject)
        and "epoch" not in fact.detail
        and fact.name not in (*COSTS, *_NO_QUALITY)
        and (fact.value is None or number(fact) is not None)
    )


def is_subject(subject: str) -> bool:
    """Tell whether a subject is a model: a named one, the one after a step, or in an engine."""
    named = ("original", "final", "artifact", "control")
    is_step = _STEP.match(subject.removeprefix(_CONTROL)) is not None
    return subject in named or is_step or subject.startswith(_TRIAL)


def read_rows(facts: Sequence[Fact]) -> tuple[Row, ...]:
    """Return a row for the original, each step, the final model, the artifact and the control.

    Subjects without any measurement get none.

    Example:
        >>> read_rows([Fact(name="macs", value=5, subject="original")])[0].macs.value
        5
    """
    subjects = {fact.subject for fact in facts if is_subject(fact.subject)}
    main = [subject for subject in subjects if not subject.startswith((_CONTROL, _TRIAL))]
    return _rows(facts, sorted(main, key=_order))


def read_control_rows(facts: Sequence[Fact]) -> tuple[Row, ...]:
    """Return a row for each step of the control."""
    subjects = {fact.subject for fact in facts if is_subject(fact.subject)}
    control = [subject for subject in subjects if subject.startswith(_CONTROL)]
    return _rows(facts, sorted(control, key=_order))


def read_trial_rows(facts: Sequence[Fact]) -> tuple[Row, ...]:
    """Return a row for each engine that the artifact was tried in."""
    subjects = dict.fromkeys(fact.subject for fact in facts if fact.subject.startswith(_TRIAL))
    return _rows(facts, list(subjects))


def latencies(facts: Iterable[Fact]) -> list[Fact]:
    """Return every latency of a model, of each engine and batch size."""
    return [fact for fact in facts if fact.name == "latency_ms" and is_subject(fact.subject)]


def _rows(facts: Sequence[Fact], subjects: Sequence[str]) -> tuple[Row, ...]:
    metric = selection_metric(facts)
    bare = {subject: _measurements(facts, subject, metric) for subject in subjects}
    original = _measurements(facts, "original", metric)
    final = _measurements(facts, "final", metric)
    rows = []
    for subject, row in bare.items():
        if row == Row(subject):
            continue
        own = [
            _own_reason(name, fact)
            for name, fact in _facts_of(row)
            if fact.reason is not None or fact.value is None
        ]
        derived: tuple[str, ...] = ()
        if subject != "original":
            derived = derived_reasons(_with_nominal(row, final), original)
        rows.append(replace(row, reasons=(*_choices(facts, subject), *own, *derived)))
    return tuple(rows)


def _choices(facts: Sequence[Fact], subject: str) -> list[str]:
    """Return what was chosen on `val` for a step, or for a network that it made on the way."""
    found = []
    for fact in facts:
        step, _, network = fact.subject.partition(", ")
        if fact.name == "setting_chosen" and step == subject:
            chosen = f"{fact.detail.get('setting')} {plain(number(fact) or 0)}"
            whose = f" for {network}" if network else ""
            found.append(f"{chosen}, chosen on val{whose}: {fact.reason}.")
    return found


def _measurements(facts: Sequence[Fact], subject: str, metric: str | None) -> Row:
    mine = [fact for fact in facts if fact.subject == subject and "epoch" not in fact.detail]
    cost = {fact.name: fact for fact in mine if fact.name in COSTS}
    on = {fact.split: fact for fact in mine if fact.name == metric and is_quality(fact)}
    return Row(
        subject=subject,
        val=on.get("val"),
        test=on.get("test"),
        parameters=cost.get("parameters"),
        nonzero_parameters=cost.get("nonzero_parameters"),
        macs=cost.get("macs"),
        size_bytes=cost.get("size_bytes"),
        compressed_bytes=cost.get("compressed_bytes"),
        peak_memory_bytes=cost.get("peak_memory_bytes"),
        latency_ms=_chosen_latency(facts, mine),
    )


def _chosen_latency(facts: Sequence[Fact], mine: Sequence[Fact]) -> Fact | None:
    """Prefer the engine that the run chose, otherwise the first; what was timed last counts.

    That is the timing in turns with all others of the table.
    """
    timed = latencies(mine)
    chosen = {fact.value for fact in facts if fact.name == "engine_chosen"}
    preferred = [fact for fact in timed if fact.detail.get("engine") in chosen]
    first = next(iter(preferred or timed), None)
    same = [f for f in timed if first and f.detail.get("engine") == first.detail.get("engine")]
    return next(reversed(same), None)


def _with_nominal(row: Row, final: Row) -> Row:
    """Give the artifact the nominal cost of the final model, which is the same network."""
    if row.subject != "artifact" and not row.subject.startswith(_TRIAL):
        return row
    return replace(row, macs=row.macs or final.macs)


def _facts_of(row: Row) -> list[tuple[str, Fact]]:
    pairs = [(name, getattr(row, name)) for name in TITLES]
    return [(name, fact) for name, fact in pairs if isinstance(fact, Fact)]


def _own_reason(name: str, fact: Fact) -> str:
    if fact.value is None:
        return f"{TITLES[name]} not measured: {fact.reason or 'no reason given'}"
    return f"{TITLES[name]}: {fact.reason}"


def _order(subject: str) -> tuple[int, int, str]:
    groups = {"original": 0, "final": 2, "artifact": 3, "control": 4}
    step = _STEP.match(subject.removeprefix(_CONTROL))
    return groups.get(subject, 1), int(step[1]) if step else 0, subject
