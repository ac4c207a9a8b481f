"""What holds of each task of a `MultiTask`: its name, its fields, its labels."""

import torch
from torch import Tensor, nn

from overhaul.core import DataError, SpecError, SplitName
from overhaul.tasks import DataTask, LanguageModel, SingleTask

DATA_FIELDS = ("train", "val", "test", "data")

# `unwrap_outputs` takes `logits` for the only output; facts of training begin with a split's name.
_RESERVED = frozenset({"logits", "mean", "val", "test", *dir(nn.ModuleDict())})


def check_name(name: str) -> None:
    """Refuse a name that cannot be that of a module, or that means something else.

    Raises:
        SpecError: it is such a name.

    Example:
        >>> check_name("digit")
        >>> check_name("type")
        Traceback (most recent call last):
        ...
        overhaul.core._errors.SpecError: the name of a task must be one word of letters, digits \
and '_' that means nothing else to a model ('mean', 'type', 'forward'), got 'type'.
    """
    if not name.isidentifier() or name in _RESERVED:
        raise SpecError(
            "the name of a task must be one word of letters, digits and '_' that means nothing "
            f"else to a model ('mean', 'type', 'forward'), got '{name}'."
        )


def check_fields(name: str, task: SingleTask) -> None:
    """Refuse fields of a task that would have no effect, and a task that cannot be a part.

    Raises:
        SpecError: there is one.
    """
    if isinstance(task, LanguageModel):
        raise SpecError(
            f"task '{name}' is a LanguageModel, whose targets come from its inputs, so that it "
            "cannot share them with other tasks. Use it alone."
        )
    ours = DataTask.model_fields.keys() - {*DATA_FIELDS, "target_key"}
    misplaced = sorted(ours & task.model_fields_set)
    if misplaced:
        raise SpecError(
            f"`{misplaced[0]}` of task '{name}' belongs to MultiTask, which splits the data of all "
            f"tasks alike: MultiTask({misplaced[0]}=...)."
        )


def has_data(task: SingleTask) -> bool:
    """Tell whether a task brings its own data."""
    return any(getattr(task, field) is not None for field in DATA_FIELDS)


def without_data(task: SingleTask) -> SingleTask:
    """Return the task for outputs and targets that MultiTask gives it, some labels missing."""
    fields = {
        name: getattr(task, name)
        for name in task.model_fields_set
        if name not in DataTask.model_fields
    }
    if task.source is not None and task.output_names is not None:
        fields["class_names"] = task.output_names
    if has_data(task) or "allow_missing" not in fields:
        fields["allow_missing"] = True
    return type(task)(**fields)


def missing_value(part: SingleTask) -> float:
    """Return what stands for a label that is not known."""
    return torch.nan if part.output_kind == "values" else -1


def known(part: SingleTask, targets: Tensor, *, every: bool = False) -> Tensor:
    """Tell which samples, `[N]`, have a label (every label, if there are several)."""
    missing = targets.isnan() if part.output_kind == "values" else targets == missing_value(part)
    known_NK = ~missing.reshape(len(missing), -1)
    return known_NK.all(1) if every else known_NK.any(1)


def refuse_nan_as_label(name: SplitName, part: SingleTask, targets: Tensor) -> None:
    """Refuse NaN where a missing label is -1.

    Raises:
        DataError: there is one.
    """
    if part.output_kind != "values" and bool(targets.isnan().any()):
        raise DataError(
            f"labels of `{name}` have NaN. A label that is not known is -1: pass "
            "y.nan_to_num(nan=-1).long()."
        )
