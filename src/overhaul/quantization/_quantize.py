"""`Quantize`: weights and activations in few bits."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    ModelError,
    OrderError,
    SpecError,
    Splits,
    Step,
    Task,
    Trait,
    Traits,
    matching_names,
)
from overhaul.evaluation import check_max_drop, model_device
from overhaul.graph import foldable_norms
from overhaul.quantization._activation_error import activation_facts
from overhaul.quantization._budget import Budget
from overhaul.quantization._calibration import Calibration, SquaredError, Symmetric
from overhaul.quantization._choose_types import choose_types
from overhaul.quantization._integer_map import Granularity, WeightType
from overhaul.quantization._judge import Judge
from overhaul.quantization._meet_max_drop import meet_max_drop
from overhaul.quantization._plan import LayerTypes, Plan, make_plan
from overhaul.quantization._ranges import Ranges, observe
from overhaul.quantization._reduce_range import log_saturation, seven_bits_needed
from overhaul.quantization._repair import QuantizationRepair
from overhaul.quantization._spread import log_spread
from overhaul.quantization._train_rounded import train_rounded
from overhaul.quantization._trials import Trials
from overhaul.quantization._write import quantized, weight_facts
from overhaul.training import Train

_NAMED = 3
"""Layers that an error names."""
_FEW = 8
"""Calibration samples that errors of activations are measured on."""


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
        symmetric: Whether activations with negative values have zero in the middle, which OpenVINO
            is faster with. Default `auto`: where the scale grows by a seventh at most.
        calibration: How ranges are chosen. Default `SquaredError()`.
        batches: How many batches are looked at. Default 8.
        batch_size: Samples in each. Default 32.
        search: Whether scales of weights are searched for the least squared error. Default True.
        reduce_range: Whether weights use 7 of 8 bits, so that sums of two products do not saturate
            on a CPU without int8 instructions of its own. `auto`: if a simulation of such a CPU
            loses more on `val` with 8 bits, than with exact sums and than with 7. Default False.
        repairs: What makes up for the rounding, in this order. Default none.
        training: The training of real weights and scales under the rounding, in which the model
            computes as it will in integers, with the gradient as if nothing were rounded. It
            begins with the scales that were calibrated, keeps what earlier steps left (zeros), and
            takes any objective (`Distill`). `repairs` after the rounding serve the model before
            it alone, which is kept if the training gains nothing on `val`. Layers that fall back
            for `max_drop` do so before it. Default none.
        scale_rate: By how much faster scales learn than weights: with Adam, a scale changes by the
            learning rate times this in each step, as a part of itself. 0 keeps them. Default 1.
        layers: Patterns of module paths: only these. Default: all.
        exclude: Patterns of module paths that are left as they are.
        fold_norms: Whether BatchNorms become part of the layers before. Default True.
        max_drop: By how much the selection metric may drop on `val`. If it drops more, layers fall
            back in the order of their sensitivity, `int4` to `int8` first, then to real numbers.
            If it cannot be met, the best that was found is kept and a fact says so. Default None:
            nothing is measured.
        budget: Lets each layer have its own type, `int4`, `int8` or none, chosen by measured
            sensitivities under this limit. Default None.
        sensitivity_samples: How many samples of `val` the sensitivity of a layer, the rise of the
            loss with it alone in integers, is measured on. Default 512.
        subsets: From how many sets of training samples the model is made, to see how much its
            quality on `val` depends on them; the first is kept. Default 1.
        split: Where calibration samples come from; only `train` will do.

    Raises:
        SpecError: activations of 8 bits with weights that are no integers of 8 bits; `max_drop`
            with a budget.
        ModelError: a pattern matches nothing, nothing can be quantized, or the budget is too small.

    Example:
        >>> Quantize(weights="int8", batches=4)
        Quantize(batches=4)

    Paper: Jacob et al., CVPR 2018; Nagel et al., arXiv 2106.08295 (a white paper); Esser et al.,
    ICLR 2020 (scales that are trained).  Differs:
    activations are `uint8` with a zero point everywhere, and a sum of convolutions is quantized
    too.
    """

    takes: ClassVar[Traits] = frozenset({Trait.TRAINABLE})

    weights: WeightType = "int8"
    activations: Literal["int8"] | None = "int8"
    granularity: Granularity | None = None
    block_size: int = Field(default=32, ge=8, description="How many inputs share a scale.")
    symmetric: Symmetric = "auto"
    calibration: Calibration = SquaredError()
    batches: int = Field(default=8, ge=1, description="How many batches are looked at.")
    batch_size: int = Field(default=32, ge=1, description="Samples in a batch.")
    search: bool = True
    reduce_range: bool | Literal["auto"] = False
    repairs: tuple[QuantizationRepair, ...] = ()
    training: Train | None = None
    scale_rate: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="By how much faster scales learn than weights.",
    )
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    fold_norms: bool = True
    max_drop: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="It is in the unit of the task's selection metric.",
    )
    budget: Budget | None = None
    sensitivity_samples: int = Field(
        default=512, ge=1, description="Samples of val that a layer's sensitivity is measured on."
    )
    subsets: int = Field(
        default=1, ge=1, description="Sets of training samples that ranges are taken from."
    )
    split: Literal["train"] = Field(
        default="train",
        description="val chooses and test judges: calibrated on them, the model would be judged "
        "by what it has seen.",
    )

    @model_validator(mode="before")
    @classmethod
    def _activations_follow(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("activations") == "dynamic":
            raise SpecError(
                "`activations` that are rounded by the values of each call need nothing of the "
                "model, so an engine does it: write activations=None here, and "
                "Deploy(engines=[OnnxRuntime(round_inputs=True)])."
            )
        # The default is a constant, since a field that has its default is not written down.
        if isinstance(fields, dict) and fields.get("weights", "int8") != "int8":
            return {"activations": None, **fields}
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
        if self.max_drop is not None and self.budget is not None:
            raise ValueError(
                "`max_drop` and `budget` exclude each other, since layers that fall back take what "
                "the budget does not have. Write budget=Budget(max_drop=...) for the fewest bytes."
            )
        if self.activations is None:
            for name in ("symmetric", "calibration", "reduce_range"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"`{name}` is for activations in integers, and here only weights are. "
                        "Leave it out, or write weights='int8', activations='int8'."
                    )
        if self.subsets > 1 and self.activations is None and not self.repairs:
            raise ValueError(
                "`subsets` are of the samples that activations and repairs look at, and there are "
                "neither. Leave it out."
            )
        return self

    def check(self, traits: Traits) -> Traits:
        """Return what is true of the model after this step, given what is true before it."""
        measures = self.judges or self.budget is not None or self.subsets > 1
        if measures and Trait.FITS_TASK not in traits:
            raise OrderError(
                "Quantize chooses by the quality on val here, and the model does not fit the task. "
                "Put ReplaceHead before it, or leave out `max_drop`, `budget`, `subsets` and "
                "reduce_range='auto'."
            )
        if self.training is not None:
            self.training.check(traits)
        return super().check(traits)

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """See what the limits mean for the task, and what the training needs."""
        check_max_drop(self.allowed_drop, task.selection_metric)
        if self.training is not None:
            self.training.preflight(original, task, data)

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Fold, calibrate, repair and write the integers."""
        judge = Judge(ctx, self.sensitivity_samples)
        before = judge.quality(model) if self.judges else 0.0
        first = next(ctx.data.train.in_order(2)).to(model_device(model))
        if self.fold_norms:
            for edit in foldable_norms(model, lambda m: _forward(m, first)):
                model = ctx.edit(model, edit)
        plan = self.plan(model, first)
        for path, reason in plan.skipped.items():
            ctx.log("skipped", path, reason=reason)
        if not plan.layers:
            reasons = [f"'{path}': {why}" for path, why in plan.skipped.items()][:_NAMED]
            raise ModelError(
                "nothing of this model can be quantized: it has no layer with weights that "
                "`layers` and `exclude` let through. Known are nn.Linear, convolutions, "
                "nn.MultiheadAttention, embeddings and recurrent layers. "
                f"{'; '.join(reasons)}".rstrip()
            )
        folded = deepcopy(model) if self.subsets > 1 else model
        batches = self.calibration_batches(model, ctx, 0)
        for repair in self.repairs:
            repair.prepare_(model, plan, batches, ctx)
        seen = partial(self.ranges, model, batches=batches)
        ranges = seen(plan)
        eight, seven = (
            Trials(model, partial(step.plan, model, first), ranges, seen, self.search, judge, ctx)
            for step in (self, self.with_seven_bits if self.simulates else self)
        )
        trials = seven if self.simulates and seven_bits_needed(eight, seven, before) else eight
        types = choose_types(trials, self.budget, before) if self.budget is not None else {}
        plan, smaller = trials.plan(types), trials.build(types)
        for repair in self.repairs:
            repair.finish_(model, smaller, plan, batches, ctx)
        if self.allowed_drop is not None:
            plan, smaller = meet_max_drop(trials, types, smaller, before, self.allowed_drop)
        if self.training is not None:
            model, smaller = train_rounded(
                model, smaller, plan, self.training, self.scale_rate, judge, ctx
            )
        ctx.facts.extend(weight_facts(model, plan, smaller))
        if self.activations is not None:
            few = ctx.data.train.read(batches[0].indices[:_FEW]).to(model_device(model))
            if self.training is None:  # which moves the ranges
                ctx.facts.extend(activation_facts(model, plan, ranges, few, ctx.label))
            log_saturation(smaller, plan, few, ctx)
        if self.subsets > 1:
            others = (self._remade(folded, plan, n, ctx) for n in range(1, self.subsets))
            log_spread((smaller, *others), judge, ctx)
        model = ctx.edit(model, plan.edit)
        _copy_(model, smaller)
        return model.requires_grad_(False)  # what is rounded has no gradient

    def control(self) -> Step | None:
        """Return the training in float."""
        return None if self.training is None else self.training.control()

    def _remade(self, model: nn.Module, plan: Plan, subset: int, ctx: Context) -> nn.Module:
        """Return a copy in integers that is made with another set of training samples."""
        model, quiet = deepcopy(model), replace(ctx, facts=[])
        batches = self.calibration_batches(model, ctx, subset)
        for repair in self.repairs:
            repair.prepare_(model, plan, batches, quiet)
        ranges = self.ranges(model, plan, batches)
        smaller = quantized(model, plan, ranges, search=self.search)
        for repair in self.repairs:
            repair.finish_(model, smaller, plan, batches, quiet)
        return smaller

    @property
    def allowed_drop(self) -> float | None:
        """By how much the quality may drop, if that is limited."""
        return self.budget.max_drop if self.budget is not None else self.max_drop

    @property
    def judges(self) -> bool:
        """Whether something is chosen by the quality on val."""
        return self.allowed_drop is not None or self.simulates

    @property
    def simulates(self) -> bool:
        """Whether 7 or 8 bits are chosen by a simulation."""
        return self.reduce_range == "auto" and self.activations is not None

    @property
    def with_seven_bits(self) -> Self:
        """The same with weights of 7 bits."""
        return self.model_copy(update={"reduce_range": True})

    def plan(self, model: nn.Module, batch: Batch, types: LayerTypes | None = None) -> Plan:
        """Return what of the model becomes integers, and why the rest does not."""
        paths = dict(model.named_modules())
        wanted = matching_names(paths, self.layers, "layers") if self.layers else None
        spared = matching_names(paths, self.exclude, "exclude") if self.exclude else set()
        return make_plan(model, lambda m: _forward(m, batch), self, wanted, spared, types or {})

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
