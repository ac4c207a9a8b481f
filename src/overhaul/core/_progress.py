"""Progress: a live line in a terminal, plain lines elsewhere, silence on request."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Advance: TypeAlias = Callable[[str], None]
"""Call it once for each unit of work with a short text, such as `loss 0.31`."""


@dataclass
class Progress:
    """Shows how far a run is.

    Attributes:
        console: Where to; a terminal gets a live bar, anything else one line now and then.
        quiet: Show nothing.
        every_s: Seconds without a line after which a plain line tells how far the work is.
    """

    console: Console = field(default_factory=lambda: Console(stderr=True))
    quiet: bool = False
    every_s: float = 30.0
    _last_line: float = field(default=-math.inf, init=False, repr=False, compare=False)

    def say(self, text: str, *, unless_within_s: float = 0.0) -> None:
        """Print one line.

        Args:
            text: The line.
            unless_within_s: Leave it out if the last line is not so many seconds old.
        """
        now = time.monotonic()
        if self.quiet or now - self._last_line < unless_within_s:
            return
        self._last_line = now
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Advance]:
        """Show one piece of work of `total` units."""
        if self.quiet:
            yield lambda text: None
        elif self.console.is_terminal:
            with self._live_bar(title, total) as advance:
                yield advance
        else:
            yield self._plain_lines(title, total)

    @contextmanager
    def _live_bar(self, title: str, total: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.console, transient=True, expand=True) as bars:
            task = bars.add_task(title, total=total, text="")
            yield lambda text: bars.update(task, advance=1, text=text)

    def _plain_lines(self, title: str, total: int) -> Advance:
        start, done = time.monotonic(), 0

        def advance(text: str) -> None:
            nonlocal done
            done += 1
            left_s = (time.monotonic() - start) / done * (total - done)
            line = f"{title} {done}/{total} {text}, {timedelta(seconds=round(left_s))} left"
            self.say(line, unless_within_s=self.every_s)

        return advance
