"""`judge`: everything that can be removed of a random network is removed, and compared."""

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from overhaul.core import ModelError, evaluating
from overhaul.graph import Graph, check_removal
from tests.graph.random_networks import RandomNetwork

Units = dict[str, list[int]]


@dataclass
class Judgement:
    """What became of one network.

    Attributes:
        groups: How many groups the graph found.
        removals: How many removals were compared: some units of each group, then of all at once.
        zeroed: How many of them were compared a second time, with `difference_to_zeroed`.
        refusals: Why what was refused, as `refused` counts it, by reason.
        together: Whether the removal from all groups at once was refused.
        wrong: The removals that were accepted and were not right, with the error.
    """

    groups: int = 0
    removals: int = 0
    zeroed: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    together: bool = False
    wrong: list[str] = field(default_factory=list)


def judge(seed: int) -> Judgement:
    """Remove random units from each group of a random network, and from all of them at once.

    Whatever the graph accepts has to be right: an error of the comparison, and any exception, is
    counted as wrong.
    """
    network, found = RandomNetwork(seed), Judgement()
    try:
        graph = Graph(network, network.example)
    except Exception as error:
        found.wrong.append(f"{seed}: {network.describe()}: graph: {error!r}")
        return found
    found.groups = len(graph.groups)
    found.refusals.update(refused(graph))
    random = np.random.default_rng(seed)
    plan: Units = {}
    for group in graph.groups:
        count = int(random.integers(1, group.units))
        plan[group.name] = sorted(random.choice(group.units, count, replace=False).tolist())
    plans: list[Units] = [{name: units} for name, units in plan.items()]
    for units in [*plans, plan] if len(plan) > 1 else plans:
        try:
            graph.remove(units)
        except ModelError as error:
            if len(units) > 1:
                found.together = True
            else:
                found.groups -= 1
                found.refusals[str(error).split(" (")[0]] += 1
            continue
        try:
            found.removals += 1
            check_removal(network, graph, units, network.example)
            if not network.mixes:
                found.zeroed += 1
                difference = difference_to_zeroed(network, graph, units, network.example)
                if not difference < 1e-6:
                    raise ArithmeticError(f"with zeros the outputs differ by {difference:.2g}")
        except Exception as error:
            found.wrong.append(f"{seed}: {network.describe()}: {units}: {error!r}")
    return found


ROWS = "its rows are looked up by number"
OTHER = "another factor of the same dimension is removed instead of it"


def refused(graph: Graph) -> list[str]:
    """Return the reason of each refused group.

    That is each dimension of outputs, of a weight that the pass uses, all positions of which are
    kept for a reason. Not counted are what nobody could remove: the model's own outputs, the words
    of an embedding (which are the model's inputs), the sides of kernels; and those factors of a
    dimension that stay because another factor of it goes: the inputs of each group of a grouped
    convolution stay where the groups lose channels alike.
    """
    return [each.reason.text for each in graph.refusals if each.reason.text not in (ROWS, OTHER)]


@torch.no_grad()
def difference_to_zeroed(
    model: nn.Module, graph: Graph, units: Units, inputs: tuple[Tensor, ...]
) -> float:
    """Return how far the smaller model is from the model itself with zeros for weights.

    The slow and obvious comparison: no random weights and no operation done otherwise. It holds
    where a channel of zeros is as good as none: where nothing takes a mean over channels.
    """
    edit = graph.remove(units)
    large = copy.deepcopy(model).double()
    smaller = edit.apply(copy.deepcopy(large))
    own: dict[str, Any] = {**dict(large.named_parameters()), **dict(large.named_buffers())}
    parameters = dict(large.named_parameters())
    for name, removed in edit.removed.items():
        for dim, places in removed.items():
            # A row of a weight normalization is zero by its length; its direction cannot be zero.
            direction = dim == 0 and name.endswith(("original1", "weight_v"))
            # Nor may a variance, which is divided by; what comes of it meets a column of zeros.
            variance = name not in parameters and bool((own[name] > 0).all())
            if own[name].is_floating_point() and not direction and not variance:
                own[name].index_fill_(dim, torch.tensor(places), 0)
    double = [x.double() if x.is_floating_point() else x for x in inputs]
    with evaluating(large), evaluating(smaller):
        expected, actual = large(*double), smaller(*double)
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-6))
