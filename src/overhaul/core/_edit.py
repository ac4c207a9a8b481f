"""Structural edits: how a changed model is rebuilt without pickle."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from torch import nn

from overhaul.core._spec import Spec


class Edit(Spec, ABC):
    """One change of a model's structure, as data.

    A run saves the edits of each step. The model after a step is the original with these edits
    applied in order and the saved weights loaded; so it is rebuilt from the user's own class.
    """

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Return the edited model; `model` belongs to the edit and may be changed."""

    def rename(self, name: str) -> str | None:
        """Return what the parameter or module `name` is called afterwards; None if it is gone."""
        return name


class Carried(Spec, ABC):
    """What later training is to keep of a step: zeros stay zero, frozen stays frozen."""

    @abstractmethod
    def renamed(self, rename: Callable[[str], str | None]) -> Self | None:
        """Return this for the renamed parameters and modules; None if none of them is left."""
