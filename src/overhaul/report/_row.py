"""`Row`: all that was measured on one subject, the form that page and terminal share."""

from dataclasses import dataclass

from overhaul.core import Fact


@dataclass(frozen=True)
class Row:
    """All that was measured on one subject: a line of the table of steps.

    Attributes:
        subject: `original`, `1 train`, `final`, `artifact`, `control`.
        val: The metric on the validation split.
        test: The metric on the test split.
        parameters: Nominal cost, as are the next two.
        nonzero_parameters: How many parameters are not zero.
        macs: Multiply-accumulates for one sample.
        size_bytes: Measured cost, as are the next three.
        compressed_bytes: The file after deflation.
        peak_memory_bytes: Highest resident memory.
        latency_ms: Median latency; of the chosen engine, where there are several.
        reasons: Why nominal and measured differ, and why something is not measured.

    Example:
        >>> Row("final", macs=Fact(name="macs", value=402_000)).latency_ms is None
        True
    """

    subject: str
    val: Fact | None = None
    test: Fact | None = None
    parameters: Fact | None = None
    nonzero_parameters: Fact | None = None
    macs: Fact | None = None
    size_bytes: Fact | None = None
    compressed_bytes: Fact | None = None
    peak_memory_bytes: Fact | None = None
    latency_ms: Fact | None = None
    reasons: tuple[str, ...] = ()
