"""`Activation`: units that are seldom or weakly active go first."""

from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Context, owner_of
from overhaul.graph import Graph
from overhaul.pruning._criterion import Criterion, Scores, training_batches
from overhaul.pruning._reader_inputs import mean_inputs, whole_readers


class Activation(Criterion):
    r"""Score a unit by how active it is on training data.

    With :math:`a` the values that the next layer takes in,

    .. math:: s_u = \frac{1}{n} \sum |a| \quad\text{(`mean`)} \qquad
        s_u = \frac{1}{n} \sum [a \ne 0] \quad\text{(`nonzero`, one minus APoZ)}

    over samples and places of the unit. Groups that no linear layer or convolution reads directly
    are not pruned.

    Args:
        of: `mean` for the mean magnitude, `nonzero` for how often it is not zero. Default `mean`.
        batches: How many training batches. Default 8.
        batch_size: Samples of a batch. Default 64.

    Example:
        >>> Activation(of="nonzero")
        Activation(of='nonzero')

    Paper: Hu et al., 2016 (average percentage of zeros); Molchanov et al., ICLR 2017 (mean).
    """

    of: Literal["mean", "nonzero"] = "mean"
    batches: int = Field(default=8, ge=1, description="Training batches.")
    batch_size: int = Field(default=64, ge=1, description="Samples of a batch.")

    def scores(self, graph: Graph, model: nn.Module, ctx: Context) -> dict[str, Scores]:
        """Return the means over what the readers of each group take in."""
        modules = dict(model.named_modules())
        readers = {group.name: whole_readers(group, modules) for group in graph.groups}
        paths = {owner_of(place.tensor) for places in readers.values() for place in places}
        batches = training_batches(ctx, self.batches, self.batch_size)
        measure = Tensor.abs if self.of == "mean" else _is_active
        active = mean_inputs(model, paths, batches, measure)
        result = {}
        for group in graph.groups:
            means = [
                active[path].numpy(force=True)[place.positions].mean(axis=1)
                for place in readers[group.name]
                if (path := owner_of(place.tensor)) in active
            ]
            if means:
                result[group.name] = np.asarray(np.mean(means, axis=0))
        return result


def _is_active(values: Tensor) -> Tensor:
    return values != 0
