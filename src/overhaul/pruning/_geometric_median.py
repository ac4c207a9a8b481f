"""`GeometricMedian`: units that others can stand in for go first."""

import torch
from torch import Tensor, nn

from overhaul.core import Context
from overhaul.graph import Graph
from overhaul.pruning._criterion import Criterion, Scores, weights_of


class GeometricMedian(Criterion):
    r"""Score a unit by its distance from the others of its group.

    .. math:: s_u = \sum_{v} \lVert w_u - w_v \rVert_2

    with :math:`w_u` the weights that make the unit. A unit in the middle of the others is the one
    that they can best stand in for.

    Example:
        >>> GeometricMedian()
        GeometricMedian()

    Paper: He et al., CVPR 2019, eq. 4.
    """

    @torch.no_grad()
    def scores(self, graph: Graph, model: nn.Module, ctx: Context) -> dict[str, Scores]:
        """Return the sums of distances."""
        tensors = dict(model.named_parameters())
        result = {}
        for group in graph.groups:
            places = weights_of(group, tensors)
            makers = [place for place in places if not place.reads] or places
            if not makers:
                continue
            rows: list[Tensor] = []
            for place in makers:
                weight = tensors[place.tensor].detach().double().cpu().movedim(place.dim, 0)
                flat = weight.reshape(len(weight), -1)
                rows.append(flat[torch.from_numpy(place.positions)].reshape(group.units, -1))
            vectors = torch.cat(rows, dim=1)
            result[group.name] = torch.cdist(vectors, vectors).sum(1).numpy()
        return result
