"""Progress: a live line in a terminal, plain lines elsewhere, silence on request."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Advance: TypeAlias = Callable[[str], None]
"""Call it once for each unit of work with a short text, such as `loss 0.31`."""


@dataclass
class Progress:
    """Shows how far a run is.

    Attributes:
        console: Where to; a terminal gets a live bar, anything else one line now and then.
        quiet: Show nothing.
        every_s: Seconds between two plain lines.
    """

    console: Console = field(default_factory=lambda: Console(stderr=True))
    quiet: bool = False
    every_s: float = 10.0

    def say(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
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
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(title, total=total, text="")
            yield lambda text: bars.update(task, advance=1, text=text)

    def _plain_lines(self, title: str, total: int) -> Advance:
        start = last = time.monotonic()
        done = 0

        def advance(text: str) -> None:
            nonlocal last, done
            done += 1
            now = time.monotonic()
            if now - last >= self.every_s:
                last = now
                left_s = (now - start) / done * (total - done)
                self.say(f"{title} {done}/{total} {text}, {left_s:.0f} s left")

        return advance
