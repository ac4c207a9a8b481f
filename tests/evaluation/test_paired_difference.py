"""The difference between two models on the same samples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overhaul.core import DataError, Outputs, Targets
from overhaul.evaluation import (
    PairedDifference,
    Predictions,
    paired_difference,
    predict,
    tango_interval,
)
from tests.evaluation.tiny_task import (
    TinyClassification,
    TinyF1,
    TinyRegression,
    TinySplit,
    answers,
    paired_answers,
)

ACCURACY, F1, MAE = TinyClassification(), TinyF1(), TinyRegression()


def bounds(found: PairedDifference) -> tuple[float, float]:
    assert found.interval is not None
    return found.interval


@given(st.data())
@settings(max_examples=40)
def test_swapping_mirrors_and_the_interval_holds_the_difference(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 60))
    true, first, second = (
        data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for _ in range(3)
    )
    one, other = answers(first, true), answers(second, true)
    forward, back = paired_difference(ACCURACY, one, other), paired_difference(ACCURACY, other, one)
    assert back.difference == -forward.difference
    lower, upper = bounds(forward)
    assert bounds(back) == pytest.approx((-upper, -lower))
    assert lower <= forward.difference <= upper
    assert forward.mcnemar_p == pytest.approx(back.mcnemar_p)
    assert forward.n == n


def noisy_values(n: int, seed: int = 0) -> tuple[Predictions, Predictions]:
    generator = torch.Generator().manual_seed(seed)
    true, first, second = (torch.randn(n, generator=generator) for _ in range(3))
    return Predictions(true + 0.5 * first, true), Predictions(true + 0.3 * second, true)


def test_an_error_is_compared_by_the_mean_of_its_differences() -> None:
    first, second = noisy_values(200)
    found = paired_difference(MAE, first, second)
    assert found.mcnemar_p is None
    assert found.method in ("paired bootstrap", "Student's t")
    assert found.difference == pytest.approx(found.value - found.reference_value)
    lower, upper = bounds(found)
    assert 0 < lower < found.difference < upper
    back = paired_difference(MAE, second, first)
    assert bounds(back) == pytest.approx((-upper, -lower))


def test_a_metric_that_is_no_mean_is_computed_again_on_resamples() -> None:
    first, second = paired_answers(60, 20, 5, 15)
    zeros = torch.randint(0, 2, (100,), generator=torch.Generator().manual_seed(0))
    first, second = Predictions(first.outputs, zeros), Predictions(second.outputs, zeros)
    found = paired_difference(F1, first, second)
    lower, upper = bounds(found)
    assert found.method == "paired bootstrap"
    assert found.value == F1.metrics(first.outputs, first.targets)["f1"]
    assert lower <= found.difference <= upper
    back = paired_difference(F1, second, first)
    assert back.difference == -found.difference
    assert bounds(back) == pytest.approx((-upper, -lower))


def test_recomputing_agrees_with_resampled_means() -> None:
    class MaeAgain(TinyRegression):
        def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
            return None

    first, second = noisy_values(300)
    fast, slow = (paired_difference(task, first, second) for task in (MAE, MaeAgain()))
    assert slow.difference == pytest.approx(fast.difference, abs=1e-6)
    width = bounds(fast)[1] - bounds(fast)[0]
    assert bounds(slow) == pytest.approx(bounds(fast), abs=0.25 * width)


@pytest.mark.parametrize("n", [1, 20, 100])
def test_identical_answers_do_not_prove_equality(n: int) -> None:
    # A bootstrap alone says [0, 0] here, whatever n is.
    one = answers([1] * n, [1] * n)
    found = paired_difference(ACCURACY, one, one)
    assert found.difference == 0
    assert found.interval == tango_interval(0, 0, n)
    assert found.method == "Tango score interval"
    assert found.mcnemar_p == 1


def test_few_discordant_pairs_get_the_wider_interval() -> None:
    found = paired_difference(ACCURACY, *paired_answers(97, 0, 1, 2))
    lower, upper = bounds(found)
    assert found.method == "Tango score interval"
    assert lower == pytest.approx(tango_interval(0, 1, 100)[0])
    assert upper > 0  # the bootstrap's is 0 at most


@pytest.mark.parametrize("right", [0, 1])
def test_all_right_or_all_wrong(right: int) -> None:
    found = paired_difference(ACCURACY, answers([right] * 9, [1] * 9), answers([1] * 9, [1] * 9))
    assert (found.value, found.reference_value) == (right, 1.0)
    lower, upper = bounds(found)
    assert -1 <= lower <= right - 1 <= upper < 1


def test_one_sample() -> None:
    accuracy = paired_difference(ACCURACY, answers([1], [1]), answers([0], [1]))
    assert accuracy.difference == 1
    assert bounds(accuracy)[0] < 0
    one = Predictions(torch.ones(1), torch.zeros(1))
    error = paired_difference(MAE, one, Predictions(torch.zeros(1), torch.zeros(1)))
    assert (error.difference, error.interval) == (1, None)
    assert error.method == "no interval: too few samples"
    assert paired_difference(F1, answers([1], [1]), answers([1], [1])).interval is None


def test_outputs_that_are_the_same_but_for_rounding_do_not_differ() -> None:
    # Such as those of one model in two engines.
    values, _ = noisy_values(10)
    found = paired_difference(MAE, values, values)
    assert (found.interval, found.method) == ((0, 0), "the outputs are the same but for rounding")
    classes = answers([0, 1] * 20, [0, 1, 1, 1] * 10)
    assert isinstance(classes.outputs, Tensor)
    rounded = Predictions(classes.outputs + 1e-7 * torch.rand(40, 2), classes.targets)
    assert paired_difference(F1, classes, rounded).interval == (0, 0)


def test_outputs_that_differ_without_the_metric_seeing_it_give_no_interval() -> None:
    classes = answers([0, 1] * 20, [0, 1, 1, 1] * 10)
    assert isinstance(classes.outputs, Tensor)
    surer = Predictions(2 * classes.outputs, classes.targets)
    found = paired_difference(F1, classes, surer)
    assert (found.difference, found.interval) == (0, None)
    assert found.method.startswith("no interval: the outputs differ")


def test_errors_of_0_and_1_are_not_taken_for_right_and_wrong() -> None:
    true = torch.zeros(10)
    mirrored = Predictions(torch.ones(10), true), Predictions(-torch.ones(10), true)
    found = paired_difference(MAE, *mirrored)
    assert (found.interval, found.mcnemar_p) == (None, None)


def test_scores_between_0_and_1_that_do_not_differ_get_the_interval_of_right_and_wrong() -> None:
    class Half(TinyClassification):
        def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
            return torch.full((40,), 0.5)

    one, other = paired_answers(20, 10, 10, 0)
    found = paired_difference(Half(), one, other)
    assert (found.interval, found.mcnemar_p) == (tango_interval(0, 0, 40), None)


def test_different_samples_are_refused() -> None:
    with pytest.raises(DataError, match="on the same samples, got 2 and 3"):
        paired_difference(ACCURACY, answers([1, 1], [1, 1]), answers([1] * 3, [1] * 3))
    with pytest.raises(DataError, match="but their targets differ"):
        paired_difference(ACCURACY, answers([1, 1], [1, 1]), answers([1, 1], [1, 0]))


def test_a_metric_that_is_not_defined_is_refused() -> None:
    none = answers([0, 0], [0, 0])
    with pytest.raises(DataError, match="'f1' must be a finite number to be compared, got nan"):
        paired_difference(F1, none, none)


def test_named_outputs_with_missing_labels() -> None:
    class First(TinyRegression):
        def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
            assert isinstance(outputs, dict)
            return outputs["a"]

    targets = {"a": torch.tensor([0.0, 1.0, torch.nan])}
    split = TinySplit((torch.randn(3, 1),), targets)
    one, other = (predict(lambda x, k=k: {"a": x[:, 0] * k}, split) for k in (1, 2))
    assert paired_difference(First(), one, other).n == 3


def coverage_of_accuracy(rounds: int, n: int, p: float, q: float) -> float:
    """Draw paired answers again and again; return how often the interval holds the truth."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(rounds):
        b, c, rest = rng.multinomial(n, [p, q, 1 - p - q])
        lower, upper = bounds(paired_difference(ACCURACY, *paired_answers(rest, b, c, 0)))
        covered += lower <= p - q <= upper
    return covered / rounds


@pytest.mark.parametrize(("p", "q"), [(0.0, 0.0), (0.01, 0.0), (0.06, 0.1)])
def test_the_interval_of_accuracy_covers(p: float, q: float) -> None:
    assert coverage_of_accuracy(100, 80, p, q) >= 0.9


def test_the_interval_of_an_error_covers_in_small_samples() -> None:
    true_difference = 0.2 * (2 / np.pi) ** 0.5
    covered = 0
    for seed in range(200):
        lower, upper = bounds(paired_difference(MAE, *noisy_values(10, seed)))
        covered += lower <= true_difference <= upper
    assert covered >= 180


def test_the_same_seed_gives_the_same_interval() -> None:
    first, second = noisy_values(50)
    found = [paired_difference(MAE, first, second, seed=seed) for seed in (1, 1)]
    assert found[0] == found[1]
