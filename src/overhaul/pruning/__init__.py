"""Weights and structures that are not needed are removed."""

from overhaul.pruning._activation import Activation
from overhaul.pruning._batch_norm_scale import BatchNormScale
from overhaul.pruning._bias_compensation import BiasCompensation
from overhaul.pruning._criterion import Criterion
from overhaul.pruning._drop_layers import DropLayers
from overhaul.pruning._fisher import Fisher
from overhaul.pruning._geometric_median import GeometricMedian
from overhaul.pruning._give_bias import GiveBias
from overhaul.pruning._group_lasso import GroupLasso
from overhaul.pruning._keep_zeros import KeepZeros
from overhaul.pruning._least_squares import LeastSquares
from overhaul.pruning._magnitude import Magnitude
from overhaul.pruning._prune_by_trial import PruneByTrial
from overhaul.pruning._prune_channels import PruneChannels
from overhaul.pruning._prune_weights import PruneWeights
from overhaul.pruning._random import Random
from overhaul.pruning._recalibrate_norm import RecalibrateNorm
from overhaul.pruning._remove_redundant import RemoveRedundant
from overhaul.pruning._repair import Reader, Repair
from overhaul.pruning._replace_by_identity import ReplaceByIdentity
from overhaul.pruning._taylor import Taylor

__all__ = [
    "Activation",
    "BatchNormScale",
    "BiasCompensation",
    "Criterion",
    "DropLayers",
    "Fisher",
    "GeometricMedian",
    "GiveBias",
    "GroupLasso",
    "KeepZeros",
    "LeastSquares",
    "Magnitude",
    "PruneByTrial",
    "PruneChannels",
    "PruneWeights",
    "Random",
    "Reader",
    "RecalibrateNorm",
    "RemoveRedundant",
    "Repair",
    "ReplaceByIdentity",
    "Taylor",
]
