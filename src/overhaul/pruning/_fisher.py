"""`Fisher`: units that the loss hardly feels go first, to second order."""

import numpy as np
from pydantic import Field
from torch import nn

from overhaul.core import Context
from overhaul.graph import Graph
from overhaul.pruning._criterion import Criterion, Scores, gradients, per_unit, readers_of


class Fisher(Criterion):
    r"""Score a unit by the second-order change of the loss if it were zeroed.

    Near a minimum the first-order change vanishes, and with the diagonal of the empirical Fisher
    information in place of the Hessian what is left is

    .. math:: s_u = \frac{1}{2N} \sum_{n=1}^{N} \left(\sum_{w \in u}
        w \, \frac{\partial L_n}{\partial w}\right)^2

    over the weights that take the unit in, with the gradient of one sample at a time.

    Args:
        samples: How many training samples. Default 64.

    Raises:
        ModelError: the loss has no gradient.

    Example:
        >>> Fisher(samples=32)
        Fisher(samples=32)

    Paper: Theis et al., 2018, eq. 9.  Differs: the cost of a unit does not enter the score.
    """

    samples: int = Field(default=64, ge=1, description="Training samples, one gradient each.")

    def scores(self, graph: Graph, model: nn.Module, ctx: Context) -> dict[str, Scores]:
        """Return the mean second-order changes."""
        tensors = dict(model.named_parameters())
        result: dict[str, Scores] = {}
        for found in gradients(model, ctx, self.samples, 1):
            for group in graph.groups:
                places = [p for p in readers_of(group, tensors) if p.tensor in found]
                if not places:
                    continue
                change = sum(per_unit(tensors[p.tensor] * found[p.tensor], p) for p in places)
                own = np.asarray(change**2 / (2 * self.samples))
                result[group.name] = result.get(group.name, 0) + own
        return result
