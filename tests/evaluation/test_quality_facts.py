"""Quality as facts."""

import pytest

from overhaul.evaluation import quality_facts
from tests.evaluation.tiny_task import TinyClassification, answers


def test_every_metric_and_the_loss_have_n() -> None:
    facts = quality_facts(
        TinyClassification(), answers([1, 0, 1, 1], [1, 0, 0, 1]), subject="final", split="test"
    )
    assert [fact.name for fact in facts] == ["accuracy", "loss"]
    assert facts[0].value == 0.75
    assert {(fact.n, fact.split, fact.subject) for fact in facts} == {(4, "test", "final")}


@pytest.mark.parametrize(("said", "expected"), [([1, 1], 1.0), ([0, 0], 0.0)])
def test_all_right_and_all_wrong(said: list[int], expected: float) -> None:
    facts = quality_facts(
        TinyClassification(), answers(said, [1, 1]), subject="1 train", split="val"
    )
    assert facts[0].value == expected
