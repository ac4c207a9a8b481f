"""`layer_inputs`: what layers take in on training samples, as rows of a matrix product."""

import inspect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from overhaul.core import Batch, evaluating
from overhaul.graph import LAYER_ARGUMENTS
from overhaul.quantization._convolution import border, each_dimension


@dataclass(frozen=True)
class Geometry:
    """How a layer is a matrix product.

    Attributes:
        groups: G, into how many groups its channels are cut.
        turned: Whether the weight is `[I, O, ...]` and not `[O, I, ...]`.
    """

    groups: int = 1
    turned: bool = False

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as `[G, O / G, K]`: K values of an input make an output."""
        flat = weight.flatten(1).T if self.turned else weight.flatten(1)
        return flat.reshape(self.groups, -1, flat.shape[1])

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Return what has this matrix, of the shape of `like`."""
        flat = matrix.flatten(0, 1)
        return (flat.T if self.turned else flat).reshape(like.shape)

    def spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return one value for each input channel, `[I]`, so that it meets the matrix: `[G, 1, K]`.

        Args:
            values: `[I]`.
            weight: Of the layer.
        """
        inner = 1 if self.turned else weight[0, 0].numel()
        return values.view(self.groups, -1).repeat_interleave(inner, 1)[:, None]


@dataclass
class LayerInputs:
    """What one layer took in.

    Attributes:
        geometry: How the layer is a matrix product.
        rows: `[G, n, K]`, drawn from all that was seen.
        largest: `[I]`, the largest magnitude of each channel, of all that was seen.
    """

    geometry: Geometry
    rows: Tensor
    largest: Tensor

    def gram(self) -> Tensor:
        r"""Return :math:`\sum x x^T / n`, `[G, K, K]`, in double precision."""
        rows = self.rows.double()
        return rows.mT @ rows / max(rows.shape[1], 1)


def layer_inputs(
    model: nn.Module,
    weights: Iterable[str],
    batches: Iterable[Batch],
    rows: int,
    draws: torch.Generator,
) -> tuple[dict[str, LayerInputs], dict[str, str]]:
    """Run batches in evaluation mode and return what layers take in, by the name of the weight.

    Linear layers, convolutions as patches, and the projections of `nn.MultiheadAttention` are
    known.

    Args:
        model: It is left as it was.
        weights: The names of the weights.
        batches: Training samples.
        rows: How many rows to draw from each batch.
        draws: Draws them.

    Returns:
        The inputs, and for each layer that has none here the reason.
    """
    watch = _Watch(model, set(weights), rows, draws)
    with evaluating(model), torch.no_grad(), watch:
        for batch in batches:
            watch.uses.clear()
            batch.forward(model)
    found = {
        name: LayerInputs(watch.geometry[name], torch.cat(parts, 1), watch.largest[name])
        for name, parts in watch.rows.items()
        if watch.uses[name] == 1
    }
    reasons = {}
    for name in watch.wanted - set(found):
        if watch.uses[watch.names[id(model.get_parameter(name))]] > 1:
            reasons[name] = "its weight is used more than once"
        else:
            reasons[name] = watch.reasons.get(
                name, "it is not called as a layer that can be watched"
            )
    return found, reasons


ARGUMENTS = {**LAYER_ARGUMENTS, "addmm": ("bias", "input", "weight")}
"""The layers, by the names of torch's functions, and what their arguments are."""
ATTENTION = "multi_head_attention_forward"


def attention_arguments(args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of `multi_head_attention_forward` by name."""
    return dict(_ATTENTION.bind(*args, **kwargs).arguments)


_ATTENTION = inspect.signature(F.multi_head_attention_forward)


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module, wanted: set[str], most: int, draws: Any) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in model.named_parameters()}
        self.wanted, self.most, self.draws = wanted, most, draws
        self.uses: Counter[str] = Counter()
        self.rows: dict[str, list[Tensor]] = {}
        self.largest: dict[str, Tensor] = {}
        self.geometry: dict[str, Geometry] = {}
        self.reasons: dict[str, str] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        out = func(*args, **kwargs)
        if any(isinstance(each, Tensor) for each in tree_leaves(out)):
            for each in tree_leaves((args, kwargs)):
                if id(each) in self.names:
                    self.uses[self.names[id(each)]] += 1
        if name in ARGUMENTS:
            called = dict(zip(ARGUMENTS[name], args, strict=False)) | kwargs
            self._layer_(name, called)
        elif name == ATTENTION:
            self._attention_(func, attention_arguments(args, kwargs))
        return out

    def _layer_(self, name: str, called: dict[str, Any]) -> None:
        weight, x = called["weight"], called["input"]
        own = self.names.get(id(weight), "")
        if own not in self.wanted:
            return
        groups = int(called.get("groups", 1))
        if name in ("linear", "addmm"):
            self._add_(own, Geometry(turned=name == "addmm"), x.reshape(-1, x.shape[-1]), x, -1)
            return
        dims = weight.ndim - 2
        if name.startswith("conv_transpose"):
            if groups > 1 or any(
                step < size
                for step, size in zip(
                    each_dimension(called.get("stride", 1), dims), weight.shape[2:], strict=True
                )
            ):
                self.reasons[own] = "it is a transposed convolution with groups or overlaps"
                return
            rows = x.movedim(-1 - dims, -1).reshape(-1, x.shape[-1 - dims])
            self._add_(own, Geometry(turned=True), rows, x, -1 - dims)
        elif dims == 3:
            self.reasons[own] = "it is a convolution over three dimensions"
        else:
            self._add_(own, Geometry(groups), _patches(x, called, dims), x, -1 - dims)

    def _attention_(self, func: Any, called: dict[str, Any]) -> None:
        query, key, value = called["query"], called["key"], called["value"]
        together = self.names.get(id(called["in_proj_weight"]), "")
        if together in self.wanted:
            if query is key and key is value:
                self._add_(together, Geometry(), query.reshape(-1, query.shape[-1]), query, -1)
            else:
                self.reasons[together] = "its query, key and value are not the same"
        for own, x in (("q_proj", query), ("k_proj", key), ("v_proj", value)):
            name = self.names.get(id(called.get(f"{own}_weight")), "")
            if name in self.wanted:
                self._add_(name, Geometry(), x.reshape(-1, x.shape[-1]), x, -1)
        last = called["out_proj_weight"]
        own = self.names.get(id(last), "")
        if own in self.wanted:
            # With the identity in its place, what the last projection takes in comes out.
            plain = {"out_proj_weight": torch.eye(len(last)).to(last), "out_proj_bias": None}
            x = func(**{**called, **plain})[0]
            self._add_(own, Geometry(), x.reshape(-1, x.shape[-1]), x, -1)

    def _add_(self, name: str, geometry: Geometry, rows: Tensor, x: Tensor, channels: int) -> None:
        if len(rows) > self.most:
            rows = rows[
                torch.randperm(len(rows), generator=self.draws)[: self.most].to(rows.device)
            ]
        self.geometry[name] = geometry
        self.rows.setdefault(name, []).append(
            rows.unflatten(1, (geometry.groups, -1)).transpose(0, 1)
        )
        largest = x.abs().movedim(channels, 0).flatten(1).amax(1)
        self.largest[name] = torch.maximum(self.largest.get(name, largest), largest)


def _patches(x: Tensor, called: dict[str, Any], dims: int) -> Tensor:
    """Return what a convolution multiplies with its weight, `[n, I * kernel]`."""
    size = tuple(called["weight"].shape[2:])
    step, apart = (each_dimension(called.get(each, 1), dims) for each in ("stride", "dilation"))
    x = F.pad(x, border(called.get("padding", 0), size, apart))
    if x.ndim == dims + 1:
        x = x[None]
    if dims == 1:
        x = x[:, :, None]
        size, step, apart = (1, *size), (1, *step), (1, *apart)
    columns = F.unfold(x, size, apart, 0, step)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])
