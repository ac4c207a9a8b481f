"""`Quantize`: weights and activations in few bits."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    ModelError,
    Splits,
    Step,
    Task,
    Traits,
    matching_names,
)
from overhaul.evaluation import model_device
from overhaul.graph import foldable_norms
from overhaul.quantization._calibration import Calibration, SquaredError
from overhaul.quantization._integer_map import Granularity, WeightType
from overhaul.quantization._plan import Plan, make_plan
from overhaul.quantization._ranges import Ranges, observe
from overhaul.quantization._repair import QuantizationRepair
from overhaul.quantization._train_rounded import train_rounded
from overhaul.quantization._write import quantized, weight_facts
from overhaul.training import Train


class Quantize(Step):
    r"""Store weights in few bits, and let layers compute in 8-bit integers.

    A real number :math:`x` is written as an integer with a scale and a zero point,

    .. math:: q = \mathrm{clip}(\mathrm{round}(x / s) + z), \qquad \hat x = s\,(q - z)

    with one scale for each output channel of a weight (:math:`z = 0`), or each block of its inputs,
    and one for each activation. `nn.Linear`, convolutions, attention projections, embeddings and
    recurrent layers are known; what is left as it is becomes a fact with the reason. The integers
    are ordinary buffers; every engine of `Deploy` is given the same ones and runs them as fast as
    it can. In PyTorch itself the model computes with the real numbers that the integers stand for:
    it is as exact as the deployed one, and not faster.

    The ranges of activations come from training samples: `val` chooses and `test` judges, so
    neither may be calibrated on.

    Args:
        weights: `int8`, `int4`, `float16` or `bfloat16`. Default `int8`.
        activations: `int8`, or None for weights only. Default: `int8` with weights of that type,
            else None.
        granularity: Which numbers of a weight share a scale: `tensor`, `channel` or `block`.
            Default `channel` for `int8`, `block` for `int4`.
        block_size: How many inputs a block has. Default 32.
        symmetric: Whether activations with negative values have zero in the middle. Default False.
        calibration: How ranges are chosen. Default `SquaredError()`.
        batches: How many batches are looked at. Default 8.
        batch_size: Samples in each. Default 32.
        search: Whether scales of weights are searched for the least squared error. Default True.
        reduce_range: Whether weights use 7 of 8 bits, so that sums of two products do not saturate
            on a CPU without int8 instructions of its own. Default False.
        repairs: What makes up for the rounding, in this order. Default none.
        training: The training of real weights and scales under the rounding, in which the model
            computes as it will in integers, with the gradient as if nothing were rounded. It
            begins with the scales that were calibrated, keeps what earlier steps left (zeros), and
            takes any objective (`Distill`). `repairs` after the rounding serve the model before
            it alone, which is kept if the training gains nothing on `val`. Default none.
        scale_rate: By how much faster scales learn than weights: with Adam, a scale changes by the
            learning rate times this in each step, as a part of itself. 0 keeps them. Default 1.
        layers: Patterns of module paths: only these. Default: all.
        exclude: Patterns of module paths that are left as they are.
        fold_norms: Whether BatchNorms become part of the layers before. Default True.

    Raises:
        SpecError: activations of 8 bits with weights that are no integers of 8 bits.
        ModelError: a pattern matches nothing, or nothing can be quantized.

    Example:
        >>> Quantize(weights="int8", batches=4)
        Quantize(activations='int8', batches=4)

    Paper: Jacob et al., CVPR 2018; Nagel et al., arXiv 2106.08295 (a white paper); Esser et al.,
    ICLR 2020 (scales that are trained).  Differs:
    activations are `uint8` with a zero point everywhere, and a sum of convolutions is quantized
    too.
    """

    weights: WeightType = "int8"
    activations: Literal["int8"] | None = None
    granularity: Granularity | None = None
    block_size: int = Field(default=32, ge=8, description="How many inputs share a scale.")
    symmetric: bool = False
    calibration: Calibration = SquaredError()
    batches: int = Field(default=8, ge=1, description="How many batches are looked at.")
    batch_size: int = Field(default=32, ge=1, description="Samples in a batch.")
    search: bool = True
    reduce_range: bool = False
    repairs: tuple[QuantizationRepair, ...] = ()
    training: Train | None = None
    scale_rate: float = Field(
        default=1.0, ge=0, description="By how much faster scales learn than weights."
    )
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    fold_norms: bool = True

    @model_validator(mode="before")
    @classmethod
    def _activations_follow(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "activations" not in fields:
            kind = fields.get("weights", "int8")
            return {**fields, "activations": "int8" if kind == "int8" else None}
        return fields

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.activations == "int8" and self.weights != "int8":
            raise ValueError(
                f"`activations` of int8 need weights of int8, got {self.weights}: no engine "
                "multiplies these. Leave `activations` out."
            )
        if self.granularity == "block" and self.activations is not None:
            raise ValueError(
                "`granularity` 'block' is for weights only: with activations of int8 the sum over "
                "the inputs has one scale. Use 'channel', or activations=None."
            )
        return self

    def check(self, traits: Traits) -> Traits:
        """See that the model can be trained, if it is to be."""
        if self.training is not None:
            self.training.check(traits)
        return super().check(traits)

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """See what the training needs."""
        if self.training is not None:
            self.training.preflight(original, task, data)

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Fold, calibrate, repair and write the integers."""
        first = next(ctx.data.train.in_order(2)).to(model_device(model))
        if self.fold_norms:
            for edit in foldable_norms(model, lambda m: _forward(m, first)):
                model = ctx.edit(model, edit)
        plan = self.plan(model, first)
        for path, reason in plan.skipped.items():
            ctx.log("skipped", path, reason=reason)
        if not plan.layers:
            raise ModelError(
                "nothing of this model can be quantized: it has no layer with weights that "
                "`layers` and `exclude` let through. Known are nn.Linear, convolutions, "
                "nn.MultiheadAttention, embeddings and recurrent layers."
            )
        batches = self.calibration_batches(model, ctx, 0)
        for repair in self.repairs:
            repair.prepare_(model, plan, batches, ctx)
        smaller = quantized(model, plan, self.ranges(model, plan, batches), search=self.search)
        for repair in self.repairs:
            repair.finish_(model, smaller, plan, batches, ctx)
        if self.training is not None:
            model, smaller = train_rounded(
                model, smaller, plan, self.training, self.scale_rate, ctx
            )
        ctx.facts.extend(weight_facts(model, plan, smaller))
        model = ctx.edit(model, plan.edit)
        _copy_(model, smaller)
        return model

    def control(self) -> Step | None:
        """Return the training in float."""
        return None if self.training is None else self.training.control()

    def plan(self, model: nn.Module, batch: Batch) -> Plan:
        """Return what of the model becomes integers, and why the rest does not."""
        paths = dict(model.named_modules())
        wanted = matching_names(paths, self.layers, "layers") if self.layers else None
        spared = matching_names(paths, self.exclude, "exclude") if self.exclude else set()
        return make_plan(model, lambda m: _forward(m, batch), self, wanted, spared)

    def calibration_batches(self, model: nn.Module, ctx: Context, subset: int) -> list[Batch]:
        """Return one of the sets of training samples, on the model's device."""
        if self.activations is None and not self.repairs:
            return []
        train = ctx.data.train
        order = torch.randperm(len(train), generator=ctx.generator("calibration", subset))
        chosen = order[: self.batches * self.batch_size].split(self.batch_size)
        return [train.read(each).to(model_device(model)) for each in chosen]

    def ranges(self, model: nn.Module, plan: Plan, batches: Sequence[Batch]) -> Ranges:
        """Return the ranges of activations on these samples."""
        if self.activations is None:
            return {}
        return observe(model, plan, batches, self.calibration, symmetric=self.symmetric)


def _forward(model: nn.Module, batch: Batch) -> Any:
    args, kwargs = batch.arguments
    return model(*args, **kwargs)


def _copy_(model: nn.Module, other: nn.Module) -> None:
    """Copy the tensors of a model of the same structure."""
    own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in (*other.named_parameters(), *other.named_buffers()):
            own[name].copy_(tensor)
