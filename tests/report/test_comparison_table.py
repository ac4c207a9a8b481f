"""Runs side by side."""

import io

import pytest
from rich.console import Console, RenderableType

from overhaul.core import Fact
from overhaul.report import comparison_table, facts_table, summarize
from tests.report.sample_run import sample_facts


def printed(renderable: RenderableType, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def test_a_summary_has_the_artifacts_cost_where_there_is_one() -> None:
    summary = summarize(sample_facts())
    assert summary.verdict == "not proved"
    assert summary.size_bytes is not None
    assert summary.size_bytes.subject == "artifact"
    assert summary.macs is not None
    assert summary.macs.subject == "final"
    assert summary.against_original is not None
    without = [fact for fact in sample_facts() if fact.subject != "artifact"]
    size = summarize(without).size_bytes
    assert size is None or size.subject == "final"


def test_a_summary_of_an_unfinished_run_has_no_test_figures() -> None:
    summary = summarize(sample_facts(finished=False))
    assert (summary.verdict, summary.test, summary.against_control) == ("unfinished", None, None)


@pytest.mark.parametrize("name", ["a", "runs/resnet20-distilled"])
def test_one_row_for_each_run_fits_into_80_columns(name: str) -> None:
    table = comparison_table({name: sample_facts(), "b": sample_facts(finished=False)})
    assert table.row_count == 2
    text = printed(table)
    assert "…" not in text
    for part in ("accuracy", "97.22 %", "-0.56", "-1.94 to +0.83", "not proved", "unfinished"):
        assert part in text


def test_a_figure_that_is_cut_off_would_be_seen() -> None:
    assert "…" in printed(comparison_table({"a": sample_facts()}), width=40)


def test_a_table_of_facts_has_only_the_columns_that_are_filled() -> None:
    bare = printed(facts_table([Fact(name="macs", value=26_240)]))
    assert "26.2 k" in bare
    assert "interval" not in bare
    timed = Fact(
        name="latency_ms",
        value=0.5,
        unit="ms",
        n=40,
        interval=(0.4, 0.6),
        reason="noisy",
        detail={"batch_size": 1, "threads": 2},
    )
    text = printed(facts_table([timed, Fact(name="macs", value=None, reason="no formula")]))
    for part in ("0.400 to 0.600 ms", "40", "batch of 1, 2 threads, noisy", "no formula"):
        assert part in " ".join(text.split())
