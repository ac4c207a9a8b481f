"""Overhaul: make a trained PyTorch model smaller, faster or more general, and prove it.

The names below are imported when the first of them is asked for, all at once: `overhaul.runtime`,
which is in this package too, has to do without torch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from overhaul.deploy import (
        AOTInductor,
        Artifact,
        Deploy,
        ExecuTorch,
        OnnxRuntime,
        OpenVINO,
        Torch,
        TorchCompile,
        load,
        verify,
    )
    from overhaul.distillation import (
        AttentionTransfer,
        Contrastive,
        CorrelationTargets,
        DecoupledTargets,
        Distill,
        DistillInto,
        GradientMatching,
        Hints,
        Mutual,
        Peer,
        Relational,
        SimilarityPreserving,
        SoftTargets,
        SwapModel,
        TeacherCache,
    )
    from overhaul.evaluation import Goal, Verdict
    from overhaul.multitask import AddHeads, MultiTask
    from overhaul.pruning import (
        Activation,
        BatchNormScale,
        BiasCompensation,
        DropLayers,
        Fisher,
        GeometricMedian,
        GroupLasso,
        KeepZeros,
        LeastSquares,
        Magnitude,
        PruneByTrial,
        PruneChannels,
        PruneWeights,
        Random,
        RecalibrateNorm,
        RemoveRedundant,
        Taylor,
    )
    from overhaul.quantization import (
        AdaRound,
        Awq,
        BiasCorrection,
        Budget,
        CrossLayerEqualization,
        Entropy,
        FakeQuantization,
        Gptq,
        MinMax,
        MovingAverage,
        Percentile,
        Quantize,
        SmoothQuant,
        SquaredError,
    )
    from overhaul.running import Recipe, RecipeFile, Run, load_model
    from overhaul.tasks import (
        Cifar10,
        Classification,
        Digits,
        FashionMnist,
        LanguageModel,
        MultiLabel,
        Normalize,
        Regression,
    )
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

__all__ = [
    "SGD",
    "AOTInductor",
    "Activation",
    "AdaRound",
    "AdamW",
    "AddHeads",
    "Artifact",
    "ArtifactError",
    "AttentionTransfer",
    "Awq",
    "BatchNormScale",
    "BiasCompensation",
    "BiasCorrection",
    "Budget",
    "Cifar10",
    "Classification",
    "Constant",
    "Contrastive",
    "CorrelationTargets",
    "CorruptedFileError",
    "Cosine",
    "CrossLayerEqualization",
    "DataError",
    "DecoupledTargets",
    "Deploy",
    "Digits",
    "Distill",
    "DistillInto",
    "DropLayers",
    "EarlyStop",
    "Entropy",
    "ExecuTorch",
    "Fact",
    "FakeQuantization",
    "FashionMnist",
    "Fisher",
    "Flip",
    "Freeze",
    "Frozen",
    "GeometricMedian",
    "Goal",
    "Gptq",
    "GradientMatching",
    "GroupLasso",
    "Hints",
    "KeepZeros",
    "LanguageModel",
    "LeastSquares",
    "Magnitude",
    "MinMax",
    "MissingExtraError",
    "ModelError",
    "MovingAverage",
    "MultiLabel",
    "MultiTask",
    "Mutual",
    "Network",
    "NonFiniteLossError",
    "Normalize",
    "OnnxRuntime",
    "OpenVINO",
    "OrderError",
    "OverhaulError",
    "Peer",
    "Percentile",
    "Progress",
    "PruneByTrial",
    "PruneChannels",
    "PruneWeights",
    "Quantize",
    "Random",
    "RecalibrateNorm",
    "Recipe",
    "RecipeFile",
    "Regression",
    "Relational",
    "RemoveRedundant",
    "ReplaceHead",
    "Run",
    "RunFolderError",
    "SealedTestError",
    "Shift",
    "SimilarityPreserving",
    "SmoothQuant",
    "SoftTargets",
    "SpecError",
    "SquaredError",
    "Step",
    "StepDecay",
    "Sum",
    "SwapModel",
    "Task",
    "TaskLoss",
    "Taylor",
    "TeacherCache",
    "Torch",
    "TorchCompile",
    "Train",
    "Unfreeze",
    "Verdict",
    "__version__",
    "load",
    "load_model",
    "verify",
]

_ROOMS = (
    *("core", "graph", "tasks", "evaluation", "training"),
    *("pruning", "quantization", "distillation", "transfer", "multitask"),
    *("deploy", "report", "running"),
)
_WITHOUT_TORCH = ("load", "verify")
"""What `overhaul.runtime` has too; it stands in where torch is not installed."""


def import_rooms() -> None:
    """Import every room, so that each class of a kind is known, and their public names."""
    names = globals()
    for room in _ROOMS:
        module = import_module(f"{__name__}.{room}")
        names |= {name: getattr(module, name) for name in module.__all__ if name in __all__}


def __getattr__(name: str) -> Any:
    if name in _ROOMS or name == "runtime":
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    if name in _WITHOUT_TORCH and not _has_torch():
        return getattr(import_module(f"{__name__}.runtime"), name)
    import_rooms()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _has_torch() -> bool:
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):  # something that refuses it is in its place
        return False
