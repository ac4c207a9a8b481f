"""From facts to rows."""

import random

from overhaul.core import Fact
from overhaul.report import read_rows
from overhaul.report._rows import read_control_rows, read_trial_rows, selection_metric
from tests.report.sample_run import latency, sample_facts


def test_subjects_come_in_the_order_of_the_run() -> None:
    facts = sample_facts()
    random.Random(0).shuffle(facts)
    assert [row.subject for row in read_rows(facts)] == [
        "original",
        "0 prune_weights",
        "1 train",
        "2 swap_model",
        "3 train",
        "4 deploy",
        "final",
        "artifact",
        "control",
    ]
    assert [row.subject for row in read_control_rows(facts)] == ["control/0 train"]


def test_engines_that_were_tried_have_rows_of_their_own() -> None:
    torch, onnxruntime = read_trial_rows(sample_facts())
    assert (torch.subject, onnxruntime.subject) == ("artifact/torch", "artifact/onnxruntime")
    assert onnxruntime.reasons[0].startswith("MACs are 0.33 x of the original, latency 0.14 x")


def test_steps_are_ordered_by_number() -> None:
    facts = [Fact(name="macs", value=1, subject=f"{index} train") for index in (10, 9, 2)]
    assert [row.subject for row in read_rows(facts)] == ["2 train", "9 train", "10 train"]


def test_each_measurement_is_in_its_place() -> None:
    final = next(row for row in read_rows(sample_facts()) if row.subject == "final")
    assert final.val is not None
    assert final.test is not None
    assert final.macs is not None
    assert (final.val.value, final.test.value, final.macs.value) == (0.9694, 0.9722, 402_000)
    assert final.peak_memory_bytes is not None
    assert final.peak_memory_bytes.value is None


def test_reasons_of_facts_come_before_derived_ones() -> None:
    rows = {row.subject: row for row in read_rows(sample_facts())}
    final, artifact = rows["final"].reasons, rows["artifact"].reasons
    assert final[0] == (
        "peak memory not measured: the process that measures it could not be started"
    )
    assert final[1].startswith("MACs are 0.33 x of the original, latency 0.70 x")
    assert artifact[0].startswith("MACs are 0.33 x of the original, latency 0.14 x")
    assert rows["original"].reasons == ()


def test_a_figure_with_a_reason_shows_it() -> None:
    facts = [Fact(name="macs", value=5, subject="final", reason="too low: no formula for foo")]
    assert read_rows(facts)[0].reasons == ("MACs: too low: no formula for foo",)


def test_the_chosen_engine_is_timed_in_the_row() -> None:
    facts = [
        latency("artifact", 0.3, "torch"),
        latency("artifact", 0.1, "onnxruntime"),
        Fact(name="engine_chosen", value="onnxruntime", subject="2 deploy"),
    ]
    assert read_rows(facts)[0].latency_ms == facts[1]
    assert read_rows(facts[:2])[0].latency_ms == facts[0]


def test_epochs_are_not_the_measurement_after_the_step() -> None:
    facts = [
        Fact(name="accuracy", value=0.5, subject="0 train", split="val"),
        Fact(name="accuracy", value=0.9, subject="0 train", split="val", detail={"epoch": 3}),
    ]
    assert read_rows(facts)[0].val == facts[0]


def test_subjects_that_are_no_models_have_no_row() -> None:
    facts = [Fact(name="samples", value=5, subject="data"), Fact(name="seed", value=0)]
    assert read_rows(facts) == ()


def test_the_metric_is_the_one_that_the_verdict_compares() -> None:
    facts = [
        Fact(name="loss", value=1.0, subject="original", split="val"),
        Fact(name="f1", value=0.5, subject="original", split="val"),
        Fact(name="accuracy", value=0.5, subject="original", split="val"),
    ]
    watched = Fact(name="val_accuracy", value=0.5, subject="0 train", detail={"epoch": 0})
    judged = Fact(name="difference", value=0.0, subject="final", detail={"metric": "auroc"})
    assert selection_metric([]) is None
    assert selection_metric(facts[:1]) == "loss"
    assert selection_metric(facts) == "f1"
    assert selection_metric([*facts, watched]) == "accuracy"
    assert selection_metric([*facts, watched, judged]) == "auroc"
