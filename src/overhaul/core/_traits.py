"""Traits: what is true of a model between two steps, so that a recipe is checked before it runs."""

from enum import StrEnum
from typing import TypeAlias


class Trait(StrEnum):
    """Something that is true of the model as it enters a step.

    A step lists the traits that it `needs`, those it `gives` and those it `takes` away.
    """

    EDITABLE = "editable"
    """It is a PyTorch module whose weights and structure may be changed."""
    TRAINABLE = "trainable"
    """At least one floating-point parameter requires a gradient."""
    FITS_TASK = "fits_task"
    """Its outputs have the shape that the task's loss takes."""
    DEPLOYED = "deployed"
    """It has been exported into an artifact."""


Traits: TypeAlias = frozenset[Trait]
"""All that is true of a model between two steps."""

WHY_MISSING = {
    Trait.EDITABLE: "the model can no longer be changed there",
    Trait.TRAINABLE: "no parameter requires a gradient there",
    Trait.FITS_TASK: "the model's outputs do not have the shape that the task needs there",
    Trait.DEPLOYED: "nothing has been deployed there",
}
