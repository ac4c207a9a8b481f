"""Learning rate schedules as data: a factor of the optimizer's rate as a function of the step."""

import math
from abc import ABC, abstractmethod

from pydantic import Field

from overhaul.core import Spec


class Schedule(Spec, ABC):
    """The learning rate during training, as a factor of the optimizer's."""

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return the factor at `progress`, the fraction of all optimizer steps that are done."""


class Constant(Schedule):
    """The optimizer's own rate throughout.

    Example:
        >>> Constant()
        Constant()
    """

    def factor(self, progress: float) -> float:
        """Return 1."""
        return 1.0


class Cosine(Schedule):
    r"""A linear rise, then half a cosine down to a floor.

    .. math:: f(p) = f_0 + (1 - f_0)\,\tfrac12\bigl(1 + \cos \pi\tfrac{p - w}{1 - w}\bigr)

    for progress `p` after the warm-up `w`; before it, :math:`p / w`.

    Args:
        warmup: Fraction of all steps that the rise takes. Default 0.05.
        floor: The factor at the end. Default 0.

    Example:
        >>> Cosine(warmup=0.1)
        Cosine(warmup=0.1)
        >>> round(Cosine(warmup=0.0).factor(0.5), 3)
        0.5

    Paper: Loshchilov and Hutter, ICLR 2017.  Differs: one cycle, no restarts; with warm-up.
    """

    warmup: float = Field(default=0.05, ge=0, lt=1, description="Fraction of all steps.")
    floor: float = Field(default=0.0, ge=0, le=1, description="The factor at the end.")

    def factor(self, progress: float) -> float:
        """Return the factor on the rise or on the cosine."""
        if progress < self.warmup:
            return progress / self.warmup
        done = (progress - self.warmup) / (1 - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


class StepDecay(Schedule):
    """The rate is multiplied by `gamma` at each milestone.

    Args:
        milestones: Fractions of all steps. Default (0.5, 0.75).
        gamma: The factor at each. Default 0.1.

    Example:
        >>> StepDecay(milestones=(0.5,))
        StepDecay(milestones=(0.5,))
        >>> StepDecay(milestones=(0.5,)).factor(0.6)
        0.1
    """

    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = Field(default=0.1, gt=0, lt=1, description="The factor at each milestone.")

    def factor(self, progress: float) -> float:
        """Return `gamma` to the number of milestones passed."""
        return float(self.gamma ** sum(progress >= milestone for milestone in self.milestones))
