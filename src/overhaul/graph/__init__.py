"""What of a model belongs together, and how to take it out without breaking anything."""

from overhaul.graph._align_config import ConfigSizes, align_config_, aligned_sizes
from overhaul.graph._equations import Gone
from overhaul.graph._fold_norm import FoldNorm, can_fold, can_take_bias, foldable_norms
from overhaul.graph._graph import Graph, Group, Place, Unprunable
from overhaul.graph._labels import Reason
from overhaul.graph._layer_flow import LAYER_ARGUMENTS, LayerFlow, WatchedLayer, watch_layers
from overhaul.graph._oracle import check_removal
from overhaul.graph._relative_difference import relative_difference
from overhaul.graph._remove_units import RemoveUnits

__all__ = [
    "LAYER_ARGUMENTS",
    "ConfigSizes",
    "FoldNorm",
    "Gone",
    "Graph",
    "Group",
    "LayerFlow",
    "Place",
    "Reason",
    "RemoveUnits",
    "Unprunable",
    "WatchedLayer",
    "align_config_",
    "aligned_sizes",
    "can_fold",
    "can_take_bias",
    "check_removal",
    "foldable_norms",
    "relative_difference",
    "watch_layers",
]
