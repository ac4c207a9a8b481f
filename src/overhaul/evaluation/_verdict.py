"""`Verdict`: what a run has shown on the sealed test split."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from overhaul.core import Fact
from overhaul.evaluation._comparison import Comparison, Status


class Verdict(BaseModel):
    """What a run has shown on the sealed test split.

    Attributes:
        original: The final model against the original; None if there is nothing to compare with.
        control: The final model against what the same training alone gives; None likewise.
        original_reason: Why there is no comparison with the original.
        control_reason: Why there is no comparison with the control.
        test_opened: How often the test split has been opened, this time included.

    Example:
        >>> print(
        ...     Verdict(
        ...         original_reason="it cannot do this task",
        ...         control_reason="no training",
        ...         test_opened=1,
        ...     )
        ... )
        Not proved: there was nothing to compare with.
        No comparison with the original: it cannot do this task.
        No comparison with the control: no training.
        The test split was opened once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    original: Comparison | None = None
    control: Comparison | None = None
    original_reason: str | None = None
    control_reason: str | None = None
    test_opened: int

    @model_validator(mode="after")
    def _absence_has_a_reason(self) -> "Verdict":
        for name in ("original", "control"):
            if (getattr(self, name) is None) == (getattr(self, f"{name}_reason") is None):
                raise ValueError(f"give either `{name}` or `{name}_reason`, and not both")
        return self

    @classmethod
    def from_facts(cls, facts: Iterable[Fact]) -> "Verdict":
        """Return the verdict that `verdict_facts` wrote down."""
        (fact,) = (fact for fact in facts if fact.name == "verdict")
        return cls.model_validate(fact.detail["verdict"])

    @property
    def headline(self) -> Comparison | None:
        """The comparison that decides: with the original, or with the control in its absence."""
        return self.original or self.control

    @property
    def status(self) -> Status:
        """`proved`, `not proved` or `refuted`, of the comparison that decides."""
        return "not proved" if self.headline is None else self.headline.status

    def __str__(self) -> str:
        """Return the verdict as a few plain sentences, one a line."""
        headline = self.headline
        lines = ["Not proved: there was nothing to compare with."]
        if headline is not None:
            sentence = headline.describe()
            lines = [f"{sentence[0].upper()}{sentence[1:]}."]
        if self.original is None:
            lines.append(f"No comparison with the original: {self.original_reason}.")
        if self.control is None:
            lines.append(f"No comparison with the control: {self.control_reason}.")
        else:
            evidence = "" if self.control is headline else f" ({self.control.evidence()})"
            lines.append(
                "Against the control, which had the same training without the methods: "
                f"{self.control.effect}{evidence}."
            )
        lines.append(_opened(self.test_opened))
        return "\n".join(lines)


def verdict_facts(verdict: Verdict) -> list[Fact]:
    """Return one `difference` for each comparison, and the `verdict`."""
    comparisons = [c for c in (verdict.original, verdict.control) if c is not None]
    headline = verdict.headline
    return [
        *(_difference_fact(comparison) for comparison in comparisons),
        Fact(
            name="verdict",
            value=verdict.status,
            subject="final",
            split="test",
            n=None if headline is None else headline.n,
            reason=_reasons(verdict),
            detail={
                "reference": None if headline is None else headline.reference,
                "sentences": str(verdict).splitlines(),
                "verdict": verdict.model_dump(mode="json"),
            },
        ),
    ]


def _difference_fact(comparison: Comparison) -> Fact:
    detail: dict[str, Any] = {
        "metric": comparison.metric,
        "reference": comparison.reference,
        "verdict": comparison.status,
        "effect": comparison.effect,
        "max_drop": comparison.max_drop,
        "mcnemar_p": comparison.mcnemar_p,
        "method": comparison.method,
    }
    return Fact(
        name="difference",
        value=comparison.difference,
        subject=comparison.subject,
        split="test",
        n=comparison.n,
        interval=comparison.interval,
        reason=comparison.method if comparison.interval is None else None,
        detail=detail,
    )


def _reasons(verdict: Verdict) -> str | None:
    reasons = [
        f"no comparison with the {name}: {reason}"
        for name, reason in (
            ("original", verdict.original_reason),
            ("control", verdict.control_reason),
        )
        if reason is not None
    ]
    return "; ".join(reasons) or None


def _opened(times: int) -> str:
    if times == 1:
        return "The test split was opened once."
    return (
        f"The test split was opened {times} times: whatever was chosen after a look at it makes "
        "these figures too good."
    )
