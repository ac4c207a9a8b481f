"""What is not in the table of steps."""

from overhaul.core import Fact
from overhaul.report._findings import (
    all_lines,
    compact,
    data_lines,
    other_lines,
    quality_on_test,
    shortened,
    skipped_lines,
    timings,
)
from tests.report.sample_run import sample_facts


def test_data_are_told_apart_from_findings() -> None:
    facts = sample_facts()
    assert [line.name for line in data_lines(facts)] == [
        "samples",
        "samples",
        "samples",
        "class counts",
        "split seed",
    ]
    assert [line.name for line in other_lines(facts)] == [
        "threshold",
        "output error",
        "output error",
    ]


def test_counts_without_a_value_show_their_detail() -> None:
    line = next(line for line in data_lines(sample_facts()) if line.name == "class counts")
    assert line.value == ""
    assert line.detail.startswith("0: 107, 1: 108")


def test_what_was_skipped_for_one_reason_is_gathered() -> None:
    facts = [
        Fact(name="skipped", value=f"block.{index}", subject="0 prune", reason="too small")
        for index in range(9)
    ]
    (skipped,) = skipped_lines(facts)
    assert skipped.what.endswith("block.5 and 3 more")
    assert (skipped.subject, skipped.reason) == ("0 prune", "too small")
    assert skipped_lines([Fact(name="skipped", value=None)])[0].reason == "no reason given"


def test_every_fact_but_those_of_epochs_and_skipped_ones_is_listed() -> None:
    facts = sample_facts()
    gathered = [fact for fact in facts if "epoch" in fact.detail or fact.name == "skipped"]
    assert len(gathered) == 2 * (5 + 12 + 12) + 2
    assert len(all_lines(facts)) == len(facts) - len(gathered)


def test_a_difference_is_listed_in_the_unit_of_its_metric() -> None:
    line = next(line for line in all_lines(sample_facts()) if line.name == "difference")
    assert (line.value, line.interval) == ("-0.56 points", "-1.94 to +0.83")


def test_words_and_truth_values() -> None:
    facts = [Fact(name="mode", value="fast", subject="0 x"), Fact(name="ok", value=True)]
    assert [line.value for line in all_lines(facts)] == ["fast", "yes"]


def test_every_metric_on_test_beside_each_other() -> None:
    subjects, rows = quality_on_test(sample_facts())
    assert subjects == ("original", "control", "final", "artifact")
    assert [row.metric for row in rows] == ["accuracy", "f1 macro", "loss"]
    assert rows[0].values[1] == "96.11 % (94.01 to 97.31 %)"


def test_every_latency_is_listed_with_its_engine() -> None:
    found = [(timing.subject, timing.engine, timing.note) for timing in timings(sample_facts())]
    assert ("artifact/torch", "torch", "") in found
    assert ("artifact", "onnxruntime", "noisy machine") in found


def test_long_texts_and_hashes_are_cut() -> None:
    assert shortened("x" * 300).endswith("(60 more characters)")
    assert compact({"hash": "0123456789abcdef" * 4, "n": [1, 2.5]}) == (
        "hash: 0123456789ab..., n: 1, 2.5"
    )
