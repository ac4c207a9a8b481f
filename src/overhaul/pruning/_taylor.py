"""`Taylor`: units that the loss hardly feels go first, to first order."""

import numpy as np
from pydantic import Field
from torch import nn

from overhaul.core import Context
from overhaul.graph import Graph
from overhaul.pruning._criterion import Criterion, Scores, gradients, per_unit, readers_of


class Taylor(Criterion):
    r"""Score a unit by the first-order change of the loss if it were zeroed.

    .. math:: s_u = \frac{1}{B} \sum_{b=1}^{B} \left|\sum_{w \in u}
        w \, \frac{\partial L_b}{\partial w}\right|

    over the weights that take the unit in: zeroing them is zeroing the unit. The gradients are
    taken on the model as it stands, in evaluation mode.

    Args:
        batches: How many training batches to average over. Default 8.
        batch_size: Samples of a batch. Default 64.

    Shapes: weight `[O, I, kH, kW]` and its gradient -> score `[I]`; a higher score is kept.

    Raises:
        ModelError: the loss has no gradient.

    Example:
        >>> Taylor(batches=4)
        Taylor(batches=4)

    Paper: Molchanov et al., CVPR 2019, eq. 8.  Differs: the absolute value and not the square; the
    weights that read a unit and not those that make it; no averaging over training.
    """

    batches: int = Field(default=8, ge=1, description="Training batches to average over.")
    batch_size: int = Field(default=64, ge=1, description="Samples of a batch.")

    def scores(self, graph: Graph, model: nn.Module, ctx: Context) -> dict[str, Scores]:
        """Return the mean absolute first-order changes."""
        tensors = dict(model.named_parameters())
        result: dict[str, Scores] = {}
        for found in gradients(model, ctx, self.batches, self.batch_size):
            for group in graph.groups:
                places = [p for p in readers_of(group, tensors) if p.tensor in found]
                if not places:
                    continue
                change = sum(per_unit(tensors[p.tensor] * found[p.tensor], p) for p in places)
                result[group.name] = result.get(group.name, 0) + np.abs(change) / self.batches
        return result
