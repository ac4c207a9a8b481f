"""The report in a terminal."""

import io

import pytest
from rich.console import Console, RenderableType

from overhaul.core import Fact
from overhaul.report import read_rows, step_table, verdict_text
from tests.report.sample_run import SENTENCES, facts_with_effect, sample_facts


def _printed(renderable: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_every_row_is_there() -> None:
    facts = sample_facts()
    assert step_table(facts).row_count == len(read_rows(facts)) == 9


def test_no_figure_is_cut_off_at_80_columns() -> None:
    text = _printed(step_table(sample_facts()))
    assert "…" not in text
    assert all(figure in text for figure in ("97.22 %", "248 kB", "0.0580 ms", "-87.22", "0.14x"))


def test_a_figure_that_is_cut_off_would_be_seen() -> None:
    assert "…" in _printed(step_table(sample_facts()), width=40)


def test_reasons_are_numbered_once() -> None:
    text = _printed(step_table(sample_facts()), width=300)
    assert "0 prune_weights [1,2]" in text
    assert "1 train [1,2]" in text
    text = " ".join(text.split())
    assert "Deflated, the file takes 104 kB. (Figures of '0 prune_weights'.)" in text
    assert (
        "60%), but MACs stay at 1.20 M (1.00 x): a dense kernel multiplies by zero too. [3]" in text
    )
    assert text.count("a dense kernel multiplies by zero too") == 1


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("prune_channels", ("0 prune_", "channels [1]")),
        ("remove_redundant", ("0 remove_", "redundant [1]")),
        ("prune_by_trial", ("0 prune_", "by_trial [1]")),
        ("train", ("0 train [1]",)),
    ],
)
def test_a_long_name_breaks_at_a_word(name: str, lines: tuple[str, ...]) -> None:
    facts = [fact for fact in sample_facts() if fact.subject not in ("0 prune_weights", "control")]
    renamed = [
        fact.model_copy(update={"subject": f"0 {name}"})
        for fact in sample_facts()
        if fact.subject == "0 prune_weights"
    ]
    one = [fact.model_copy(update={"reason": "slow"}) for fact in renamed if fact.name == "macs"]
    others = [fact for fact in renamed if fact.name not in ("macs", "nonzero_parameters")]
    starts = [
        line.split("  ")[0] for line in _printed(step_table([*facts, *others, *one])).splitlines()
    ]
    place = starts.index(lines[0])
    assert tuple(starts[place : place + len(lines)]) == lines


def test_markup_in_a_name_is_text() -> None:
    facts = [
        Fact(name="macs", value=5, subject="0 [bold]x[/bold]", reason="[red]y"),
        Fact(name="verdict", value="proved", detail={"sentences": ["[/blink] z"]}),
    ]
    assert "0 [bold]x[/bold]" in _printed(step_table(facts), width=120)
    assert "[red]y" in _printed(step_table(facts), width=120)
    assert "[/blink] z" in _printed(verdict_text(facts))


def test_the_verdict_and_its_sentences() -> None:
    first, *rest = verdict_text(sample_facts()).plain.splitlines()
    assert (first, rest) == ("not proved; no gain shown against the control", SENTENCES)


@pytest.mark.parametrize(
    ("effect", "style"),
    [
        ("gain shown", "bold green"),
        ("no gain shown", "bold yellow"),
        ("harm shown", "bold red"),
    ],
)
def test_what_the_methods_gave_stands_beside_the_verdict(effect: str, style: str) -> None:
    text = verdict_text(facts_with_effect(effect))
    said = f"{effect} against the control"
    assert text.plain.splitlines()[0] == f"not proved; {said}"
    assert style in {str(s.style) for s in text.spans if text.plain[s.start : s.end] == said}


def test_an_unfinished_run_says_how_to_go_on() -> None:
    text = verdict_text(sample_facts(finished=False)).plain
    assert text.startswith("unfinished\n")
    assert "start the same line again" in text


@pytest.mark.parametrize("facts", [[], [Fact(name="samples", value=5, subject="data")]])
def test_nothing_measured_is_an_empty_table(facts: list[Fact]) -> None:
    assert step_table(facts).row_count == 0
