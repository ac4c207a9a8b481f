"""Three hundred drawn networks: no removal is wrong, and little is refused."""

import random
import warnings

import pytest

from overhaul.core import ModelError
from overhaul.graph import Graph, check_removal
from tests.graph.random_networks import random_network

CHUNKS, SEEDS = 6, 50
OTHER_FACTOR = "another factor of the same dimension is removed instead of it"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_removals_of_drawn_networks_are_right_and_few_layers_are_refused(chunk: int) -> None:
    groups = refused = 0
    wrong: list[str] = []
    for seed in range(chunk * SEEDS, (chunk + 1) * SEEDS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, inputs = random_network(seed)
            graph = Graph(model, inputs)
            groups += len(graph.groups)
            refused += sum(OTHER_FACTOR not in each.reason.text for each in graph.refusals)
            draw = random.Random(seed)
            plans = [{g.name: draw.sample(range(g.units), g.units // 2) for g in graph.groups}]
            if graph.groups:
                one = draw.choice(graph.groups)
                count = draw.randint(1, one.units - 1)
                plans.append({one.name: draw.sample(range(one.units), count)})
            for units in plans:
                try:
                    check_removal(model, graph, units, inputs)
                except ModelError as error:
                    if len(units) < 2 or "cannot be removed together" not in str(error):
                        wrong.append(f"seed {seed}, {units}: {error}")
    assert wrong == []
    assert groups > 0
    assert refused / (refused + groups) < 0.1
