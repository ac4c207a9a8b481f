import pytest

from overhaul.deploy._choice import Candidate, choose
from overhaul.evaluation import Latency


def candidate(name: str, ratio: float, size_bytes: int, spread: float = 0.01) -> Candidate:
    latency = Latency(
        median_ms=ratio,
        p95_ms=2 * ratio,
        interval_ms=(ratio - spread, ratio + spread),
        ratio=ratio,
        ratio_interval=(ratio - spread, ratio + spread),
        reference="original",
        n=100,
        threads=1,
        noisy=False,
    )
    return Candidate(name, latency, size_bytes)


def test_the_fastest_is_chosen_although_it_is_larger() -> None:
    assert choose([candidate("a", 0.5, 900), candidate("b", 0.4, 1000)]) == (
        "b",
        "b is the fastest: b 0.4 ms a call (0.40 x original), a 0.5 ms a call (0.50 x original)",
    )


@pytest.mark.parametrize(
    "slower",
    [candidate("a", 0.415, 900), candidate("a", 0.6, 900, spread=0.25)],
    ids=["within 5 %", "intervals overlap"],
)
def test_the_smallest_is_chosen_where_speed_cannot_tell(slower: Candidate) -> None:
    name, reason = choose([candidate("b", 0.4, 1000), slower, candidate("c", 0.9, 1)])
    assert name == "a"
    assert reason.startswith("by speed they cannot be told apart: b 0.4 ms a call")
    assert reason.endswith("a is the smallest (b 1000 B, a 900 B)")


def test_the_faster_is_chosen_where_neither_speed_nor_size_can_tell() -> None:
    name, reason = choose(
        [candidate("a", 0.41, 990), candidate("b", 0.4, 1000), candidate("c", 0.415, 1100)]
    )
    assert name == "b"
    assert reason.endswith("b took less time and is as small (a 990 B, b 1000 B, c 1100 B)")


def test_a_single_candidate_is_said_to_be_the_only_one() -> None:
    assert choose([candidate("a", 3.0, 1)]) == (
        "a",
        "a is the only engine that passed every check",
    )
