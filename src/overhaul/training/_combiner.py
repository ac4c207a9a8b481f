"""`Combiner`: how many losses become one gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Context, Spec, SpecError, nearest


class BoundCombiner(nn.Module, ABC):
    """A combiner at work. Parameters of its own (learned loss weights) are trained along."""

    @abstractmethod
    def forward(self, losses: dict[str, Tensor], backward: Callable[[Tensor], None]) -> Tensor:
        """Write `.grad` of the model's parameters.

        Args:
            losses: Named scalar losses.
            backward: Accumulates the gradient of a scalar; call it instead of `.backward()`, since
                it takes care of loss scaling and of several processes.

        Returns:
            The total loss, to be shown.
        """


class Combiner(Spec, ABC):
    """How many losses become one gradient."""

    @abstractmethod
    def bind(self, model: nn.Module, ctx: Context) -> BoundCombiner:
        """Return the combiner for this model."""


class Sum(Combiner):
    r"""The weighted sum of the losses.

    .. math:: L = \sum_k w_k L_k

    Args:
        weights: Weight of each loss by name; 1 where none is given.

    Raises:
        SpecError: a weight is negative, or names a loss that the objective does not have.

    Example:
        >>> Sum(weights={"digit": 1.0, "parity": 0.5})
        Sum(weights={'digit': 1.0, 'parity': 0.5})
    """

    weights: dict[str, float] = Field(default={}, description="Weight of each loss by its name.")

    def bind(self, model: nn.Module, ctx: Context) -> BoundCombiner:
        """Return the weighted sum."""
        return _WeightedSum(self.weights)


class _WeightedSum(BoundCombiner):
    def __init__(self, weights: dict[str, float]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, losses: dict[str, Tensor], backward: Callable[[Tensor], None]) -> Tensor:
        for name in self.weights:
            if name not in losses:
                raise SpecError(f"`weights` names the loss '{name}'. {nearest(name, losses)}")
        terms = [self.weights.get(name, 1.0) * loss for name, loss in losses.items()]
        total = terms[0] if len(terms) == 1 else sum(terms[1:], terms[0])
        backward(total)
        return total.detach()
