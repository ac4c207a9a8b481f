"""The table of steps as text: which columns there are, and what each cell says."""

from collections.abc import Sequence
from dataclasses import dataclass

from overhaul.core import Fact
from overhaul.report._numbers import (
    change,
    count,
    figure,
    interval,
    is_fraction,
    number,
    quality,
    ratio,
)
from overhaul.report._ratios import cost_ratio
from overhaul.report._row import Row
from overhaul.report._rows import TITLES

MISSING = "-"
_COLUMNS = (
    "val",
    "test",
    "parameters",
    "macs",
    "size_bytes",
    "compressed_bytes",
    "peak_memory_bytes",
    "latency_ms",
)


@dataclass(frozen=True)
class Cell:
    """One cell: the figure, its interval and how it compares.

    Attributes:
        text: The figure, or `-`.
        interval: Its 95 % interval.
        change: How it compares with the original.
        note: What else is to be known about it: the engine, how many are not zero.
        hover: Why there is no figure; empty where there is one.
        is_blank: Whether the run did not even try to measure it.
    """

    text: str
    interval: str = ""
    change: str = ""
    note: str = ""
    hover: str = ""
    is_blank: bool = False

    @property
    def below(self) -> tuple[str, ...]:
        """The lines below the figure."""
        return tuple(line for line in (self.interval, self.change, self.note) if line)


@dataclass(frozen=True)
class StepsTable:
    """A table of subjects by measures.

    Attributes:
        keys: The measures, as `Row` names them; those that no row has are left out.
        titles: What their columns are called.
        rows: Each row with its cells.
    """

    keys: tuple[str, ...]
    titles: tuple[str, ...]
    rows: tuple[tuple[Row, tuple[Cell, ...]], ...]


def steps_table(rows: Sequence[Row], metric: str | None, original: Row | None) -> StepsTable:
    """Return the cells of the rows, compared with the original where it has the same measure."""
    keys = tuple(key for key in _COLUMNS if any(getattr(row, key) is not None for row in rows))
    name = spoken(metric or "quality")
    titles = {**TITLES, "val": f"{name} on val", "test": f"{name} on test"}
    reference = original if original is not None else Row("original")
    return StepsTable(
        keys=keys,
        titles=tuple(titles[key] for key in keys),
        rows=tuple((row, tuple(_cell(row, reference, key) for key in keys)) for row in rows),
    )


def spoken(name: str) -> str:
    """Return the name of a metric or fact as words.

    Example:
        >>> spoken("balanced_accuracy")
        'balanced accuracy'
    """
    return name.replace("_", " ").strip()


def compared(fact: Fact | None, reference: Fact | None) -> str:
    """Say how a figure compares with the original's; nothing if it cannot be compared."""
    value, other = number(fact), number(reference)
    if fact is None or value is None or other is None:
        return ""
    if fact.split is not None:
        return change(value - other, fact.name)
    found = cost_ratio(fact, reference)
    return ratio(found) if found is not None else ""


def _cell(row: Row, original: Row, key: str) -> Cell:
    fact: Fact | None = getattr(row, key)
    if fact is None:
        return Cell(MISSING, hover="not measured here", is_blank=True)
    value = number(fact)
    if value is None:
        return Cell(MISSING, hover=f"not measured: {fact.reason or 'no reason given'}")
    if fact.split is not None:
        text = quality(value, fact.name)
    else:
        text = figure(value, fact.name, fact.unit or _unit(fact.name))
    bounds = interval(fact)
    return Cell(
        text,
        interval=bounds.removesuffix(" %") if is_fraction(fact.name) else bounds,
        change=compared(fact, getattr(original, key)) if row.subject != "original" else "",
        note=_note(row, key, text),
    )


def _note(row: Row, key: str, text: str) -> str:
    if key == "parameters":
        nonzero = number(row.nonzero_parameters)
        differs = nonzero is not None and count(nonzero) != text
        return f"{count(nonzero)} non-zero" if nonzero is not None and differs else ""
    if key == "latency_ms" and row.latency_ms is not None:
        return str(row.latency_ms.detail.get("engine", ""))
    return ""


def _unit(name: str) -> str:
    if name.endswith("_bytes"):
        return "B"
    return "ms" if name.endswith("_ms") else ""
