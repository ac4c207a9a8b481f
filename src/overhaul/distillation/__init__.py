"""A student network learns from a teacher."""

from overhaul.distillation._distill import Distill
from overhaul.distillation._hints import Hints
from overhaul.distillation._layer_match import BoundLayerMatch, LayerMatch, LayerPairs
from overhaul.distillation._match import BoundMatch, Match
from overhaul.distillation._pair_layers import Layer, Pair, pair_layers
from overhaul.distillation._seen import Seen, see
from overhaul.distillation._soft_targets import SoftTargets, soft_distance
from overhaul.distillation._swap_model import NewModel, SwapModel

__all__ = [
    "BoundLayerMatch",
    "BoundMatch",
    "Distill",
    "Hints",
    "Layer",
    "LayerMatch",
    "LayerPairs",
    "Match",
    "NewModel",
    "Pair",
    "Seen",
    "SoftTargets",
    "SwapModel",
    "pair_layers",
    "see",
    "soft_distance",
]
