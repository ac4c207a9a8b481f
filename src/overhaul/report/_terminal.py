"""The report in a terminal."""

import re
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
_EFFECTS = {"gain": "bold green", "no gain": "bold yellow", "harm": "bold red"}


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
    notes = _Notes()
    for row, cells in steps.rows:
        marks = [notes.number(reason, row.subject) for reason in row.reasons]
        subject = Text(_in_two(row.subject), style="bold")
        if marks:
            subject.append(f" [{','.join(map(str, marks))}]", style="not bold dim")
        table.add_row(subject, *(_cell_text(cells[index]) for index in shown))
    if notes.texts:
        table.caption = Text("\n".join(notes.lines()), justify="left")
    return table


_LONG = 13
"""Letters of a word that fit beside the figures at 80 columns."""
_FIGURE = re.compile(r"\d[\d.,]*(?: [kMGT]?B?\b)?")


def _in_two(subject: str) -> str:
    """Break a long name below one of its underscores, and not where the column ends."""
    step, space, name = subject.rpartition(" ")
    if len(name) <= _LONG or "_" not in name:
        return subject
    places = [place for place, letter in enumerate(name, start=1) if letter == "_"]
    middle = min(places, key=lambda place: abs(2 * place - len(name)))
    return f"{step}{space}{name[:middle]}\n{name[middle:]}"


class _Notes:
    """Numbered reasons; those that differ in figures alone share a number."""

    def __init__(self) -> None:
        self.texts: dict[str, tuple[str, str]] = {}
        self.shared: set[str] = set()

    def number(self, reason: str, subject: str) -> int:
        key = _FIGURE.sub("0", reason)
        first, _ = self.texts.setdefault(key, (reason, subject))
        if first != reason:
            self.shared.add(key)
        return list(self.texts).index(key) + 1

    def lines(self) -> list[str]:
        return [
            f"[{number}] {text}" + (f" (Figures of '{subject}'.)" if key in self.shared else "")
            for number, (key, (text, subject)) in enumerate(self.texts.items(), start=1)
        ]


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
    if verdict.effect:
        style = next((s for word, s in _EFFECTS.items() if verdict.effect.startswith(word)), "bold")
        text.append("; ", style="not bold default").append(verdict.effect, style=style)
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
