"""A table of measurements, one a line."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from overhaul.core import Fact
from overhaul.report._cells import spoken
from overhaul.report._numbers import figure, interval, number
from overhaul.report._rows import TITLES


def facts_table(facts: Sequence[Fact]) -> Table:
    """Return a table for a Rich console with one line for each fact.

    Args:
        facts: Measurements of one subject.

    Example:
        >>> facts_table([Fact(name="macs", value=5)]).row_count
        1
    """
    lines = [_cells(fact) for fact in facts]
    filled = [column for column in range(len(_TITLES)) if any(line[column] for line in lines)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False)
    for column in filled:
        is_figure = _TITLES[column] not in ("", "remark")
        table.add_column(
            _TITLES[column], justify="right" if is_figure else "left", no_wrap=is_figure
        )
    for line in lines:
        table.add_row(*(Text(line[column]) for column in filled))
    return table


_TITLES = ("", "value", "95 % interval", "n", "remark")


def _cells(fact: Fact) -> tuple[str, ...]:
    value = number(fact)
    return (
        TITLES.get(fact.name, spoken(fact.name)),
        "-" if value is None else figure(value, fact.name, fact.unit),
        interval(fact),
        "" if fact.n is None else f"{fact.n:,}",
        _remark(fact),
    )


def _remark(fact: Fact) -> str:
    parts = []
    if "batch_size" in fact.detail:
        parts.append(f"batch of {fact.detail['batch_size']}")
    if "threads" in fact.detail:
        threads = fact.detail["threads"]
        parts.append(f"{threads} thread{'s' if threads != 1 else ''}")
    if fact.reason is not None:
        parts.append(fact.reason)
    return ", ".join(parts)
