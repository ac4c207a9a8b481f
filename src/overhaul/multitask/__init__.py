"""One model for several named tasks, which share what they can."""

from overhaul.multitask._add_heads import AddHeads
from overhaul.multitask._joined_samples import JoinedSamples
from overhaul.multitask._multi_task import MultiTask
from overhaul.multitask._new_heads import NewHeads
from overhaul.multitask._shared_trunk import SeparateTrunks, SharedTrunk, trunk_output

__all__ = [
    "AddHeads",
    "JoinedSamples",
    "MultiTask",
    "NewHeads",
    "SeparateTrunks",
    "SharedTrunk",
    "trunk_output",
]
