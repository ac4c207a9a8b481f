"""The report in a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from overhaul.core import Fact
from overhaul.report._cells import Cell, steps_table
from overhaul.report._conclusion import UNFINISHED, how_to_resume, read_conclusion
from overhaul.report._rows import read_rows, selection_metric

_SHORT = {"parameters": "params", "compressed_bytes": "deflated"}
STYLES = {"proved": "bold green", "not proved": "bold yellow", "refuted": "bold red"}


def step_table(facts: Sequence[Fact]) -> Table:
    """Return the table of steps: quality, cost and latency of each, and why they differ.

    Args:
        facts: The facts of a run.

    Returns:
        A table for a Rich console: each figure, below it how it compares with the original (in
        points, or as a ratio). The reasons are numbered and stand below the table; intervals and
        memory are on the page that `write_report` makes.

    Example:
        >>> step_table([Fact(name="macs", value=5, subject="original")]).row_count
        1
    """
    rows = read_rows(facts)
    original = next((row for row in rows if row.subject == "original"), None)
    steps = steps_table(rows, selection_metric(facts), original)
    shown = [index for index, key in enumerate(steps.keys) if key != "peak_memory_bytes"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("", overflow="fold")
    for index in shown:
        title = _SHORT.get(steps.keys[index], steps.titles[index]).replace(" on ", "\non ")
        table.add_column(Text(title), justify="right", no_wrap=True)
    notes: list[str] = []
    for row, cells in steps.rows:
        notes += [reason for reason in row.reasons if reason not in notes]
        marks = ",".join(str(notes.index(reason) + 1) for reason in row.reasons)
        subject = Text(row.subject, style="bold")
        if marks:
            subject.append(f" [{marks}]", style="not bold dim")
        table.add_row(subject, *(_cell_text(cells[index]) for index in shown))
    if notes:
        lines = [f"[{number}] {note}" for number, note in enumerate(notes, start=1)]
        table.caption = Text("\n".join(lines), justify="left")
    return table


def verdict_text(facts: Sequence[Fact], folder: str | None = None) -> Text:
    """Return the verdict with its sentences, or that the run is unfinished and how to go on.

    Args:
        facts: The facts of a run.
        folder: Where the run is.

    Example:
        >>> print(verdict_text([Fact(name="verdict", value="refuted")]))
        refuted
        The final model does not keep the quality that was asked for.
    """
    verdict = read_conclusion(facts)
    text = Text(verdict.word, style=STYLES.get(verdict.word, "bold"))
    sentences = list(verdict.sentences)
    if verdict.word == UNFINISHED:
        sentences.append(how_to_resume(folder))
    for sentence in sentences:
        text.append(f"\n{sentence}", style="not bold default")
    return text


def _cell_text(cell: Cell) -> Text:
    text = Text(cell.text)
    if cell.change:
        # Shorter than on the page, so that the names of steps fit beside the figures at 80 columns.
        below = cell.change.removesuffix(" points").replace(" x", "x")
        text.append(f"\n{below}", style="dim")
    return text
