"""`BiasCorrection`: what rounding adds to an output on average goes out of its bias."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from overhaul.core import Batch, Context, evaluating, without_fast_path
from overhaul.quantization._plan import Plan, computes
from overhaul.quantization._repair import QuantizationRepair


class BiasCorrection(QuantizationRepair):
    r"""Add to the bias of each layer what its outputs lost on average.

    .. math:: b \leftarrow b + \operatorname{mean}(y - \hat y)

    for each output channel, over samples and places, with :math:`y` the output of the layer in the
    real model and :math:`\hat y` in the quantized one, where the layers before are corrected
    already. A layer whose squared error would grow keeps its bias.

    Example:
        >>> BiasCorrection()
        BiasCorrection()

    Paper: Nagel et al., ICCV 2019, section 4.2 and appendix D.  Differs: one pass corrects all
    layers: each takes the average over the batches so far and hands the corrected output on.
    """

    @torch.no_grad()
    def finish_(
        self,
        model: nn.Module,
        quantized: nn.Module,
        plan: Plan,
        batches: Sequence[Batch],
        ctx: Context,
    ) -> None:
        """Change the biases of the quantized model."""
        known = _layers(quantized, plan, ctx)
        first = _Outputs(known)
        first.run(model, batches[0])
        # The outputs of another call are no measure of this one, and later layers would see them.
        layers = {path: layer for path, layer in known.items() if first.calls[path] == 1}
        for path in [each for each in known if each not in layers]:
            _skip(path, first.calls[path], ctx)
        right, found = _Outputs(layers), _Corrected(layers)
        for batch in batches:
            right.run(model, batch)
            found.right = right.outputs
            found.run(quantized, batch)
        for path, (biased, _) in layers.items():
            if found.calls[path] != len(batches):
                _skip(path, found.calls[path], ctx)
                continue
            before, after = found.errors[path]
            kept = after < before
            if kept:
                bias = quantized.get_parameter(biased)
                bias.add_((found.sums[path] / len(batches)).to(bias))
            ctx.log(
                "repair_error",
                after if kept else before,
                detail={"repair": self.spec_name(), "layer": path, "before": before},
            )


def _skip(path: str, calls: int, ctx: Context) -> None:
    how = "more than once" if calls else "never"
    detail = {"repair": BiasCorrection.spec_name()}
    ctx.log("skipped", path, reason=f"it is called {how}", detail=detail)


def _layers(quantized: nn.Module, plan: Plan, ctx: Context) -> dict[str, tuple[str, int]]:
    """Return for each layer the name of its bias, and which dimension its channels are."""
    found: dict[str, tuple[str, int]] = {}
    parameters = dict(quantized.named_parameters())
    within = [
        f"{path}.".removeprefix(".")
        for path in plan.layers
        if isinstance(quantized.get_submodule(path), nn.MultiheadAttention)
    ]
    for path, form in plan.layers.items():
        if not form.weights or path.removesuffix("out_proj") in within:
            continue
        layer = quantized.get_submodule(path)
        own = "out_proj.bias" if isinstance(layer, nn.MultiheadAttention) else "bias"
        name = f"{path}.{own}".removeprefix(".")
        if not computes(layer):
            reason = "it is a table or recurrent: it has no output with a bias of its own"
        elif name not in parameters:
            reason = "it has no bias"
        else:
            spatial = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
            found[path] = (name, -1 - spatial)
            continue
        ctx.log("skipped", path, reason=reason, detail={"repair": BiasCorrection.spec_name()})
    return found


class _Outputs:
    """Keeps the outputs of layers, of one batch."""

    def __init__(self, layers: dict[str, tuple[str, int]]) -> None:
        self.layers = layers
        self.outputs: dict[str, Tensor] = {}
        self.calls: Counter[str] = Counter()

    def run(self, model: nn.Module, batch: Batch) -> None:
        hooks = [
            model.get_submodule(path).register_forward_hook(self._hook(path))
            for path in self.layers
        ]
        try:
            with evaluating(model), without_fast_path():
                batch.forward(model)
        finally:
            for hook in hooks:
                hook.remove()

    def see(self, path: str, out: Tensor) -> Tensor:
        self.calls[path] += 1
        # What follows may work in place.
        self.outputs[path] = out.clone()
        return out

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            if isinstance(out, tuple):
                return (self.see(path, out[0]), *out[1:])
            return self.see(path, out)

        return hook


class _Corrected(_Outputs):
    """Corrects the outputs of layers as they come."""

    def __init__(self, layers: dict[str, tuple[str, int]]) -> None:
        super().__init__(layers)
        self.right: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.errors: dict[str, tuple[float, float]] = {}

    def see(self, path: str, out: Tensor) -> Tensor:
        dim = self.layers[path][1]
        error = (self.right[path].double() - out.double()).movedim(dim, -1).flatten(0, -2)
        self.calls[path] += 1
        mean = error.mean(0)
        self.sums[path] = self.sums[path] + mean if path in self.sums else mean
        shift = self.sums[path] / self.calls[path]
        before, after = self.errors.get(path, (0.0, 0.0))
        size = float(self.right[path].double().square().sum().clamp(min=1e-30))
        self.errors[path] = (
            before + float(error.square().sum()) / size,
            after + float((error - shift).square().sum()) / size,
        )
        shape = [1] * out.ndim
        shape[dim] = -1
        return out + shift.view(shape).to(out)
