"""A student network learns from a teacher."""

from overhaul.distillation._distill import Distill, soft_distance
from overhaul.distillation._swap_model import NewModel, SwapModel

__all__ = ["Distill", "NewModel", "SwapModel", "soft_distance"]
