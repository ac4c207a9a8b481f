"""`Random`: any unit may go. The baseline of every criterion."""

import torch
from torch import nn

from overhaul.core import Context
from overhaul.graph import Graph
from overhaul.pruning._criterion import Criterion, Scores


class Random(Criterion):
    """Score units at random: what a criterion has to be better than.

    Example:
        >>> Random()
        Random()

    Paper: Mittal et al., WACV 2018, who found it as good as most criteria after training.
    """

    def scores(self, graph: Graph, model: nn.Module, ctx: Context) -> dict[str, Scores]:
        """Return uniform random numbers, the same ones for the same seed."""
        generator = ctx.generator("random criterion")
        return {
            group.name: torch.rand(group.units, generator=generator, dtype=torch.float64).numpy()
            for group in graph.groups
        }
