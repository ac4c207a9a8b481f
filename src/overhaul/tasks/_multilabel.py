"""`MultiLabel`: any number of labels for each sample."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from overhaul.core import Batch, DataError, Fact, Outputs, SplitName, Splits, Targets
from overhaul.tasks._single_task import SingleTask, not_one_tensor, only_target, only_tensor

_MISSING = -1


class MultiLabel(SingleTask):
    r"""Each sample has any number of labels: each applies or does not.

    The loss is the binary cross-entropy of the logits :math:`z`, averaged over all labels,

    .. math:: L = -\frac{1}{BK} \sum_{b,k} y_{bk} \log \sigma(z_{bk}) + (1 - y_{bk}) \log \sigma(-z_{bk})

    Metrics: `f1` (macro), `auroc` (averaged over the labels that some samples have and some have
    not), `exact_match` (every label right), and `loss`. A label is predicted where its probability
    is above 0.5. See `DataTask` for the fields about data.

    Args:
        metric: The one number to choose by. Default `f1`.
        class_names: What the labels are called, in order.
        allow_missing: The label -1 means "not known".

    Shapes: outputs `[B, K]`, labels `[B, K]` of 0 and 1.

    Raises:
        SpecError: a field is refused.
        DataError: from `prepare`, if the data breaks a rule.

    Example:
        >>> MultiLabel(class_names=("wet", "cold"))
        MultiLabel(class_names=('wet', 'cold'))
        >>> task = MultiLabel()
        >>> task.predictions(torch.tensor([[2.0, -1.0]]))
        tensor([[ True, False]])
    """  # noqa: E501

    metric_names: ClassVar[dict[str, bool]] = {
        "f1": True,
        "auroc": True,
        "exact_match": True,
        "loss": False,
    }

    metric: str = "f1"
    class_names: tuple[str, ...] | None = None

    @property
    def output_kind(self) -> Literal["classes", "labels", "values"]:
        """Logits of independent labels."""
        return "labels"

    @property
    def output_names(self) -> tuple[str, ...] | None:
        """The names of the labels: the field's, or those of the built-in data."""
        if self.class_names is None and self.source is not None:
            return self.source.class_names
        return self.class_names

    def output_size(self, data: Splits) -> int:
        """Return the number of labels."""
        return only_tensor(data.train.read(torch.tensor([0])).targets).shape[1]

    def check_targets(self, name: SplitName, targets: Targets, index_N: Tensor) -> None:
        """Refuse labels other than 0 and 1, or not `[N, K]`."""
        labels = only_target(name, targets)
        if labels.ndim != 2:
            raise DataError(
                f"labels of `{name}` must be [N, K], a 0 or 1 for each label of each sample, got "
                f"the shape {list(labels.shape)}. For one class a sample use Classification."
            )
        names = self.output_names
        if names is not None and labels.shape[1] != len(names):
            raise DataError(
                f"`{name}` has {labels.shape[1]} labels a sample, and `class_names` has "
                f"{len(names)}."
            )
        right = (labels == 0) | (labels == 1)
        if self.allow_missing:
            right |= labels == _MISSING
        if not bool(right.all()):
            row, column = (int(number) for number in (~right).nonzero()[0])
            value = float(labels[row, column])
            remedy = (
                "If -1 means that the label is not known, set allow_missing=True."
                if value == _MISSING
                else "Turn what they are into 0 and 1."
            )
            raise DataError(
                f"labels of `{name}` must be 0 or 1, got {value:g} for label {column} of sample "
                f"{int(index_N[row])}. {remedy}"
            )

    def strata(self, targets: Targets) -> Tensor | None:
        """Return None: samples are not in one class."""
        return None

    def describe_targets(
        self, targets: Mapping[SplitName, Targets], *, complete: bool
    ) -> list[Fact]:
        """Return how often each label applies; refuse one that never does in `train`."""
        facts = []
        for name, given in targets.items():
            labels_NK = only_tensor(given)
            counts = (labels_NK == 1).sum(0).tolist()
            if name == "train" and complete and 0 in counts:
                label = counts.index(0)
                names = self.output_names
                text = f"{label} ('{names[label]}')" if names else str(label)
                raise DataError(
                    f"`train` must have samples with every label, and none has label {text}. Add "
                    "some, or leave the label out."
                )
            facts.append(
                Fact(
                    name="labels_present",
                    value=sum(count > 0 for count in counts),
                    split=name,
                    subject="data",
                    n=len(labels_NK),
                    detail={"counts": counts},
                )
            )
        return facts

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Return the mean binary cross-entropy over the known labels; 0 if there are none."""
        logits_BK, labels_BK = only_tensor(outputs), only_tensor(targets).float()
        if not self.allow_missing:
            return functional.binary_cross_entropy_with_logits(logits_BK, labels_BK)
        known_BK = labels_BK != _MISSING
        losses_BK = functional.binary_cross_entropy_with_logits(
            logits_BK, labels_BK.clamp(min=0), reduction="none"
        )
        return losses_BK.where(known_BK, 0.0).sum() / known_BK.sum().clamp(min=1)

    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        """Return every metric over the known labels; NaN if there are none."""
        from torchmetrics.functional import classification as measure

        logits_NK = only_tensor(outputs).detach().float()
        labels_NK = only_tensor(targets).long()
        size = logits_NK.shape[1]
        if not bool((labels_NK != _MISSING).any()):
            return dict.fromkeys(self.metric_names, float("nan"))
        scores_NK = logits_NK.sigmoid()
        f1 = (
            measure.multilabel_f1_score(scores_NK, labels_NK, size, ignore_index=_MISSING)
            if size > 1
            else measure.binary_f1_score(scores_NK, labels_NK, ignore_index=_MISSING)
        )
        return {
            "f1": float(f1),
            "auroc": _auroc(scores_NK, labels_NK),
            "exact_match": float(_exact_matches(logits_NK, labels_NK).mean()),
            "loss": float(self.loss(logits_NK, labels_NK)),
        }

    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        """Return whether each sample has every label right (or its loss), `[N]`; None otherwise."""
        logits_NK = only_tensor(outputs).detach().float()
        labels_NK = only_tensor(targets)
        if self.metric == "exact_match":
            return _exact_matches(logits_NK, labels_NK)
        if self.metric == "loss" and not bool((labels_NK == _MISSING).any()):
            return functional.binary_cross_entropy_with_logits(
                logits_NK, labels_NK.float(), reduction="none"
            ).mean(1)
        return None

    def problem_with(self, outputs: Outputs, batch: Batch) -> str | None:
        """Return what is wrong with the shape of the outputs, or None."""
        if isinstance(outputs, dict):
            return not_one_tensor(outputs)
        wanted = only_tensor(batch.targets).shape
        if outputs.shape == wanted:
            return None
        hint = ": put ReplaceHead first" if outputs.ndim == 2 else ""
        return (
            f"the model gives {list(outputs.shape)}, and the task needs one logit for each label: "
            f"{list(wanted)}{hint}"
        )

    def predictions(self, outputs: Outputs) -> Tensor:
        """Return which labels are more probable than not, `[B, K]`."""
        return only_tensor(outputs) > 0


def _exact_matches(logits_NK: Tensor, labels_NK: Tensor) -> Tensor:
    """Return whether each fully labelled sample has every label right; others are left out."""
    known_N = (labels_NK != _MISSING).all(1)
    return ((logits_NK > 0) == (labels_NK == 1))[known_N].all(1).float()


def _auroc(scores_NK: Tensor, labels_NK: Tensor) -> float:
    """Average over the labels that some samples have and some have not; NaN if there are none."""
    from torchmetrics.functional.classification import binary_auroc

    values = []
    for scores_N, labels_N in zip(scores_NK.T, labels_NK.T, strict=True):
        if bool((labels_N == 0).any()) and bool((labels_N == 1).any()):
            known_N = labels_N != _MISSING
            values.append(float(binary_auroc(scores_N[known_N], labels_N[known_N])))
    return sum(values) / len(values) if values else float("nan")
