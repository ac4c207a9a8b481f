"""`Fact`: one measurement, with all that is needed to read it years later."""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

SplitName: TypeAlias = Literal["train", "val", "test"]
"""A part of the data: what training sees, what choices are made on, what the verdict is on."""


class Fact(BaseModel):
    """One measurement.

    Attributes:
        name: What was measured, in standard terms: `accuracy`, `macs`, `latency_ms`.
        value: The figure, a word, or None where it could not be measured (then `reason` says why).
        unit: Its unit; empty for counts, fractions and words.
        subject: What was measured: `original`, `final`, `control`, `artifact`, or the label of
            the step after which the model was measured (`0 prune_weights`).
        split: The data it was measured on.
        n: How many samples (or timings) are behind it.
        interval: Lower and upper bound of its 95 % interval.
        reason: Why it is not what one would expect.
        detail: Everything else that is needed to repeat it (batch size, threads, engine).
        reproducible: False for what differs between two equal runs: times, memory, machine.

    Example:
        >>> Fact(name="accuracy", value=0.97, split="val", n=360).value
        0.97
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float | int | str | bool | None
    unit: str = ""
    subject: str = ""
    split: SplitName | None = None
    n: int | None = None
    interval: tuple[float, float] | None = None
    reason: str | None = None
    detail: dict[str, Any] = {}
    reproducible: bool = True

    def to_json(self) -> str:
        """Return the fact as one line of JSON without its empty fields."""
        return self.model_dump_json(exclude_defaults=True)
