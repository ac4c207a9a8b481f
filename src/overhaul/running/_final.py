"""The final evaluation: the sealed test split is opened, once, for everyone at the same time."""

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from overhaul.core import Deployed, Fact, RunFolder
from overhaul.evaluation import (
    Comparison,
    Goal,
    Predictions,
    Verdict,
    compare,
    predict,
    quality_facts,
    verdict_facts,
)
from overhaul.running._steps import Setting

Contender: TypeAlias = Callable[[], nn.Module | Deployed]
"""Returns a model, or a deployed one, when it is its turn."""


def judge(
    setting: Setting,
    folder: RunFolder,
    goal: Goal,
    contenders: dict[str, Contender],
    why_no_original: str | None,
    why_no_control: str | None,
    key: str,
) -> list[Fact]:
    """Open the test split, judge every contender on it, and return what was found.

    Args:
        setting: What the run works on.
        folder: Its manifest counts the opening.
        goal: What is to be proved.
        contenders: `final` and, where there are any, `original` and `control`.
        why_no_original: Why the original is not among them.
        why_no_control: Why the control is not among them.
        key: The key of what is judged, for the record of openings.
    """
    setting.progress.say(f"the final evaluation on {len(setting.data.test)} sealed test samples")
    opened = folder.count_test_opening(key)
    test = setting.data.test.open()
    predictions = {name: predict(contender(), test) for name, contender in contenders.items()}

    def against(reference: str) -> Comparison | None:
        if reference not in predictions:
            return None
        return compare(
            setting.task,
            predictions["final"],
            predictions[reference],
            goal=goal,
            reference=reference,
            seed=setting.seed,
        )

    verdict = Verdict(
        original=against("original"),
        control=against("control"),
        original_reason=why_no_original,
        control_reason=why_no_control,
        test_opened=opened,
    )
    return [*_quality(setting, predictions), *verdict_facts(verdict)]


def _quality(setting: Setting, predictions: dict[str, Predictions]) -> list[Fact]:
    facts: list[Fact] = []
    for name, found in predictions.items():
        facts += quality_facts(setting.task, found, subject=name, split="test")
    return facts
