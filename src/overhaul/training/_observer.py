"""`Observer`: watches training, and may end it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch import nn

from overhaul.core import Context, Spec


@dataclass(frozen=True)
class EpochReport:
    """What is known at the end of an epoch.

    Attributes:
        epoch: Which, from 1.
        train_loss: Mean total loss over the epoch.
        val_metrics: Every metric on the validation split.
        score: The number to choose by, turned so that higher is better.
    """

    epoch: int
    train_loss: float
    val_metrics: dict[str, float]
    score: float


class BoundObserver:
    """An observer at work. Each hook does nothing unless an observer needs it."""

    def after_step(self, step: int, loss: float) -> None:
        """Follow each optimizer step, after every constraint."""

    def after_epoch(self, report: EpochReport) -> bool:
        """Follow each epoch; return True to end the training."""
        return False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {}

    def load_(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""


class Observer(Spec, ABC):
    """Watches training and may end it. It may not write to the model."""

    @abstractmethod
    def bind(self, model: nn.Module, ctx: Context) -> BoundObserver:
        """Return the observer for this training."""


class EarlyStop(Observer):
    """End the training when the number to choose by has not improved for some epochs.

    Args:
        patience: Epochs without improvement that are waited for. Default 5.

    Example:
        >>> EarlyStop(patience=3)
        EarlyStop(patience=3)

    Paper: Prechelt, "Early Stopping - But When?", 1998, criterion UP.  Differs: the validation
    metric is watched, not the loss, since it is what the weights are chosen by.
    """

    patience: int = Field(default=5, ge=1, description="Epochs without improvement before the end.")

    def bind(self, model: nn.Module, ctx: Context) -> BoundObserver:
        """Return the observer that counts."""
        return _PatienceCounter(self.patience)


class _PatienceCounter(BoundObserver):
    def __init__(self, patience: int) -> None:
        self.patience, self.best, self.waited = patience, float("-inf"), 0

    def after_epoch(self, report: EpochReport) -> bool:
        if report.score > self.best:
            self.best, self.waited = report.score, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
