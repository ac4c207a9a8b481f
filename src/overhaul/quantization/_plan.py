"""`make_plan`: what of a model becomes integers, and why the rest does not."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from overhaul.core import StoresIntegers
from overhaul.quantization._integer_map import Granularity, WeightForm, WeightType
from overhaul.quantization._placement import find_places
from overhaul.quantization._quantize_layers import LayerForm, QuantizeLayers

LayerType: TypeAlias = WeightType | Literal["float32"]
LayerTypes: TypeAlias = Mapping[str, LayerType]
"""The type of each layer that has one of its own, by its path."""
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class Wishes(Protocol):
    """What the user asks for, as `Quantize` has it."""

    @property
    def weights(self) -> WeightType: ...
    @property
    def activations(self) -> str | None: ...
    @property
    def granularity(self) -> Granularity | None: ...
    @property
    def block_size(self) -> int: ...
    @property
    def reduce_range(self) -> bool | Literal["auto"]: ...


@dataclass
class Plan:
    """What of a model becomes integers.

    Attributes:
        layers: The form of each module.
        skipped: Why a module that has weights stays as it is, or only its weights change.
    """

    layers: dict[str, LayerForm] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def edit(self) -> QuantizeLayers:
        """The edit that does it."""
        return QuantizeLayers(layers=self.layers)


def make_plan(
    model: nn.Module,
    run: Callable[[nn.Module], Any],
    wishes: Wishes,
    wanted: set[str] | None,
    spared: set[str],
    types: LayerTypes,
) -> Plan:
    """Decide for each module.

    Args:
        model: It is left as it was.
        run: Calls it on a batch.
        wishes: Types and granularity.
        wanted: The paths that may change; None for all.
        spared: The paths that may not.
        types: Of layers that have a type of their own.
    """
    plan = Plan()
    forms: dict[str, dict[str, WeightForm]] = {}
    for path, module in model.named_modules():
        weights = _weights(module)
        if not weights:
            if isinstance(module, StoresIntegers):
                plan.skipped[path] = "its weights are in few bits already"
            continue
        kind = types.get(path, wishes.weights)
        reason = _objection(module, path, wanted, spared) or _without_form(weights, kind)
        if reason is not None:
            plan.skipped[path] = reason
            continue
        if kind != "float32":
            forms[path] = {
                name: _form(module, weight, kind, wishes) for name, weight in weights.items()
            }
    computing = {
        path
        for path in forms
        if types.get(path, "int8") == "int8" and _weights_only(model.get_submodule(path)) is None
    }
    if wishes.activations is None:
        plan.layers = {path: LayerForm(weights=own) for path, own in forms.items()}
        return plan
    places = find_places(model, run, computing)
    for path, own in forms.items():
        inputs = places.inputs.get(path, ())
        plan.layers[path] = LayerForm(weights=own, inputs=inputs)
        reason = _weights_only(model.get_submodule(path))
        if reason is not None:
            plan.skipped[path] = f"only its weights are integers: {reason}"
        elif path not in computing:
            plan.skipped[path] = "only its weights are integers: they have four bits"
        elif not places.calls[path]:
            plan.skipped[path] = "only its weights are integers: it is not called by itself"
    for path in places.inputs.keys() - forms.keys():
        plan.layers[path] = LayerForm(inputs=places.inputs[path])
    for path in places.outputs:
        form = plan.layers.get(path, LayerForm())
        plan.layers[path] = form.model_copy(update={"output": True})
    return plan


def _weights_only(module: nn.Module) -> str | None:
    """Return why the inputs of a layer cannot be integers, if its weights can."""
    if not computes(module):
        return "it is a table or recurrent"
    (dtype, *_) = {weight.dtype for weight in _weights(module).values()}
    if dtype != torch.float32:
        return f"it computes in {_plain(dtype)}, and integers stand for float32"
    return None


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def computes(module: nn.Module) -> bool:
    """Return whether a layer multiplies its input with its weight: both can be integers."""
    return isinstance(module, nn.Linear | _ConvNd | nn.MultiheadAttention) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """Return whether it is the linear layer of GPT-2 in `transformers`: `[I, O]`."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a module itself that are worth storing in few bits."""
    return {
        name: weight
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim > 1 and weight.is_floating_point()
    }


def _objection(
    module: nn.Module, path: str, wanted: set[str] | None, spared: set[str]
) -> str | None:
    if path in spared or (wanted is not None and path not in wanted):
        return "it is left out by `layers` or `exclude`"
    known = computes(module) or isinstance(module, _TABLES + _RECURRENT)
    if not known:
        return f"there is no integer form of {type(module).__name__}"
    if is_parametrized(module):
        return "its weights are computed by a parametrization; remove that first"
    return None


def _without_form(weights: Mapping[str, Tensor], kind: LayerType) -> str | None:
    """Return why these weights cannot be written in this type."""
    if kind == "float32":
        return None
    largest = max(float(weight.detach().abs().max()) for weight in weights.values())
    if not math.isfinite(largest):  # one such number would make a whole channel of them
        return f"it has a weight that is {largest}, which has no integer and no scale"
    if kind not in ("float16", "bfloat16"):
        return None
    (dtype, *_) = {weight.dtype for weight in weights.values()}
    if dtype != torch.float32:
        return f"it computes in {_plain(dtype)}, and {kind} stands for float32"
    most = torch.finfo(getattr(torch, kind)).max
    return (
        None
        if largest <= most
        else f"it has a weight of {largest:.3g}, and {kind} ends at {most:.3g}"
    )


def _form(module: nn.Module, weight: Tensor, kind: WeightType, wishes: Wishes) -> WeightForm:
    axis = 1 if isinstance(module, _ConvTransposeNd) or _is_conv1d(module) else 0
    if kind in ("float16", "bfloat16"):
        return WeightForm(type=kind)
    int4 = kind == "int4"
    granularity = wishes.granularity or ("block" if int4 else "channel")
    bits = 4 if int4 else 7 if wishes.reduce_range is True else 8
    shape = tuple(weight.shape) if int4 else ()
    if granularity == "tensor":
        return WeightForm(type=kind, per_tensor=True, bits=bits, shape=shape)
    inputs = weight[0].numel() if int4 else weight.shape[1]
    if granularity == "block" and inputs > wishes.block_size:
        block = wishes.block_size
        return WeightForm(type=kind, axis=1, block=block, bits=bits, shape=shape)
    axis = 0 if int4 else axis
    return WeightForm(type=kind, axis=axis, bits=bits, shape=shape)
