"""What of a model belongs together, and how to take it out without breaking anything."""

from overhaul.graph._align_config import ConfigSizes, align_config_, aligned_sizes
from overhaul.graph._equations import Gone
from overhaul.graph._graph import Graph, Group, Place, Unprunable
from overhaul.graph._labels import Reason
from overhaul.graph._oracle import check_removal
from overhaul.graph._relative_difference import relative_difference
from overhaul.graph._remove_units import RemoveUnits

__all__ = [
    "ConfigSizes",
    "Gone",
    "Graph",
    "Group",
    "Place",
    "Reason",
    "RemoveUnits",
    "Unprunable",
    "align_config_",
    "aligned_sizes",
    "check_removal",
    "relative_difference",
]
