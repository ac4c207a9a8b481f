"""Overhaul: make a trained PyTorch model smaller, faster or more general, and prove it."""

from overhaul.core import (
    ArtifactError,
    CorruptedFileError,
    DataError,
    Fact,
    MissingExtraError,
    ModelError,
    Network,
    NonFiniteLossError,
    OrderError,
    OverhaulError,
    Progress,
    RunFolderError,
    SealedTestError,
    SpecError,
    Step,
    Task,
)
from overhaul.deploy import Artifact, Deploy, OnnxRuntime, Torch, load, verify
from overhaul.distillation import Distill, SwapModel
from overhaul.evaluation import Goal, Verdict
from overhaul.pruning import KeepZeros, PruneWeights
from overhaul.running import Recipe, RecipeFile, Run
from overhaul.tasks import Classification, MultiLabel, Normalize, Regression
from overhaul.training import (
    SGD,
    AdamW,
    Constant,
    Cosine,
    EarlyStop,
    Flip,
    Shift,
    StepDecay,
    Sum,
    TaskLoss,
    Train,
)
from overhaul.transfer import Freeze, Frozen, ReplaceHead, Unfreeze

__version__ = "0.1.0"
