"""`Constraint`: what must hold of the weights after every optimizer step."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from torch import nn

from overhaul.core import Carried, Context


class BoundConstraint:
    """A constraint at work on one model. Each hook does nothing unless a constraint needs it."""

    def set_mode_(self) -> None:
        """Follow each `model.train()`."""

    def project_(self) -> None:
        """Follow each optimizer step: make the constraint hold again."""

    def release_(self) -> None:
        """Follow the end of training, with the weights that are kept in the model."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {}

    def load_(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""


class Constraint(Carried, ABC):
    """What must hold of the weights after every optimizer step. The only plug that may write them.

    Given to `Train`, it holds during this training; left by a step with `ctx.carry`, during every
    training after it.
    """

    @abstractmethod
    def bind(self, model: nn.Module, ctx: Context) -> BoundConstraint:
        """Return the constraint for this model.

        Parameters that it gives the model are trained along, and saved with it; `release_` takes
        them out again.
        """

    def renamed(self, rename: Callable[[str], str | None]) -> Self | None:
        """Return this; a constraint that names parameters or modules returns it with new names."""
        return self
