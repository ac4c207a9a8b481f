"""What the run came to, in words."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from overhaul.core import Fact
from overhaul.report._cells import spoken
from overhaul.report._numbers import change, change_interval, number, p_value, plain
from overhaul.report._rows import read_rows, selection_metric

UNFINISHED = "unfinished"
_SAYS = {
    "proved": "The final model keeps the quality that was asked for.",
    "not proved": "The data do not settle whether the final model keeps the quality that was "
    "asked for.",
    "refuted": "The final model does not keep the quality that was asked for.",
}


@dataclass(frozen=True)
class Conclusion:
    """What the run came to.

    Attributes:
        word: `proved`, `not proved`, `refuted`, or `unfinished`.
        sentences: The same with its figures; at least one.
        effect: What the methods gave beyond the training, in words: `no gain shown against the
            control`. Empty where there is no control; a sentence then says why.
    """

    word: str
    sentences: tuple[str, ...]
    effect: str = ""


@dataclass(frozen=True)
class Difference:
    """One comparison on the test split, as text.

    Attributes:
        subject: What was compared.
        reference: With what.
        metric: By which metric.
        value: The difference with its sign.
        interval: Its 95 % interval.
        verdict: What it says about `max_drop`.
        effect: Whether a gain or harm is shown at all.
        max_drop: The drop that was allowed.
        p_value: Of the exact McNemar test.
        n: Samples.
        method: How the interval was made.
        reason: What else is to be known about it.
    """

    subject: str
    reference: str
    metric: str
    value: str
    interval: str
    verdict: str
    effect: str
    max_drop: str
    p_value: str
    n: str
    method: str
    reason: str


def read_conclusion(facts: Sequence[Fact]) -> Conclusion:
    """Return the verdict of the run, or that there is none yet.

    Example:
        >>> read_conclusion([]).word
        'unfinished'
    """
    given = [fact for fact in facts if fact.name == "verdict" and isinstance(fact.value, str)]
    if not given:
        return Conclusion(UNFINISHED, (_unfinished(facts),))
    word, detail = str(given[-1].value), given[-1].detail
    sentences, differences = detail.get("sentences"), read_differences(facts)
    effects = [found.effect for found in differences if found.reference == "control"]
    effect = f"{effects[-1]} against the control" if effects else ""
    if isinstance(sentences, list) and sentences:
        return Conclusion(word, tuple(str(sentence) for sentence in sentences), effect)
    derived = tuple(_as_sentence(difference) for difference in differences)
    said = (_SAYS.get(word, f"The verdict is: {word}."),)
    reason = (f"{given[-1].reason}.",) if given[-1].reason else ()
    return Conclusion(word, (*said, *derived, *reason), effect)


def read_differences(facts: Sequence[Fact]) -> tuple[Difference, ...]:
    """Return every comparison on the test split."""
    metric = selection_metric(facts) or ""
    return tuple(_difference(fact, metric) for fact in facts if fact.name == "difference")


def how_to_resume(folder: str | None = None) -> str:
    """Say how an unfinished run is continued."""
    where = folder if folder is not None else "FOLDER"
    return (
        "To go on, start the same line again: "
        f"'overhaul run ... -o {shlex.quote(where)}', or "
        f"'recipe.run(..., out=\"{where}\")'. Finished steps are used again."
    )


def _unfinished(facts: Sequence[Fact]) -> str:
    subjects = [row.subject for row in read_rows(facts)]
    steps = [subject for subject in subjects if subject[:1].isdigit()]
    if not steps:
        return "This run has no verdict yet; no step is finished."
    done = f"{len(steps)} step{'s are' if len(steps) > 1 else ' is'} finished"
    return f"This run has no verdict yet; {done}, the last is '{steps[-1]}'."


def _difference(fact: Fact, selection: str) -> Difference:
    detail: dict[str, Any] = fact.detail
    metric = str(detail.get("metric", selection))
    value = number(fact)
    p, max_drop = _number_in(detail, "mcnemar_p"), _number_in(detail, "max_drop")
    return Difference(
        subject=fact.subject or "final",
        reference=str(detail.get("reference", "original")),
        metric=metric,
        value=change(value, metric) if value is not None else "-",
        interval=change_interval(fact.interval, metric) if fact.interval is not None else "-",
        verdict=str(detail.get("verdict") or "-"),
        effect=str(detail.get("effect") or "-"),
        max_drop=change(max_drop, metric).removeprefix("+") if max_drop is not None else "-",
        p_value=p_value(p) if p is not None else "-",
        n=plain(fact.n) if fact.n is not None else "-",
        method=str(detail.get("method") or "-"),
        reason=fact.reason or "",
    )


def _as_sentence(difference: Difference) -> str:
    effect = f": {difference.effect}" if difference.effect != "-" else ""
    return (
        f"{difference.subject.capitalize()} against {difference.reference} on test: "
        f"{difference.value} {spoken(difference.metric)} (95 % {difference.interval}, "
        f"n = {difference.n}){effect}."
    )


def _number_in(detail: Mapping[str, Any], key: str) -> float | None:
    value = detail.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
