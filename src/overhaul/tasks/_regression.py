"""`Regression`: one or several numbers for each sample."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from overhaul.core import Batch, DataError, Fact, Outputs, SplitName, Splits, Targets
from overhaul.tasks._scan import check_finite
from overhaul.tasks._single_task import SingleTask, not_one_tensor, only_target, only_tensor


class Regression(SingleTask):
    r"""Each sample has one or several numbers to be predicted.

    The loss is the mean squared error over all numbers,
    :math:`L = \frac{1}{BK} \sum_{b,k} (\hat{y}_{bk} - y_{bk})^2`.

    Metrics: `r2` (averaged over the numbers), `mae`, `mse`, `rmse`, and `loss`. See `DataTask` for
    the fields about data.

    Args:
        metric: The one number to choose by. Default `r2`.
        allow_missing: NaN as a target means "not known".

    Shapes: targets `[B]` with outputs `[B]` or `[B, 1]`; targets `[B, K]` with outputs `[B, K]`.

    Raises:
        SpecError: a field is refused.
        DataError: from `prepare`, if the data breaks a rule.

    Example:
        >>> Regression(metric="mae")
        Regression(metric='mae')
        >>> task = Regression()
        >>> task.loss(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
        tensor(2.)
    """

    metric_names: ClassVar[dict[str, bool]] = {
        "r2": True,
        "mae": False,
        "mse": False,
        "rmse": False,
        "loss": False,
    }

    metric: str = "r2"

    @property
    def output_kind(self) -> Literal["classes", "labels", "values"]:
        """Plain values."""
        return "values"

    @property
    def output_names(self) -> None:
        """Not known."""
        return None

    def output_size(self, data: Splits) -> int:
        """Return how many numbers each sample has."""
        targets = only_tensor(data.train.read(torch.tensor([0])).targets)
        return targets[0].numel()

    def check_targets(self, name: SplitName, targets: Targets, index_N: Tensor) -> None:
        """Refuse targets that are not finite, or of another shape than `[N]` or `[N, K]`."""
        values = only_target(name, targets)
        if values.ndim not in (1, 2):
            raise DataError(
                f"targets of `{name}` must be [N] or [N, K] numbers, got the shape "
                f"{list(values.shape)}. Flatten what belongs to one sample."
            )
        if not values.is_floating_point():
            return
        if self.allow_missing:
            values = values.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        elif bool(values.isnan().any()):
            row = int(values.isnan().reshape(len(values), -1).any(1).nonzero()[0])
            raise DataError(
                f"`{name}` has NaN in the target of sample {int(index_N[row])}. Fill in or drop "
                "such samples; if NaN means that the target is not known, set allow_missing=True."
            )
        check_finite(name, "the target", index_N, values)

    def strata(self, targets: Targets) -> Tensor | None:
        """Return None: there are no classes."""
        return None

    def describe_targets(
        self, targets: Mapping[SplitName, Targets], *, complete: bool
    ) -> list[Fact]:
        """Return mean and spread of each number; refuse one that is constant in `train`."""
        facts = []
        for name, given in targets.items():
            values_NK = _columns(only_tensor(given))
            known_NK = ~values_NK.isnan()
            for column in range(values_NK.shape[1]):
                values_N = values_NK[known_NK[:, column], column]
                if name == "train" and complete:
                    _check_varies(values_N, column)
            facts.append(
                Fact(
                    name="target_mean",
                    value=float(values_NK[known_NK].double().mean()),
                    split=name,
                    subject="data",
                    n=int(known_NK.sum()),
                    detail={"std": float(values_NK[known_NK].double().std(correction=0))},
                )
            )
        return facts

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Return the mean squared error over the known targets; 0 if there are none."""
        wanted = only_tensor(targets).float()
        values = only_tensor(outputs).reshape(wanted.shape)
        if not self.allow_missing:
            return functional.mse_loss(values, wanted)
        known = ~wanted.isnan()
        # NaN is replaced before the subtraction: times zero it would still spoil the gradient.
        errors = torch.where(known, values - torch.where(known, wanted, 0.0), 0.0)
        return errors.square().sum() / known.sum().clamp(min=1)

    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        """Return every metric over the known targets; NaN if there are none."""
        from torchmetrics import functional as measure

        wanted_NK = _columns(only_tensor(targets))
        values_NK = only_tensor(outputs).detach().float().reshape(wanted_NK.shape)
        known_NK = ~wanted_NK.isnan()
        if not bool(known_NK.any()):
            return dict.fromkeys(self.metric_names, float("nan"))
        values, wanted = values_NK[known_NK], wanted_NK[known_NK]
        mse = float(measure.mean_squared_error(values, wanted))
        return {
            "r2": _r2(values_NK, wanted_NK, known_NK),
            "mae": float(measure.mean_absolute_error(values, wanted)),
            "mse": mse,
            "rmse": mse**0.5,
            "loss": mse,
        }

    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        """Return the mean error of each sample, `[N]`; None for R2 and RMSE.

        With partly missing targets of several numbers it is None too: a mean over samples is then
        not the mean over numbers.
        """
        wanted_NK = _columns(only_tensor(targets))
        values_NK = only_tensor(outputs).detach().float().reshape(wanted_NK.shape)
        if self.metric not in ("mae", "mse", "loss"):
            return None
        errors_NK = (values_NK - wanted_NK).abs()
        if self.metric != "mae":
            errors_NK = errors_NK.square()
        known_NK = ~wanted_NK.isnan()
        if bool((known_NK.any(1) != known_NK.all(1)).any()):
            return None
        return errors_NK[known_NK.all(1)].mean(1)

    def problem_with(self, outputs: Outputs, batch: Batch) -> str | None:
        """Return what is wrong with the shape of the outputs, or None."""
        if isinstance(outputs, dict):
            return not_one_tensor(outputs)
        wanted = list(only_tensor(batch.targets).shape)
        allowed = [wanted, [*wanted, 1]] if len(wanted) == 1 else [wanted]
        if len(wanted) == 2 and wanted[1] == 1:
            allowed.append(wanted[:1])
        if list(outputs.shape) in allowed:
            return None
        hint = ": put ReplaceHead first" if outputs.ndim == 2 else ""
        return (
            f"the model gives {list(outputs.shape)} for targets of shape {wanted}, and they must "
            f"have the shape {' or '.join(map(str, allowed))}{hint}"
        )


def _columns(values: Tensor) -> Tensor:
    """Return targets `[N]` or `[N, K]` as floats `[N, K]`."""
    return values.float().reshape(len(values), -1)


def _check_varies(values_N: Tensor, column: int) -> None:
    if len(values_N) == 0:
        raise DataError(f"`train` has no known value of target {column}.")
    if len(values_N) > 1 and bool((values_N == values_N[0]).all()):
        raise DataError(
            f"target {column} of `train` is constant: all {len(values_N)} values are "
            f"{float(values_N[0]):g}. There is nothing to learn; check how the data is read."
        )


def _r2(values_NK: Tensor, wanted_NK: Tensor, known_NK: Tensor) -> float:
    """Average over the columns with at least two known values; NaN if there are none."""
    from torchmetrics.functional import r2_score

    scores = []
    for values_N, wanted_N, known_N in zip(values_NK.T, wanted_NK.T, known_NK.T, strict=True):
        wanted = wanted_N[known_N]
        if len(wanted) >= 2 and bool((wanted != wanted[0]).any()):
            scores.append(float(r2_score(values_N[known_N], wanted)))
    return sum(scores) / len(scores) if scores else float("nan")
