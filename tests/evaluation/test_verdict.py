"""The verdict: whether a model is not worse by more than was allowed."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overhaul.core import SpecError
from overhaul.evaluation import (
    Comparison,
    Goal,
    Predictions,
    Status,
    Verdict,
    compare,
    verdict_facts,
)
from tests.evaluation.tiny_task import TinyClassification, TinyRegression, answers, paired_answers

ACCURACY, MAE = TinyClassification(), TinyRegression()


def comparison(
    counts: tuple[int, int, int, int], max_drop: float = 0.01, reference: str = "original"
) -> Comparison:
    one, other = paired_answers(*counts)
    return compare(ACCURACY, one, other, goal=Goal(max_drop=max_drop), reference=reference)


def test_a_goal_is_data_and_refuses_a_negative_drop() -> None:
    assert Goal().max_drop == 0.01
    assert Goal.from_yaml(Goal(max_drop=0.005).to_yaml()) == Goal(max_drop=0.005)
    with pytest.raises(SpecError, match=r"`max_drop` of goal must be greater than or equal to 0"):
        Goal(max_drop=-0.1)
    with pytest.raises(SpecError, match=r"`max_drop` of goal must be a finite number"):
        Goal(max_drop=float("nan"))


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ((9000, 20, 20, 960), "proved"),
        ((80, 2, 2, 16), "not proved"),
        ((5000, 0, 1000, 4000), "refuted"),
        ((5000, 1000, 0, 4000), "proved"),
    ],
)
def test_status(counts: tuple[int, int, int, int], status: Status) -> None:
    assert comparison(counts).status == status


@pytest.mark.parametrize(("shift", "status"), [(-0.1, "proved"), (0.1, "refuted")])
def test_less_is_better_for_an_error(shift: float, status: Status) -> None:
    true = torch.zeros(200)
    noise = torch.rand(200, generator=torch.Generator().manual_seed(0))
    reference, final = Predictions(noise + 1, true), Predictions(noise * 1.01 + 1 + shift, true)
    found = compare(MAE, final, reference, goal=Goal(max_drop=0.01))
    assert found.status == status
    assert found.effect == ("gain shown" if shift < 0 else "harm shown")
    assert "points" not in found.describe()
    assert found.describe().startswith("not worse than the original by more than 0.01: ")


@given(
    st.tuples(*[st.integers(0, 30)] * 4).filter(lambda counts: sum(counts) > 0),
    st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
def test_status_is_monotone_in_what_is_allowed(
    counts: tuple[int, int, int, int], drops: list[float]
) -> None:
    order = ("refuted", "not proved", "proved")
    strict, lax = (comparison(counts, drop).status for drop in sorted(drops))
    assert order.index(strict) <= order.index(lax)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.floats(0, 1))
def test_identical_predictions_are_never_refuted(said: list[int], max_drop: float) -> None:
    one = answers(said, [1] * len(said))
    found = compare(ACCURACY, one, one, goal=Goal(max_drop=max_drop))
    assert found.difference == 0
    assert found.status != "refuted"
    assert found.effect == "no gain shown"


def test_without_an_interval_nothing_is_proved() -> None:
    one = Predictions(torch.zeros(1), torch.zeros(1))
    found = compare(MAE, one, one, goal=Goal(max_drop=100))
    assert found.interval is None
    assert (found.status, found.effect) == ("not proved", "no gain shown")
    assert "no interval: too few samples" in found.describe()


def test_the_sentence() -> None:
    found = Comparison(
        metric="accuracy",
        higher_is_better=True,
        subject="final",
        reference="original",
        value=0.9712,
        reference_value=0.9733,
        difference=-0.0021,
        interval=(-0.006, 0.0017),
        method="Tango score interval",
        mcnemar_p=0.3593,
        n=1797,
        max_drop=0.01,
        status="proved",
    )
    assert found.describe() == (
        "not worse than the original by more than 1 point: proved (accuracy 0.9712 against "
        "0.9733, difference -0.21 points, 95 % interval -0.60 to +0.17, exact McNemar p = 0.36, "
        "n = 1797)"
    )


@pytest.mark.parametrize(
    ("interval", "p", "effect", "is_said"),
    [
        ((-0.0618, -0.0024), 0.052, "harm shown", True),
        ((-0.0618, 0.0004), 0.049, "no gain shown", True),
        ((-0.0618, -0.0024), 0.03, "harm shown", False),
        ((-0.0618, 0.0004), 0.06, "no gain shown", False),
    ],
)
def test_where_p_value_and_interval_disagree_the_sentence_says_which_counts(
    interval: tuple[float, float], p: float, effect: str, is_said: bool
) -> None:
    found = Comparison(
        metric="accuracy",
        higher_is_better=True,
        subject="final",
        reference="control",
        value=0.90,
        reference_value=0.93,
        difference=-0.03,
        interval=interval,
        method="Tango score interval",
        mcnemar_p=p,
        n=359,
        max_drop=0.02,
        status="not proved",
    )
    assert found.effect == effect
    assert ("the words follow the interval" in found.evidence()) == is_said


@pytest.mark.parametrize(
    ("counts", "effect"),
    [
        ((100, 40, 5, 10), "gain shown"),
        ((100, 5, 40, 10), "harm shown"),
        ((100, 5, 6, 10), "no gain shown"),
    ],
)
def test_gain_harm_or_nothing_against_the_control(
    counts: tuple[int, int, int, int], effect: str
) -> None:
    control = comparison(counts, reference="control")
    verdict = Verdict(original=comparison((9000, 20, 20, 960)), control=control, test_opened=1)
    assert control.effect == effect
    assert f"Against the control, which had the same training without the methods: {effect} (" in (
        str(verdict)
    )


def test_the_original_decides_if_there_is_one() -> None:
    original = comparison((9000, 20, 20, 960))
    control = comparison((5000, 0, 1000, 4000), reference="control")
    both = Verdict(original=original, control=control, test_opened=1)
    assert both.status == "proved"
    alone = Verdict(original_reason="it cannot do this task", control=control, test_opened=1)
    assert alone.status == "refuted"
    text = str(alone)
    assert text.startswith("Not worse than the control by more than 1 point: refuted (")
    assert "No comparison with the original: it cannot do this task." in text
    assert text.count("n = 10000") == 1
    neither = Verdict(original_reason="no", control_reason="no", test_opened=1)
    assert neither.status in get_args(Status)
    assert neither.status == "not proved"


def test_an_absent_comparison_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="give either `control` or `control_reason`"):
        Verdict(original=comparison((8, 1, 1, 0)), test_opened=1)
    with pytest.raises(ValueError, match="give either `original` or `original_reason`"):
        Verdict(
            original=comparison((8, 1, 1, 0)),
            original_reason="both",
            control_reason="none",
            test_opened=1,
        )


def test_a_second_look_at_the_test_split_is_said() -> None:
    verdict = Verdict(original_reason="a", control_reason="b", test_opened=3)
    assert "opened 3 times" in str(verdict)


def test_json_round_trip() -> None:
    verdict = Verdict(
        original=comparison((80, 2, 2, 16)), control_reason="no training", test_opened=1
    )
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_facts() -> None:
    verdict = Verdict(
        original=comparison((9000, 20, 20, 960)),
        control=comparison((9000, 20, 21, 959), reference="control"),
        test_opened=1,
    )
    original, control, last = verdict_facts(verdict)
    assert (original.name, original.split, original.n) == ("difference", "test", 10000)
    assert original.value == 0
    assert original.interval is not None
    assert set(original.detail) >= {
        *("metric", "reference", "verdict", "max_drop", "mcnemar_p", "method"),
    }
    assert control.detail["reference"] == "control"
    assert (last.name, last.value, last.reason) == ("verdict", "proved", None)
    assert control.detail["effect"] == "no gain shown"


def test_facts_of_what_is_absent_have_reasons() -> None:
    (last,) = verdict_facts(Verdict(original_reason="a", control_reason="b", test_opened=1))
    assert last.value == "not proved"
    assert last.reason == "no comparison with the original: a; no comparison with the control: b"
