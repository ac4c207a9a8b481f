"""Timing, on a clock that the tests turn by hand."""

import gc
import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from overhaul.core import Batch
from overhaul.evaluation import Latency, forward_call, latency_facts, measure_latency


class Machine:
    """A clock, and calls that take time on it."""

    def __init__(self, seed: int = 0) -> None:
        self.now, self.random = 0.0, random.Random(seed)
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def work() -> None:
            self.calls.append(name)
            self.now += seconds()

        return work


def steady(machine: Machine, seconds: float, spread: float = 0.01) -> Callable[[], float]:
    return lambda: seconds * (1 + spread * machine.random.random())


def test_twice_the_work_is_twice_the_time() -> None:
    machine = Machine()
    found = measure_latency(
        {
            "one": machine.call("one", steady(machine, 0.001)),
            "two": machine.call("two", steady(machine, 0.002)),
        },
        clock=machine.clock,
    )
    assert found["two"].ratio == pytest.approx(2, rel=0.02)
    assert found["two"].ratio_interval[0] <= found["two"].ratio <= found["two"].ratio_interval[1]
    assert found["one"].ratio_interval == (1.0, 1.0)
    assert found["one"].median_ms == pytest.approx(1, rel=0.02)
    assert found["one"].p95_ms >= found["one"].median_ms
    assert not found["two"].noisy
    assert found["two"].reason is None


def test_a_machine_that_slows_down_does_not_move_the_ratio_but_is_noisy() -> None:
    machine = Machine()

    def slowing(seconds: float) -> Callable[[], float]:
        return lambda: seconds * (1 + machine.now)

    found = measure_latency(
        {
            "one": machine.call("one", slowing(0.001)),
            "two": machine.call("two", slowing(0.002)),
        },
        clock=machine.clock,
    )
    assert found["two"].ratio == pytest.approx(2, rel=0.02)
    assert found["one"].noisy
    assert "the median moved by" in str(found["one"].reason)


def test_wide_scatter_is_noisy_and_says_by_how_much() -> None:
    machine = Machine()
    found = measure_latency(
        {"one": machine.call("one", lambda: 0.05 * 4 ** machine.random.random())},
        clock=machine.clock,
        time_s=2,
    )
    assert found["one"].noisy
    assert "the interval of the median is" in str(found["one"].reason)
    assert "% wide" in str(found["one"].reason)


def test_candidates_are_interleaved_in_random_order() -> None:
    machine = Machine()
    names = ["a", "b", "c"]
    found = measure_latency(
        {name: machine.call(name, steady(machine, 0.001)) for name in names},
        clock=machine.clock,
        time_s=0.1,
    )
    timed = machine.calls[-6 * found["a"].n :]
    rounds = [tuple(timed[i : i + 6 : 2]) for i in range(0, len(timed), 6)]
    assert all(sorted(found_round) == names for found_round in rounds)
    assert len(set(rounds)) > 3


@pytest.mark.parametrize(("alone_s", "is_cold"), [(0.001, False), (0.1, True)])
def test_a_short_call_finds_its_data_in_the_caches(alone_s: float, is_cold: bool) -> None:
    machine = Machine()

    def call(name: str) -> Callable[[], None]:
        return machine.call(name, lambda: alone_s * (1 + (machine.calls[-2:] != [name, name])))

    found = measure_latency({name: call(name) for name in "ab"}, clock=machine.clock)
    assert found["a"].median_ms == pytest.approx(1e3 * alone_s * (1 + is_cold), rel=0.01)


def test_warm_up_goes_on_until_calls_get_no_faster() -> None:
    machine = Machine()
    times = iter([0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    found = measure_latency(
        {"one": machine.call("one", lambda: next(times, 0.001))}, clock=machine.clock, time_s=5
    )
    assert found["one"].median_ms == pytest.approx(1)
    assert found["one"].interval_ms == pytest.approx((1, 1))


def test_slow_calls_stop_at_the_time_allowed() -> None:
    machine = Machine()
    found = measure_latency(
        {"slow": machine.call("slow", lambda: 7.0)}, clock=machine.clock, max_time_s=30
    )
    assert machine.now < 50
    assert found["slow"].noisy
    assert "could be timed in the time allowed" in str(found["slow"].reason)


@pytest.mark.parametrize("rounds", [40, 400])
def test_the_interval_of_the_median_covers_it(rounds: int) -> None:
    # Skewed times, median 1 ms: an interval of 95 % may miss 5 % of the time.
    missed = 0
    for seed in range(100):
        machine = Machine(seed)
        call = machine.call("one", skewed(machine))
        low, high = measure_latency(
            {"one": call}, clock=machine.clock, min_rounds=rounds, max_rounds=rounds
        )["one"].interval_ms
        missed += not low <= 1 <= high
    assert 1 <= missed <= 10


def skewed(machine: Machine) -> Callable[[], float]:
    return lambda: 0.001 * math.exp(machine.random.gauss(0, 0.5))


def test_threads_and_garbage_collection_are_restored_even_after_an_error() -> None:
    threads = torch.get_num_threads()
    seen: list[tuple[int, bool]] = []
    measure_latency(
        {"one": lambda: seen.append((torch.get_num_threads(), gc.isenabled()))},
        threads=2,
        time_s=0.001,
    )
    assert set(seen) == {(2, False)}

    def fail() -> None:
        raise ValueError("broken candidate")

    with pytest.raises(ValueError, match="broken candidate"):
        measure_latency({"one": fail}, threads=2)
    assert (torch.get_num_threads(), gc.isenabled()) == (threads, True)


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(ValueError, match="`candidates` is empty"):
        measure_latency({})
    with pytest.raises(ValueError, match=r"must be one of \['a'\], got 'b'"):
        measure_latency({"a": int}, reference="b")


def test_facts() -> None:
    machine = Machine()
    found = measure_latency(
        {name: machine.call(name, steady(machine, 0.001)) for name in ("original", "final")},
        clock=machine.clock,
        time_s=0.05,
    )
    first, second = latency_facts(found, batch_size=8, engines={"final": "onnxruntime"})
    assert (first.name, first.unit, first.subject) == ("latency_ms", "ms", "original")
    assert first.value == found["original"].median_ms
    assert first.interval == found["original"].interval_ms
    assert not first.reproducible
    assert (first.detail["engine"], second.detail["engine"]) == ("torch", "onnxruntime")
    assert {"batch_size": 8, "threads": 1, "noisy": False}.items() <= second.detail.items()
    assert Latency.model_validate_json(found["final"].model_dump_json()) == found["final"]


def test_a_forward_pass_runs_on_a_copy_in_evaluation_mode(
    network: nn.Sequential, images: Batch
) -> None:
    call = forward_call(network, images)
    torch.testing.assert_close(call(), call())
    assert not call().requires_grad
    assert network.training
    assert network[1].num_batches_tracked == 0


def test_a_forward_pass_of_a_deployed_model(images: Batch) -> None:
    assert forward_call(lambda pixels: pixels + 1, images)().shape == (5, 1, 8, 8)
