"""`PruneWeights`: set the smallest weights to zero."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from overhaul.core import Context, ModelError, Step, StoresIntegers, matching_names, owner_of
from overhaul.pruning._keep_zeros import KeepZeros

_PRUNABLE = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


class PruneWeights(Step):
    r"""Set the weights of smallest magnitude to zero, and keep them zero in later training.

    With a threshold :math:`\tau`, :math:`w \leftarrow w\,[|w| > \tau]`. With a sparsity
    :math:`s`, exactly :math:`\mathrm{round}(s N)` of the :math:`N` weights become zero, those of
    smallest magnitude: of all layers together (`scope="global"`) or of each layer for itself
    (`"layer"`).

    The tensors keep their shapes: the file compresses better, but the plain file gets no smaller,
    and an engine without sparse kernels no faster. The report says so.

    Args:
        sparsity: Fraction of the weights that become zero, in [0, 1).
        threshold: The magnitude :math:`\tau` up to which weights become zero, instead of
            `sparsity`.
        scope: Whether layers are compared with each other. Default `global`.
        layers: Patterns of module paths (`layer1`, `*.conv2`). Default: the matrices and kernels
            of every linear, convolutional, recurrent and attention layer. Biases are never pruned.
        exclude: Patterns of module paths that are left as they are.

    Raises:
        SpecError: both or neither of `sparsity` and `threshold` are given.
        ModelError: a pattern matches nothing, or a weight is NaN.

    Example:
        >>> PruneWeights(sparsity=0.8)
        PruneWeights(sparsity=0.8)

    Paper: Han et al., NeurIPS 2015.  Differs: a count of weights instead of a multiple of each
    layer's standard deviation.
    """

    sparsity: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="It is the fraction that becomes zero: for 'remove all but 10 %' write 0.9.",
    )
    threshold: float | None = Field(
        default=None, gt=0, description="It is the magnitude up to which weights become zero."
    )
    scope: Literal["global", "layer"] = "global"
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.sparsity is None) == (self.threshold is None):
            raise ValueError("PruneWeights needs one of `sparsity` and `threshold`, not both.")
        return self

    @torch.no_grad()
    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Zero the weights in place and leave `KeepZeros` for later training."""
        chosen = self._choose(model, ctx)
        for name, weight in chosen.items():
            if weight.isnan().any():
                raise ModelError(f"'{name}' has NaN in it. Prune the model before it diverged.")
        groups = [list(chosen)] if self.scope == "global" else [[name] for name in chosen]
        for names in groups:
            self._prune_([chosen[name] for name in names])
        for name, weight in chosen.items():
            ctx.log("layer_sparsity", _sparsity([weight]), detail={"parameter": name})
        ctx.log(
            "sparsity",
            _sparsity(list(chosen.values())),
            n=sum(weight.numel() for weight in chosen.values()),
        )
        ctx.carried = [item for item in ctx.carried if not isinstance(item, KeepZeros)]
        ctx.carry(KeepZeros(parameters=tuple(chosen)))
        return model

    def _choose(self, model: nn.Module, ctx: Context) -> dict[str, nn.Parameter]:
        modules = dict(model.named_modules())
        wanted = matching_names(modules, self.layers, "layers") if self.layers else None
        spared = matching_names(modules, self.exclude, "exclude") if self.exclude else set()
        chosen: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            owner = owner_of(name)
            if (
                parameter.ndim < 2
                or owner in spared
                or (wanted is not None and owner not in wanted)
            ):
                continue
            if wanted is None and not isinstance(modules[owner], _PRUNABLE):
                kind = type(modules[owner]).__name__
                ctx.log(
                    "skipped",
                    name,
                    reason=f"a {kind} is pruned only when it is named in `layers`",
                )
                continue
            chosen[name] = parameter
        if not chosen:
            if any(isinstance(module, StoresIntegers) for module in modules.values()):
                raise ModelError(
                    "PruneWeights found no weight to prune: they are stored in few bits already. "
                    "Put it before Quantize, which keeps the zeros."
                )
            raise ModelError("PruneWeights found no weight to prune. Name layers with `layers`.")
        return chosen

    def _prune_(self, weights: list[nn.Parameter]) -> None:
        if self.threshold is not None:
            for weight in weights:
                weight.masked_fill_(weight.abs() <= self.threshold, 0)
            return
        zero_smallest_(weights, self.sparsity or 0.0)


def zero_smallest_(weights: list[nn.Parameter] | list[Tensor], sparsity: float) -> None:
    """Set exactly the fraction `sparsity` of all these weights to zero, the smallest ones.

    Among equal magnitudes the earlier weight goes first.
    """
    magnitudes = torch.cat([weight.detach().abs().flatten().float() for weight in weights])
    count = round(sparsity * magnitudes.numel())
    doomed = torch.zeros_like(magnitudes, dtype=torch.bool)
    doomed[magnitudes.argsort(stable=True)[:count]] = True
    sizes = [weight.numel() for weight in weights]
    for weight, part in zip(weights, torch.split(doomed, sizes), strict=True):
        weight.masked_fill_(part.view(weight.shape), 0)


def _sparsity(weights: list[nn.Parameter]) -> float:
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)
