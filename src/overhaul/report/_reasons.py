"""Why nominal and measured differ, as far as the facts alone show it.

Each function reads one row beside the original and returns one sentence, with its figures, or None.
"""

from overhaul.core import Fact
from overhaul.report._numbers import count, number, ratio, size
from overhaul.report._ratios import cost_ratio, latency_ratio, other_setting
from overhaul.report._row import Row

_CLEARLY = 0.1
_SAME = 0.05
_FEWER = 0.75


def derived_reasons(row: Row, original: Row) -> tuple[str, ...]:
    """Return a sentence for each measure whose nominal and measured change differ.

    Args:
        row: What was measured on one subject.
        original: The same on the original.

    Example:
        >>> dense = Fact(name="macs", value=100), Fact(name="latency_ms", value=1.0, unit="ms")
        >>> small = Fact(name="macs", value=50), Fact(name="latency_ms", value=0.8, unit="ms")
        >>> original = Row("original", macs=dense[0], latency_ms=dense[1])
        >>> print(*derived_reasons(Row("final", macs=small[0], latency_ms=small[1]), original))
        MACs are 0.50 x of the original, latency 0.80 x: time also depends on memory \
traffic, the overhead of each operator and how well its kernel uses the machine, which MACs do not \
count.
    """
    found = (
        zeros_stored_densely(row, original),
        bytes_per_parameter(row, original),
        zeros_multiplied(row, original),
        latency_against_macs(row, original),
    )
    return tuple(sentence for sentence in found if sentence is not None)


def zeros_stored_densely(row: Row, original: Row) -> str | None:
    """Explain a file that did not shrink although parameters became zero."""
    zeros = _new_zeros(row, original)
    size_ratio, parameters_ratio = _file_against_parameters(row, original)
    if zeros is None or size_ratio is None or parameters_ratio is None:
        return None
    if size_ratio < parameters_ratio * (1 - _SAME):
        return None
    before, after = number(original.size_bytes), number(row.size_bytes)
    compressed = number(row.compressed_bytes)
    assert before is not None
    assert after is not None
    deflated = f" Deflated, the file takes {size(compressed)}." if compressed is not None else ""
    return (
        f"{zeros}, but the file takes {size(after)} (original {size(before)}): a zero is stored "
        f"like any other number.{deflated}"
    )


def bytes_per_parameter(row: Row, original: Row) -> str | None:
    """Explain a file that shrank less, or more, than the number of parameters."""
    size_ratio, parameters_ratio = _file_against_parameters(row, original)
    if size_ratio is None or parameters_ratio is None:
        return None
    if abs(size_ratio / parameters_ratio - 1) <= _CLEARLY:
        return None
    each = [_bytes_each(which) for which in (row, original)]
    if each[0] is None or each[1] is None:
        return None
    why = (
        "the file also holds what is no parameter (buffers, names, the graph)"
        if size_ratio > parameters_ratio
        else "each number is stored in fewer bytes"
    )
    return (
        f"Parameters are {ratio(parameters_ratio)} of the original, bytes {ratio(size_ratio)} "
        f"({each[0]:.2g} B for each parameter, original {each[1]:.2g} B): {why}."
    )


def zeros_multiplied(row: Row, original: Row) -> str | None:
    """Explain MACs that did not fall although parameters became zero."""
    zeros = _new_zeros(row, original)
    macs_ratio = cost_ratio(row.macs, original.macs)
    parameters_ratio = cost_ratio(row.parameters, original.parameters)
    macs = number(row.macs)
    if zeros is None or macs_ratio is None or parameters_ratio is None or macs is None:
        return None
    if abs(macs_ratio - 1) > _SAME or abs(parameters_ratio - 1) > _SAME:
        return None
    return (
        f"{zeros}, but MACs stay at {count(macs)} ({ratio(macs_ratio)}): a dense kernel "
        "multiplies by zero too."
    )


def latency_against_macs(row: Row, original: Row) -> str | None:
    """Explain a latency that did not change by the factor by which MACs changed."""
    macs_ratio = cost_ratio(row.macs, original.macs)
    if macs_ratio is None:
        return None
    found = latency_ratio(row.latency_ms, original.latency_ms)
    setting = other_setting(row.latency_ms, original.latency_ms)
    if found is None and setting is not None:
        return f"Latency is not compared with the original's: {setting}."
    if found is None or found.low <= macs_ratio <= found.high:
        return None
    bounds = f" (95 % {found.low:.2f} to {found.high:.2f})" if found.is_interval else ""
    engines = [_detail(which.latency_ms, "engine") for which in (row, original)]
    if None not in engines and engines[0] != engines[1]:
        why = f"it ran in {engines[0]}, the original in {engines[1]}"
    elif engines[0] == "torch" and found.value > macs_ratio and _stores_fewer_bits(row, original):
        why = (
            "PyTorch makes real numbers of the stored integers or halves at each call; what an "
            "engine does with them is measured on the artifact of `Deploy`"
        )
    else:
        why = (
            "time also depends on memory traffic, the overhead of each operator and how well its "
            "kernel uses the machine, which MACs do not count"
        )
    noisy = any(_detail(which.latency_ms, "noisy") for which in (row, original))
    doubt = " The machine was noisy while this was timed." if noisy else ""
    return (
        f"MACs are {ratio(macs_ratio)} of the original, latency {ratio(found.value)}{bounds}: "
        f"{why}.{doubt}"
    )


def _new_zeros(row: Row, original: Row) -> str | None:
    """Say how many parameters are zero, if clearly more than in the original."""
    nonzero, parameters = number(row.nonzero_parameters), number(row.parameters)
    against_original = cost_ratio(row.nonzero_parameters, original.nonzero_parameters)
    if nonzero is None or not parameters or against_original is None:
        return None
    if against_original >= 1 - _CLEARLY or nonzero / parameters >= 1 - _CLEARLY:
        return None
    zeros = parameters - nonzero
    return f"{count(zeros)} of {count(parameters)} parameters are zero ({zeros / parameters:.0%})"


def _file_against_parameters(row: Row, original: Row) -> tuple[float | None, float | None]:
    return (
        cost_ratio(row.size_bytes, original.size_bytes),
        cost_ratio(row.parameters, original.parameters),
    )


def _bytes_each(row: Row) -> float | None:
    size_bytes, parameters = number(row.size_bytes), number(row.parameters)
    return size_bytes / parameters if size_bytes is not None and parameters else None


def _stores_fewer_bits(row: Row, original: Row) -> bool:
    each = [_bytes_each(which) for which in (row, original)]
    return each[0] is not None and each[1] is not None and each[0] < _FEWER * each[1]


def _detail(fact: Fact | None, key: str) -> object:
    return None if fact is None else fact.detail.get(key)
