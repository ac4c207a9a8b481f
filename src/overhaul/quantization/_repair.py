"""`QuantizationRepair`: what makes up for the rounding."""

from abc import ABC

from overhaul.core import Spec


class QuantizationRepair(Spec, ABC):
    """What makes up for the rounding, without training on labels."""
