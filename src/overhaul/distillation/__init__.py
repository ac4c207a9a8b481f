"""A student network learns from a teacher."""

from overhaul.distillation._attention_transfer import AttentionTransfer
from overhaul.distillation._contrastive import Contrastive
from overhaul.distillation._correlation_targets import CorrelationTargets
from overhaul.distillation._decoupled_targets import DecoupledTargets, decoupled_distances
from overhaul.distillation._distill import Distill, Teacher
from overhaul.distillation._distill_into import DistillInto
from overhaul.distillation._gradient_matching import GradientMatching
from overhaul.distillation._hints import Hints
from overhaul.distillation._layer_match import BoundLayerMatch, LayerMatch, LayerPairs
from overhaul.distillation._match import BoundMatch, Match
from overhaul.distillation._mutual import Mutual, Peer
from overhaul.distillation._pair_layers import Layer, Pair, pair_layers
from overhaul.distillation._relational import Relational
from overhaul.distillation._seen import Seen, see
from overhaul.distillation._similarity_preserving import SimilarityPreserving
from overhaul.distillation._soft_targets import Divergence, SoftTargets, soft_distance
from overhaul.distillation._swap_model import NewModel, SwapModel
from overhaul.distillation._teacher_cache import TeacherCache

__all__ = [
    "AttentionTransfer",
    "BoundLayerMatch",
    "BoundMatch",
    "Contrastive",
    "CorrelationTargets",
    "DecoupledTargets",
    "Distill",
    "DistillInto",
    "Divergence",
    "GradientMatching",
    "Hints",
    "Layer",
    "LayerMatch",
    "LayerPairs",
    "Match",
    "Mutual",
    "NewModel",
    "Pair",
    "Peer",
    "Relational",
    "Seen",
    "SimilarityPreserving",
    "SoftTargets",
    "SwapModel",
    "Teacher",
    "TeacherCache",
    "decoupled_distances",
    "pair_layers",
    "see",
    "soft_distance",
]
