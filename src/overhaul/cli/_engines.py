"""`overhaul profile --engines`: what a model costs in each engine."""

from collections.abc import Sequence

from torch import nn

from overhaul.cli._answer import Answer
from overhaul.core import (
    Fact,
    Progress,
    SpecError,
    Split,
    concrete_subclasses,
    nearest,
)
from overhaul.deploy import Engine, compare_engines

_ENGINE: type[Engine] = Engine  # type: ignore[type-abstract]
_MANY = 32
ENGINE_SAMPLES = 32
"""How many random samples engines are compared on."""


def engines_answer(model: nn.Module, samples: Split, names: str) -> Answer:
    """Return the table of engines: error, bytes, opening, memory, and four latencies.

    Args:
        model: Whose cost it is.
        samples: Its inputs.
        names: Names of engines with commas between, or `all`.
    """
    facts = compare_engines(model, samples, _named(names), many=_MANY, progress=Progress())
    document = {"facts": [fact.model_dump(mode="json") for fact in facts]}
    return Answer(document, [_table(facts)])


def _named(names: str) -> Sequence[Engine]:
    known = {kind.spec_name(): kind for kind in concrete_subclasses(_ENGINE)}
    chosen = sorted(known) if names == "all" else [each.strip() for each in names.split(",")]
    for name in chosen:
        if name not in known:
            raise SpecError(f"there is no engine '{name}'. {nearest(name, known)}")
    return [known[name]() for name in chosen]


def _table(facts: Sequence[Fact]) -> str:
    subjects = dict.fromkeys(
        fact.subject for fact in facts if fact.name not in ("skipped", *_IN_WORDS)
    )
    failed = {fact.subject: fact.reason for fact in facts if fact.name == "skipped"}
    settings = list(
        dict.fromkeys(
            (int(fact.detail["batch_size"]), int(fact.detail["threads"]))
            for fact in facts
            if fact.name == "latency_ms"
        )
    )
    titles = [f"batch {size}, {threads} thr." for size, threads in settings]
    rows = [["engine", "error", "bytes", "opening", "memory", *titles]]
    for subject in ["original", *(each for each in subjects if each != "original")]:
        if subject in failed:
            continue
        own = {fact.name: fact for fact in facts if fact.subject == subject}
        cells = ["torch, the model itself" if subject == "original" else _engine(subject)]
        cells += [_cell(own.get(name)) for name in _SHOWN]
        for setting in settings:
            cells.append(_cell(_latency(facts, subject, setting)))
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in pairs).rstrip()
        for row in rows
        for pairs in [list(enumerate(zip(row, widths, strict=True)))]
    ]
    noisy = any(fact.detail.get("noisy") for fact in facts if fact.name == "latency_ms")
    lines += ["", "Latencies are medians, all engines timed in turns."] + [
        "The machine was noisy meanwhile: run it again when nothing else runs."
    ] * noisy
    lines += [f"{_engine(subject)}: {reason}" for subject, reason in failed.items()]
    told = [fact for fact in facts if fact.name in _IN_WORDS and fact.reason is not None]
    lines += [f"{_title(fact)}: {fact.reason}." for fact in told]
    return "\n".join(lines)


_IN_WORDS = ("integers_against_real", "dynamic_length", "zeros")
"""What stands below the table, where there is a reason."""


def _engine(subject: str) -> str:
    """Return the engine that a fact is about, with what it runs."""
    return subject.removeprefix("artifact/")


def _title(fact: Fact) -> str:
    """Return what a reason is for."""
    if fact.name == "dynamic_length":
        return f"{_engine(fact.subject)}, sequences of one length only"
    if fact.name == "integers_against_real" and isinstance(fact.value, float):
        return f"integers take {fact.value:.2f} x the time of real numbers"
    return fact.name.replace("_", " ")


_SHOWN = ("output_error", "size_bytes", "load_s", "peak_memory_bytes")


def _cell(fact: Fact | None) -> str:
    value = None if fact is None else fact.value
    if fact is None or not isinstance(value, int | float):
        return "-"
    if fact.name == "output_error":
        return f"{value:.0e}"
    if fact.unit == "B":
        return f"{value / 1e6:.3g} MB" if value >= 1e5 else f"{value / 1e3:.3g} kB"
    if fact.unit == "s":
        return f"{value:.2g} s"
    return f"{value:.3g} ms"


def _latency(facts: Sequence[Fact], subject: str, setting: tuple[int, int]) -> Fact | None:
    size, threads = setting
    for fact in facts:
        same = fact.name == "latency_ms" and fact.subject == subject
        if same and fact.detail["batch_size"] == size and fact.detail["threads"] == threads:
            return fact
    return None
