"""Cost as facts: parameters, operations, bytes on disk, memory."""

from torch import nn

from overhaul.core import Batch, Fact
from overhaul.evaluation._macs import count_macs
from overhaul.evaluation._parameters import count_nonzero_parameters, count_parameters
from overhaul.evaluation._peak_memory import measure_peak_memory
from overhaul.evaluation._stored_size import stored_size


def cost_facts(
    model: nn.Module, batch: Batch, *, subject: str, peak_memory: bool = True
) -> list[Fact]:
    """Return what the model costs: one fact each; latency is measured apart.

    Args:
        model: Not changed.
        batch: Real inputs; their shapes decide about operations and memory.
        subject: Whose cost it is: `original`, `final`, a step's label.
        peak_memory: Whether to measure memory, which starts a process and takes seconds.
    """
    facts = [
        Fact(name="parameters", value=count_parameters(model), subject=subject),
        Fact(name="nonzero_parameters", value=count_nonzero_parameters(model), subject=subject),
        _macs_fact(model, batch, subject),
        *_size_facts(model, subject),
    ]
    if peak_memory:
        facts.append(peak_memory_fact(model, batch, subject=subject))
    return facts


def peak_memory_fact(model: nn.Module, batch: Batch, *, subject: str) -> Fact:
    """Return the peak memory of one forward pass, measured in a process of its own.

    Args:
        model: Not changed.
        batch: Real inputs.
        subject: Whose memory it is: `original`, `final`, a step's label.
    """
    peak = measure_peak_memory(model, batch)
    return Fact(
        name="peak_memory_bytes",
        value=peak.bytes,
        unit="B",
        subject=subject,
        reason=peak.reason,
        detail={"batch_size": len(batch), "threads": 1},
        reproducible=False,
    )


def _macs_fact(model: nn.Module, batch: Batch, subject: str) -> Fact:
    macs = count_macs(model, batch)
    reason = None
    if macs.uncounted:
        reason = f"too low: there is no formula for {', '.join(macs.uncounted)}"
    return Fact(name="macs", value=macs.per_sample, subject=subject, reason=reason)


def _size_facts(model: nn.Module, subject: str) -> list[Fact]:
    raw: int | None
    deflated: int | None
    try:
        size = stored_size(model)
        raw, deflated, reason = size.size_bytes, size.compressed_bytes, None
    except ValueError as error:
        raw, deflated, reason = None, None, str(error)
    return [
        Fact(name=name, value=value, unit="B", subject=subject, reason=reason)
        for name, value in (("size_bytes", raw), ("compressed_bytes", deflated))
    ]
