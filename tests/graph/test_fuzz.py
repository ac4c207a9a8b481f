"""Everything that can be removed of random networks is removed, and compared with the network."""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from overhaul.graph import Graph, check_removal
from tests.graph.fuzzing import difference_to_zeroed, judge, refused
from tests.graph.random_blocks import all_blocks
from tests.graph.random_networks import RandomNetwork

NETWORKS = 300


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
def test_no_removal_of_random_networks_is_wrong_and_few_are_refused() -> None:
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()

    @settings(
        max_examples=NETWORKS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**31 - 1))
    def remove(seed: int) -> None:
        found = judge(seed)
        counts.update(networks=1, groups=found.groups, removals=found.removals)
        counts.update(zeroed=found.zeroed)
        refusals.update(found.refusals)
        assert not found.wrong

    remove()
    assert counts["networks"] >= NETWORKS
    assert counts["removals"] > counts["groups"] > 2 * NETWORKS
    assert counts["zeroed"] > NETWORKS
    assert refusals.total() < 0.1 * (refusals.total() + counts["groups"]), refusals


def test_the_same_seed_is_the_same_network() -> None:
    one, other = RandomNetwork(11), RandomNetwork(11)
    assert one.describe() == other.describe()
    assert torch.equal(one.eval()(*one.example), other.eval()(*other.example))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
def test_every_block_is_drawn() -> None:
    blocks = {block for kind in ("image", "sequence", "vector") for block in all_blocks(kind)}
    drawn = {type(module) for seed in range(250) for module in RandomNetwork(seed).program}
    assert drawn == blocks


class Turned(nn.Module):
    """What a wrong rule would take for element-wise."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x).sigmoid())
        return out


def test_the_second_comparison_can_fail() -> None:
    model, inputs = Turned(), (torch.rand(2, 4),)
    graph = Graph(model, inputs)
    assert difference_to_zeroed(model, graph, {"one": [0]}, inputs) < 1e-9
    columns = graph.trace.state["two.weight"].dims[1]
    assert columns is not None
    graph.trace.state["two.weight"].dims[1] = columns[::-1]
    assert difference_to_zeroed(model, graph, {"one": [0]}, inputs) > 1e-3


def test_what_is_refused_is_counted() -> None:
    class Sorted(Turned):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(self.one(x).sort(-1).values)
            return out

    graph = Graph(Sorted(), (torch.rand(2, 4),))
    assert refused(graph) == ["the operation `sort` is not known to the analysis"]
    assert refused(Graph(Turned(), (torch.rand(2, 4),))) == []


@pytest.mark.parametrize("units", [[0], [1, 2], [0, 1, 2, 4, 5, 6]])
def test_both_comparisons_agree(units: list[int]) -> None:
    model, inputs = Turned(), (torch.rand(2, 4),)
    graph = Graph(model, inputs)
    assert check_removal(model, graph, {"one": units}, inputs) < 1e-9
    assert difference_to_zeroed(model, graph, {"one": units}, inputs) < 1e-9
