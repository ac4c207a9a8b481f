"""Quality as facts: the task's metrics and its loss."""

from overhaul.core import Fact, SplitName, Task
from overhaul.evaluation._predictions import Predictions


def quality_facts(
    task: Task, predictions: Predictions, *, subject: str, split: SplitName
) -> list[Fact]:
    """Return every metric of the task, and its loss, as one fact each.

    Args:
        task: What the predictions are judged by.
        predictions: What `predict` returned.
        subject: Whose predictions they are: `original`, `final`, a step's label.
        split: The data they are on.
    """
    values = task.metrics(predictions.outputs, predictions.targets)
    if "loss" not in values:
        values = {**values, "loss": float(task.loss(predictions.outputs, predictions.targets))}
    return [
        Fact(name=name, value=value, subject=subject, split=split, n=len(predictions))
        for name, value in values.items()
    ]
