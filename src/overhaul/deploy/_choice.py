"""`choose`: which engine to keep, by measurement."""

from collections.abc import Sequence
from dataclasses import dataclass

from overhaul.evaluation import Latency

_NOISE = 0.05


@dataclass(frozen=True)
class Candidate:
    """An engine that may be chosen.

    Attributes:
        name: Its short name.
        latency: How long a call takes.
        size_bytes: Of the engine's own files.
    """

    name: str
    latency: Latency
    size_bytes: int


def choose(candidates: Sequence[Candidate], *, by_bytes: bool = False) -> tuple[str, str]:
    """Return the name of the fastest, or of the smallest, and why.

    Those whose ratios to the reference have intervals that overlap with the fastest's, or lie
    within 5 % of it, are as fast as can be told; of these the one with the smallest files is
    taken. Files within 5 % of the smallest are as small as matters; of these the faster one.
    """
    if by_bytes:
        sizes = sorted(candidates, key=lambda one: (one.size_bytes, one.latency.ratio))
        return sizes[0].name, f"{sizes[0].name} is the smallest: {_sizes(sizes)}"
    fastest = min(candidates, key=lambda candidate: candidate.latency.ratio)
    equal = [candidate for candidate in candidates if _as_fast(candidate, fastest)]
    smallest = min(candidate.size_bytes for candidate in equal)
    small = [one for one in equal if one.size_bytes <= smallest * (1 + _NOISE)]
    chosen = min(small, key=lambda candidate: (candidate.latency.ratio, candidate.size_bytes))
    others = [candidate for candidate in candidates if candidate is not chosen]
    if not others:
        return chosen.name, f"{chosen.name} is the only engine that passed every check"
    if len(equal) > 1:
        why = "is the smallest" if len(small) == 1 else "took less time and is as small"
        tie = f"by speed they cannot be told apart: {_times(equal)}"
        return chosen.name, f"{tie}; {chosen.name} {why} ({_sizes(equal)})"
    return chosen.name, f"{chosen.name} is the fastest: {_times([chosen, *others])}"


def _as_fast(candidate: Candidate, fastest: Candidate) -> bool:
    overlaps = candidate.latency.ratio_interval[0] <= fastest.latency.ratio_interval[1]
    return overlaps or candidate.latency.ratio <= fastest.latency.ratio * (1 + _NOISE)


def _times(candidates: Sequence[Candidate]) -> str:
    times = (
        f"{one.name} {one.latency.median_ms:.3g} ms a call "
        f"({one.latency.ratio:.2f} x {one.latency.reference})"
        for one in candidates
    )
    return ", ".join(times)


def _sizes(candidates: Sequence[Candidate]) -> str:
    return ", ".join(f"{one.name} {one.size_bytes} B" for one in candidates)
