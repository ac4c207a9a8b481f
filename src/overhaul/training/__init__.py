"""The one training loop and the interfaces of its plugs."""

from overhaul.training._augmentation import Augmentation, Flip, Shift
from overhaul.training._combiner import BoundCombiner, Combiner, Sum
from overhaul.training._constraint import BoundConstraint, Constraint
from overhaul.training._objective import BoundObjective, Companion, Objective, OpenSetting, TaskLoss
from overhaul.training._observer import BoundObserver, EarlyStop, EpochReport, Observer
from overhaul.training._optimizers import SGD, AdamW, Optimizer
from overhaul.training._schedules import Constant, Cosine, Schedule, StepDecay
from overhaul.training._train import Train

__all__ = [
    "SGD",
    "AdamW",
    "Augmentation",
    "BoundCombiner",
    "BoundConstraint",
    "BoundObjective",
    "BoundObserver",
    "Combiner",
    "Companion",
    "Constant",
    "Constraint",
    "Cosine",
    "EarlyStop",
    "EpochReport",
    "Flip",
    "Objective",
    "Observer",
    "OpenSetting",
    "Optimizer",
    "Schedule",
    "Shift",
    "StepDecay",
    "Sum",
    "TaskLoss",
    "Train",
]
