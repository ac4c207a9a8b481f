"""`quantized`: a copy of a model in integers, and how far its weights are from the real ones."""

from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from overhaul.core import Fact
from overhaul.quantization._integer_map import WeightForm, integers_of, scales_of
from overhaul.quantization._plan import Plan
from overhaul.quantization._ranges import Ranges, activation_names, buffer_name

_WORST = 3


@torch.no_grad()
def quantized(model: nn.Module, plan: Plan, ranges: Ranges, *, search: bool) -> nn.Module:
    """Return a copy of a model with integers in it.

    Args:
        model: It is left as it was.
        plan: What becomes integers.
        ranges: Scale and zero point of each activation of the plan; there may be more.
        search: Whether scales of weights are searched for the least squared error.
    """
    smaller = plan.edit.apply(deepcopy(model))
    buffers = dict(smaller.named_buffers(remove_duplicate=False))
    for name in activation_names(plan):
        step, zero_point = ranges[name]
        buffers[f"{name}_scale"].fill_(step)
        buffers[f"{name}_zero_point"].fill_(zero_point)
    if search:
        for path, form in plan.layers.items():
            for name, own in form.weights.items():
                if own.is_integer:
                    weight = getattr(model.get_submodule(path), name)
                    scale = scales_of(own.flat(weight), own, search=True)
                    round_weight_(buffers, buffer_name(path, name), weight, own, scale)
    return smaller


def round_weight_(
    buffers: Mapping[str, Tensor], name: str, weight: Tensor, form: WeightForm, scale: Tensor
) -> None:
    """Write the integers that a weight has with these scales.

    Args:
        buffers: Of the quantized model, by name.
        name: Of the weight.
        weight: With the real numbers.
        form: How it is stored.
        scale: Of each channel or block.
    """
    buffers[f"{name}_scale"].copy_(scale)
    buffers[f"{name}_q"].copy_(form.stored(integers_of(form.flat(weight), scale, form)))


def weight_facts(model: nn.Module, plan: Plan, smaller: nn.Module) -> Iterator[Fact]:
    r"""Yield how exact each weight is: the ratio of signal to noise, in decibels.

    .. math:: 10 \log_{10} \frac{\sum w^2}{\sum (w - \hat w)^2}

    Args:
        model: With the real numbers.
        plan: What became integers.
        smaller: With the integers.
    """
    for path, form in plan.layers.items():
        for name, own in form.weights.items():
            weight, found = (
                getattr(each.get_submodule(path), name).detach() for each in (model, smaller)
            )
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
            noise = (weight - found).square().flatten(1).sum(1)
            signal = weight.square().flatten(1).sum(1)
            decibels = _decibels(signal, noise)
            worst = decibels.argsort()[:_WORST].tolist()
            yield Fact(
                name="weight_sqnr_db",
                value=float(_decibels(signal.sum(), noise.sum())),
                unit="dB",
                subject=buffer_name(path, name),
                detail={
                    "type": own.type,
                    "largest_error": float((weight - found).abs().max()),
                    "worst": {str(each): float(decibels[each]) for each in worst},
                },
            )


def _decibels(signal: Tensor, noise: Tensor) -> Tensor:
    return 10 * (signal.clamp(min=1e-30) / noise.clamp(min=1e-30)).log10()
