"""`Classification`: one class out of several."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from overhaul.core import (
    Batch,
    DataError,
    Fact,
    Outputs,
    SpecError,
    SplitName,
    Splits,
    Targets,
)
from overhaul.tasks._single_task import SingleTask, not_one_tensor, only_target, only_tensor

_MISSING = -1
_FEW = 5
_MOST_CLASSES_FOR_AUROC = 100
_MOST_CLASSES_LISTED = 100
_LEAST_CLASSES_FOR_TOP5 = 11


class Classification(SingleTask):
    r"""Each sample belongs to one of several classes.

    The loss is the cross-entropy of the logits :math:`z` with the label :math:`y`,

    .. math:: L = -\frac{1}{B} \sum_b \log \operatorname{softmax}(z_b)_{y_b}

    Metrics: `accuracy`, `top5_accuracy` (with more than 10 classes), `f1` (macro), `auroc` (each
    class against the rest, averaged over the classes that occur; up to 100 classes, or when
    chosen by), and `loss`. See `DataTask` for the fields about data.

    Args:
        metric: The one number to choose by. Default `accuracy`.
        classes: How many there are. None counts them: the highest label plus one.
        class_names: What they are called, in order. Built-in data brings its own.
        label_smoothing: Part of the target that is spread over all classes. Default 0.
        allow_missing: The label -1 means "not known".
        allow_absent: `train` may lack samples of some classes. That is for a student whose teacher
            knows them: what it is to learn of them is in the teacher's outputs.

    Shapes: outputs `[B, C]`, labels `[B]` of whole numbers in 0..C-1.

    Raises:
        SpecError: a field is refused.
        DataError: from `prepare`, if the data breaks a rule.

    Example:
        >>> Classification(data="digits")
        Classification(data=Digits())
        >>> task = Classification(data="digits")
        >>> data = task.prepare()
        >>> len(data.train), len(data.val), len(data.test)
        (1258, 180, 359)
        >>> task.loss(torch.zeros(1, 10), torch.tensor([3]))
        tensor(2.3026)
    """

    metric_names: ClassVar[dict[str, bool]] = {
        "accuracy": True,
        "top5_accuracy": True,
        "f1": True,
        "auroc": True,
        "loss": False,
    }

    metric: str = "accuracy"
    classes: int | None = Field(default=None, ge=2, description="How many classes there are.")
    class_names: tuple[str, ...] | None = None
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Part of the target spread over all classes."
    )
    allow_absent: bool = Field(default=False, description="Classes may be absent from `train`.")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = self.class_names
        if names is not None and self.classes is not None and len(names) != self.classes:
            raise SpecError(
                f"`class_names` must name each of the {self.classes} classes, got {len(names)}."
            )
        return self

    @property
    def output_kind(self) -> Literal["classes", "labels", "values"]:
        """Logits of classes."""
        return "classes"

    @property
    def output_names(self) -> tuple[str, ...] | None:
        """The names of the classes: the field's, or those of the built-in data."""
        if self.class_names is None and self.source is not None:
            return self.source.class_names
        return self.class_names

    @property
    def _declared_classes(self) -> int | None:
        names = self.output_names
        return self.classes or (len(names) if names else None)

    def output_size(self, data: Splits) -> int:
        """Return the number of classes."""
        counted = next((fact.value for fact in data.facts if fact.name == "classes"), None)
        size = self._declared_classes or counted
        if not isinstance(size, int):
            raise DataError("the number of classes is not known: pass classes=...")
        return size

    def check_targets(self, name: SplitName, targets: Targets, index_N: Tensor) -> None:
        """Refuse labels that are not whole numbers in range, one for each sample."""
        labels = only_target(name, targets)
        if labels.is_floating_point():
            raise DataError(
                f"labels of `{name}` must be whole numbers (0, 1, 2, ...), got "
                f"{str(labels.dtype).removeprefix('torch.')}. Pass y.long() if they are classes; "
                "for measurements use Regression."
            )
        if labels.ndim != 1:
            remedy = (
                "Pass y.squeeze(1)"
                if labels.shape[1:] == (1,)
                else "For one-hot labels pass y.argmax(1); for several labels a sample use "
                "MultiLabel; for a list of batches pass iter(batches)"
            )
            raise DataError(
                f"labels of `{name}` must be one number for each sample, got the shape "
                f"{list(labels.shape)}. {remedy}."
            )
        self._check_range(name, labels, index_N)

    def _check_range(self, name: SplitName, labels_N: Tensor, index_N: Tensor) -> None:
        low = _MISSING if self.allow_missing else 0
        high = self._declared_classes
        wrong_N = labels_N < low
        if high is not None:
            wrong_N = wrong_N | (labels_N >= high)
        if bool(wrong_N.any()):
            row = int(wrong_N.nonzero()[0])
            label = int(labels_N[row])
            limit = "0 or above" if high is None else f"in 0..{high - 1}"
            remedy = (
                "If -1 means that the label is not known, set allow_missing=True."
                if label == _MISSING
                else f"Classes are numbered from 0; if there are {label + 1}, pass "
                f"classes={label + 1}."
                if label > 0
                else "Classes are numbered from 0."
            )
            raise DataError(
                f"labels of `{name}` must be {limit}, got {label} at sample {int(index_N[row])} "
                f"({int(wrong_N.sum())} such labels). {remedy}"
            )

    def strata(self, targets: Targets) -> Tensor | None:
        """Return the labels."""
        return only_tensor(targets)

    def describe_targets(
        self, targets: Mapping[SplitName, Targets], *, complete: bool
    ) -> list[Fact]:
        """Return the number of classes and the samples of each; refuse a class without any."""
        labels = {name: only_tensor(values) for name, values in targets.items()}
        classes = self._declared_classes
        if classes is None:
            if not complete:
                raise DataError(
                    "with scan='sample' the classes cannot be counted: pass classes=..."
                )
            classes = 1 + max(int(values.max()) for values in labels.values())
        if classes < 2:
            raise DataError(
                "all labels are the same; there must be at least two classes. If others exist that "
                "the data lacks, get samples of them first."
            )
        facts = [Fact(name="classes", value=classes, subject="data")]
        for name, values in labels.items():
            known = values[values != _MISSING]
            counts = torch.bincount(known, minlength=classes).tolist()
            if complete:
                self._check_counts(name, counts)
            facts.append(_counts_fact(name, counts, missing=len(values) - len(known)))
        return facts

    def _check_counts(self, name: SplitName, counts: list[int]) -> None:
        if not any(counts):
            raise DataError(f"`{name}` has no labelled sample.")
        absent = [number for number, count in enumerate(counts) if count == 0]
        if name == "train" and absent and not self.allow_absent:
            named = ", ".join(map(self._class_text, absent[:5])) + ("..." if absent[5:] else "")
            raise DataError(
                f"`train` must have samples of every class, and has none of {named} (of "
                f"{len(counts)} classes). Add some, or number the classes that there are from 0; "
                "where a teacher knows them, set allow_absent=True."
            )

    def _class_text(self, number: int) -> str:
        names = self.output_names
        return f"class {number} ('{names[number]}')" if names else f"class {number}"

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Return the mean cross-entropy over the labelled samples; 0 if there are none."""
        logits_BC, labels_B = only_tensor(outputs), only_tensor(targets)
        if not self.allow_missing:
            return functional.cross_entropy(
                logits_BC, labels_B, label_smoothing=self.label_smoothing
            )
        total = functional.cross_entropy(
            logits_BC,
            labels_B,
            ignore_index=_MISSING,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / (labels_B != _MISSING).sum().clamp(min=1)

    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        """Return every metric over the labelled samples; NaN if there are none."""
        from torchmetrics.functional import classification as measure

        logits_NC, labels_N = self._labelled(outputs, targets)
        classes = logits_NC.shape[1]
        top5 = classes >= _LEAST_CLASSES_FOR_TOP5 or self.metric == "top5_accuracy"
        auroc = classes <= _MOST_CLASSES_FOR_AUROC or self.metric == "auroc"
        names = [
            name
            for name in self.metric_names
            if (name != "top5_accuracy" or top5) and (name != "auroc" or auroc)
        ]
        if len(labels_N) == 0:
            return dict.fromkeys(names, float("nan"))
        values: dict[str, Tensor | float] = {
            "accuracy": measure.multiclass_accuracy(logits_NC, labels_N, classes, average="micro"),
            "f1": measure.multiclass_f1_score(logits_NC, labels_N, classes, average="macro"),
            "loss": self.loss(logits_NC, labels_N),
        }
        if top5:
            values["top5_accuracy"] = _in_top5(logits_NC, labels_N).mean()
        if auroc:
            values["auroc"] = _auroc(logits_NC, labels_N)
        return {name: float(values[name]) for name in names}

    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        """Return whether each labelled sample is right (or its loss), `[N]`, if it is a mean."""
        logits_NC, labels_N = self._labelled(outputs, targets)
        if self.metric == "accuracy":
            return (logits_NC.argmax(1) == labels_N).float()
        if self.metric == "top5_accuracy":
            return _in_top5(logits_NC, labels_N)
        if self.metric == "loss":
            return functional.cross_entropy(
                logits_NC, labels_N, reduction="none", label_smoothing=self.label_smoothing
            )
        return None

    def _labelled(self, outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
        logits_NC, labels_N = only_tensor(outputs).detach().float(), only_tensor(targets)
        if not self.allow_missing:
            return logits_NC, labels_N
        known_N = labels_N != _MISSING
        return logits_NC[known_N], labels_N[known_N]

    def problem_with(self, outputs: Outputs, batch: Batch) -> str | None:
        """Return what is wrong with the shape of the outputs, or None."""
        if isinstance(outputs, dict):
            return not_one_tensor(outputs)
        classes = self._declared_classes or self.output_size(self.prepare())
        if outputs.ndim != 2 or len(outputs) != len(batch):
            return (
                f"the model gives {list(outputs.shape)} for {len(batch)} samples, and the task "
                f"needs one logit for each class: [{len(batch)}, {classes}]"
            )
        if outputs.shape[1] != classes:
            return (
                f"the model gives {outputs.shape[1]} outputs, and the task has {classes} classes: "
                "put ReplaceHead first"
            )
        return None

    def predictions(self, outputs: Outputs) -> Tensor:
        """Return the number of the most probable class, `[B]`."""
        return only_tensor(outputs).argmax(1)


def _counts_fact(name: SplitName, counts: list[int], *, missing: int) -> Fact:
    few = [str(number) for number, count in enumerate(counts) if count < _FEW]
    detail: dict[str, object] = {"least": min(counts), "most": max(counts)}
    if len(counts) <= _MOST_CLASSES_LISTED:
        detail["counts"] = counts
    if missing:
        detail["missing"] = missing
    reason = None
    if few:
        listed = ", ".join(few[:10]) + ("..." if few[10:] else "")
        reason = f"fewer than {_FEW} samples of {len(few)} classes ({listed}): their part is noise"
    return Fact(
        name="classes_present",
        value=sum(count > 0 for count in counts),
        split=name,
        subject="data",
        n=sum(counts),
        detail=detail,
        reason=reason,
    )


def _in_top5(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    own_N1 = logits_NC.gather(1, labels_N[:, None])
    return ((logits_NC > own_N1).sum(1) < 5).float()


def _auroc(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Average over the classes that some samples have and some have not."""
    from torchmetrics.functional.classification import multilabel_auroc

    classes = logits_NC.shape[1]
    counts_C = torch.bincount(labels_N, minlength=classes)
    chosen = ((counts_C > 0) & (counts_C < len(labels_N))).nonzero().flatten()
    if len(chosen) == 0:
        return float("nan")
    is_class_NC = functional.one_hot(labels_N, classes)[:, chosen]
    scores_NC = logits_NC.softmax(1)[:, chosen]
    if len(chosen) == 1:
        scores_NC, is_class_NC = scores_NC.repeat(1, 2), is_class_NC.repeat(1, 2)
    return float(multilabel_auroc(scores_NC, is_class_NC, scores_NC.shape[1], average="macro"))
