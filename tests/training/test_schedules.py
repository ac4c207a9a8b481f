import pytest

from overhaul.core import SpecError
from overhaul.training import AdamW, Constant, Cosine, StepDecay


def test_cosine_rises_then_falls_to_its_floor() -> None:
    schedule = Cosine(warmup=0.1, floor=0.2)
    assert schedule.factor(0.05) == pytest.approx(0.5)
    assert schedule.factor(0.1) == pytest.approx(1.0)
    assert schedule.factor(1.0) == pytest.approx(0.2)
    falling = [schedule.factor(p / 100) for p in range(10, 101)]
    assert falling == sorted(falling, reverse=True)


def test_step_decay_at_its_milestones() -> None:
    schedule = StepDecay(milestones=(0.5, 0.75), gamma=0.1)
    assert [schedule.factor(p) for p in (0.0, 0.5, 0.8)] == pytest.approx([1.0, 0.1, 0.01])


def test_constant_stays() -> None:
    assert {Constant().factor(p) for p in (0.0, 0.3, 1.0)} == {1.0}


def test_a_learning_rate_below_zero_is_refused() -> None:
    with pytest.raises(SpecError, match=r"`lr` of adamw must be greater than 0, got -1.0"):
        AdamW(lr=-1.0)
