"""`Judge`: how good a model is on val."""

import torch
from torch import nn

from overhaul.core import Context, evaluating
from overhaul.evaluation import model_device, paired_difference, predict, quality_facts

_DIGITS = 6


class Judge:
    """How good a model is on val, by the task's selection metric and by its loss.

    Args:
        ctx: Task and data.
        samples: How many samples of val the loss is measured on, drawn at random.
    """

    def __init__(self, ctx: Context, samples: int) -> None:
        """Draw the samples."""
        self.task, self.val = ctx.task, ctx.data.val
        drawn = torch.randperm(len(self.val), generator=ctx.generator("val"))[:samples]
        self.indices = drawn.sort().values

    @property
    def metric(self) -> str:
        """What `quality` is."""
        return self.task.selection_metric

    def quality(self, model: nn.Module) -> float:
        """Return the selection metric on all of val."""
        predictions = predict(model, self.val)
        facts = quality_facts(self.task, predictions, subject="", split="val")
        (value,) = [fact.value for fact in facts if fact.name == self.metric]
        assert isinstance(value, float)
        return value

    def drop(self, before: float, after: float) -> float:
        """Return how much worse the second is, in the unit of the metric; negative if better."""
        drop = before - after if self.task.higher_is_better else after - before
        # Metrics are in single precision, in which .503 - .498 is more than .005.
        return round(drop, _DIGITS)

    def drop_at_most(self, model: nn.Module, reference: nn.Module) -> float | None:
        """Return the upper end of the 95 % interval of the drop; None if it has none."""
        pair = predict(model, self.val), predict(reference, self.val)
        interval = paired_difference(self.task, *pair).interval
        if interval is None:
            return None
        return -interval[0] if self.task.higher_is_better else interval[1]

    def loss(self, model: nn.Module) -> float:
        """Return the mean loss over the samples that were drawn."""
        device, total = model_device(model), 0.0
        with evaluating(model):
            for batch in self.val.batches(list(self.indices.split(64))):
                there = batch.to(device)
                total += float(self.task.loss(there.forward(model), there.targets)) * len(batch)
        return total / len(self.indices)
