"""`Magnitude`: units of small weights go first."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from overhaul.core import Context
from overhaul.graph import Graph
from overhaul.pruning._criterion import Criterion, Scores, per_unit, weights_of


class Magnitude(Criterion):
    r"""Score a unit by the norm of its weights.

    .. math:: s_u = \left(\frac{1}{n_u} \sum_{w \in u} |w|^p\right)^{1/p}

    over the :math:`n_u` weights of all matrices and kernels that make the unit or take it in.

    Args:
        p: 1 for the sum of magnitudes, 2 for the Euclidean norm. Default 2.

    Example:
        >>> Magnitude(p=1)
        Magnitude(p=1)

    Paper: Li et al., ICLR 2017.  Differs: the weights of the next layers that take the unit in
    count as well (as in Fang et al., CVPR 2023), and it is a mean, so that layers can be compared.
    """

    p: Literal[1, 2] = Field(default=2, description="1: magnitudes, 2: Euclidean norm.")

    @torch.no_grad()
    def scores(self, graph: Graph, model: nn.Module, ctx: Context) -> dict[str, Scores]:
        """Return the norms."""
        tensors = dict(model.named_parameters())
        result = {}
        for group in graph.groups:
            places = weights_of(group, tensors)
            if not places:
                continue
            sums = sum(per_unit(tensors[p.tensor].abs() ** self.p, p) for p in places)
            count = sum(
                p.positions.shape[1] * tensors[p.tensor].numel() / tensors[p.tensor].shape[p.dim]
                for p in places
            )
            result[group.name] = (sums / count) ** (1 / self.p)
        return result
