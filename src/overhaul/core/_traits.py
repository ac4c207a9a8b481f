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

NEED = {
    Trait.EDITABLE: "a model that may be changed, and it no longer may be changed there",
    Trait.TRAINABLE: "something to train, and no parameter requires a gradient there",
    Trait.FITS_TASK: "outputs of the shape that the task takes, and the model gives others there",
    Trait.DEPLOYED: "a deployed model, and nothing has been deployed there",
}
"""What a step needs, and why it is refused: the middle of a sentence."""
