"""Weights and structures that are not needed are removed."""

from overhaul.pruning._keep_zeros import KeepZeros
from overhaul.pruning._prune_by_trial import PruneByTrial
from overhaul.pruning._prune_weights import PruneWeights

__all__ = ["KeepZeros", "PruneByTrial", "PruneWeights"]
