"""Several runs side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from overhaul.core import Fact
from overhaul.report._cells import MISSING, compared, spoken
from overhaul.report._conclusion import read_conclusion, read_differences
from overhaul.report._numbers import figure, number, quality
from overhaul.report._row import Row
from overhaul.report._rows import read_rows, selection_metric
from overhaul.report._terminal import STYLES

_COSTS = {"parameters": "params", "macs": "MACs", "size_bytes": "bytes", "latency_ms": "latency"}
_LEGEND = (
    "Below a figure: how it compares with the original that the run started from (in points, or as "
    "a ratio), and the 95 % interval of that. Against control: what the methods gave beyond the "
    "same training. Bytes and latency are those of the artifact, where there is one."
)


@dataclass(frozen=True)
class RunSummary:
    """What one run came to: the figures that runs are compared by.

    Attributes:
        verdict: `proved`, `not proved`, `refuted`, or `unfinished`.
        test: The metric on the test split.
        against_original: The difference to the original on it.
        against_control: The difference to the control on it.
        parameters: Of the final model, as the next.
        macs: For one sample.
        size_bytes: Of the artifact, or of the final model where nothing was deployed.
        latency_ms: Likewise.
    """

    verdict: str
    test: Fact | None
    against_original: Fact | None
    against_control: Fact | None
    parameters: Fact | None
    macs: Fact | None
    size_bytes: Fact | None
    latency_ms: Fact | None


def summarize(facts: Sequence[Fact]) -> RunSummary:
    """Return what a run came to.

    Args:
        facts: The facts of a run, finished or not.

    Example:
        >>> summarize([Fact(name="verdict", value="proved")]).verdict
        'proved'
    """
    rows = {row.subject: row for row in read_rows(facts)}
    final = rows.get("final", Row("final"))
    artifact = rows.get("artifact", final)
    differences = {f.detail.get("reference"): f for f in facts if f.name == "difference"}
    return RunSummary(
        verdict=read_conclusion(facts).word,
        test=final.test,
        against_original=differences.get("original"),
        against_control=differences.get("control"),
        parameters=final.parameters,
        macs=final.macs,
        size_bytes=artifact.size_bytes or final.size_bytes,
        latency_ms=artifact.latency_ms or final.latency_ms,
    )


def comparison_table(runs: Mapping[str, Sequence[Fact]]) -> Table:
    """Return a table for a Rich console with one row for each run.

    Args:
        runs: The facts of each run by its name.

    Example:
        >>> comparison_table({"a": [], "b": []}).row_count
        2
    """
    metrics = {spoken(selection_metric(facts) or "quality"): None for facts in runs.values()}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column(f"{' or '.join(metrics)}\non test", justify="right", no_wrap=True)
    table.add_column("against\ncontrol", justify="right", no_wrap=True)
    for title in _COSTS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for name, facts in runs.items():
        table.add_row(*_cells(name, facts))
    table.caption = Text(_LEGEND, justify="left")
    return table


def _cells(name: str, facts: Sequence[Fact]) -> list[Text]:
    summary = summarize(facts)
    original = {row.subject: row for row in read_rows(facts)}.get("original", Row("original"))
    differences = {each.reference: each for each in read_differences(facts)}
    run = Text(name, style="bold")
    run.append(f"\n{summary.verdict}", style=STYLES.get(summary.verdict, ""))
    cells = [run]
    value = number(summary.test)
    against = differences.get("original")
    cells.append(
        _lines(
            MISSING if value is None or summary.test is None else quality(value, summary.test.name),
            *((_short(against.value), against.interval) if against is not None else ()),
        )
    )
    control = differences.get("control")
    cells.append(
        _lines(control.effect, _short(control.value), control.interval)
        if control is not None
        else Text(MISSING)
    )
    for key in _COSTS:
        fact: Fact | None = getattr(summary, key)
        cost = number(fact)
        shown = MISSING if cost is None or fact is None else figure(cost, key, fact.unit)
        cells.append(_lines(shown, compared(fact, getattr(original, key)).replace(" x", "x")))
    return cells


def _lines(first: str, *below: str) -> Text:
    text = Text(first)
    for line in below:
        text.append(f"\n{line}" if line else "", style="dim")
    return text


def _short(difference: str) -> str:
    return difference.removesuffix(" points")
