"""Progress: plain lines where there is no terminal, a bar where there is, silence on request."""

import io

import pytest
from rich.console import Console

from overhaul.core import Progress


def shown(*, terminal: bool, quiet: bool = False, every_s: float = 0.0) -> str:
    """Return what three units of work print."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100)
    progress = Progress(console=console, quiet=quiet, every_s=every_s)
    progress.say("[bold]start[/bold]")
    with progress.bar("train", 3) as advance:
        for loss in (3, 2, 1):
            advance(f"loss {loss}")
    return file.getvalue()


def test_plain_lines_have_count_text_and_time_left() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "[bold]start[/bold]"
    assert [line.partition(",")[0] for line in lines[1:]] == [
        "train 1/3 loss 3",
        "train 2/3 loss 2",
        "train 3/3 loss 1",
    ]
    assert all(line.endswith("0:00:00 left") for line in lines[1:])


def test_plain_lines_come_now_and_then() -> None:
    assert shown(terminal=False, every_s=1000.0).splitlines() == ["[bold]start[/bold]"]


def test_a_terminal_gets_a_bar() -> None:
    text = shown(terminal=True)
    assert "100%" in text
    assert "loss 1" in text


def test_a_line_may_be_left_out_if_there_was_one_just_now() -> None:
    file = io.StringIO()
    progress = Progress(console=Console(file=file))
    for text in ("first", "second"):
        progress.say(text, unless_within_s=1000.0)
    progress.say("third")
    assert file.getvalue().split() == ["first", "third"]


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_nothing(terminal: bool) -> None:
    assert shown(terminal=terminal, quiet=True) == ""
