"""`BatchNormScale`: units that BatchNorm scales down go first."""

from torch import nn

from overhaul.core import Context, owner_of
from overhaul.graph import Graph
from overhaul.pruning._criterion import Criterion, Scores, per_unit


class BatchNormScale(Criterion):
    r"""Score a unit by the scale that BatchNorm gives it.

    .. math:: s_u = \sum_{c \in u} |\gamma_c|

    Groups without a BatchNorm are not pruned.

    Example:
        >>> BatchNormScale()
        BatchNormScale()

    Paper: Liu et al., ICCV 2017.  Differs: without the sparsity penalty of the paper, which is
    `GroupLasso` in a `Train` before it.
    """

    def scores(self, graph: Graph, model: nn.Module, ctx: Context) -> dict[str, Scores]:
        """Return the scales."""
        modules = dict(model.named_modules())
        tensors = dict(model.named_parameters())
        result = {}
        for group in graph.groups:
            scales = [
                per_unit(tensors[place.tensor].abs(), place)
                for place in group.places
                if place.tensor.endswith("weight")
                and isinstance(modules.get(owner_of(place.tensor)), _BATCH_NORM)
            ]
            if scales:
                result[group.name] = sum(scales[1:], start=scales[0])
        return result


_BATCH_NORM = nn.modules.batchnorm._BatchNorm
