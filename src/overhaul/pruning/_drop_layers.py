"""`DropLayers`: whole layers are taken out, those that are missed least."""

import math
from copy import deepcopy
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    ModelError,
    Step,
    Trait,
    Traits,
    evaluating,
    matching_names,
)
from overhaul.evaluation import count_macs, model_device
from overhaul.pruning._droppable import droppable, without
from overhaul.pruning._replace_by_identity import ReplaceByIdentity

_TARGETS = ("count", "fraction", "macs")


class DropLayers(Step):
    r"""Take out the residual blocks and encoder layers whose absence raises the loss least.

    With the loss :math:`L` on part of `val`, and :math:`f_{-l}` the model in which layer :math:`l`
    hands on its input, the layer

    .. math:: \arg\min_l L(f_{-l})

    goes; then those that are left are measured again, until the target is met. In its place stays a
    module without weights, so that the program around it runs as before.

    A layer can go if it is called once, its first output has the shape and type of its first input,
    and the model runs without it. Without `layers`, those are the modules with parts of their own
    in an `nn.Sequential`, `nn.ModuleList` or `nn.ModuleDict`: the blocks of a ResNet, the layers of
    an encoder. Where one is inside another, those of the container with more of them are taken, or
    the outer ones.

    Args:
        count: How many layers go.
        fraction: Which fraction of those that can go goes, in (0, 1); rounded, at least one.
        macs: Go on until at most this fraction of the multiply-accumulate operations is left, in
            (0, 1).
        layers: Patterns of module paths: what they match can go, wherever it is; of what is inside
            each other, the outermost (`b3` is the block, not a part of it). Default: as above.
        exclude: Patterns of module paths that stay.
        samples: How many samples of `val` the loss is measured on, drawn at random. Default 512.
        batch_size: Samples in one forward pass. Default 64.

    Raises:
        SpecError: not exactly one target is given.
        ModelError: a pattern matches nothing or nothing that can go, or the target cannot be
            reached; the model is then as before.

    Example:
        >>> DropLayers(count=1)
        DropLayers(count=1)

    Paper: Fan, Grave and Joulin, ICLR 2020 (LayerDrop); Gromov et al., 2024 (depth of language
    models).  Differs: the model was not trained for it, and layers are chosen one by one by the
    measured loss, not by a fixed pattern or by how alike input and output are.
    """

    needs: ClassVar[Traits] = frozenset({Trait.EDITABLE, Trait.FITS_TASK})

    count: int | None = Field(default=None, ge=1, description="It is how many layers go.")
    fraction: float | None = Field(
        default=None, gt=0, lt=1, description="It is the fraction of the layers that goes."
    )
    macs: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="It is the fraction that is kept: for 'half the MACs' write 0.5.",
    )
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    samples: int = Field(default=512, ge=1, description="Samples of val that the loss is taken on.")
    batch_size: int = Field(default=64, ge=1, description="Samples in one forward pass.")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "DropLayers needs exactly one of `count`, `fraction` and `macs`, got "
                f"{' and '.join(given) or 'none'}."
            )
        return self

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Measure and drop until the target is met."""
        batch = next(ctx.data.train.in_order(2)).to(model_device(model))
        modules = dict(model.named_modules())
        spared = matching_names(modules, self.exclude, "exclude") if self.exclude else set()
        ways, refused = droppable(model, batch, self.layers, spared)
        for path, why in refused.items():
            ctx.log("skipped", path, reason=why)
        full = count_macs(model, batch).per_sample
        self._see_that_it_can_be_met(model, batch, ways, full)
        shuffled = torch.randperm(len(ctx.data.val), generator=ctx.generator("val"))
        indices = shuffled[: self.samples].sort().values
        loss, dropped, total = self._loss(model, ctx, indices), 0, len(ways)
        with ctx.progress.bar(ctx.label, self._most_measurements(total)) as advance:
            while not self._met(model, batch, dropped, total, full):
                losses: dict[str, float] = {}
                for path, way in ways.items():
                    with without(model, way):
                        losses[path] = self._loss(model, ctx, indices)
                    advance(f"{path} {losses[path]:.4f}")
                best = min(losses, key=lambda path: _nan_last(losses[path]))
                detail = {"before": loss, "after": losses[best], "losses": losses}
                ctx.log("dropped_layer", best, split="val", n=len(indices), detail=detail)
                model, loss = ctx.edit(model, ways.pop(best)), losses[best]
                dropped += 1
        ctx.log("dropped_layers", dropped, detail={"of": total})
        ctx.log("kept_macs", count_macs(model, batch).per_sample / full)
        return model

    def _see_that_it_can_be_met(
        self, model: nn.Module, batch: Batch, ways: dict[str, ReplaceByIdentity], full: int
    ) -> None:
        if not ways:
            raise ModelError(
                "DropLayers found no layer that can go: one that is called once and returns what "
                "it gets in the same shape. Name it with `layers` if it is not in a Sequential or "
                "ModuleList."
            )
        if self.count is not None and self.count > len(ways):
            raise ModelError(
                f"`count` is {self.count}, and {len(ways)} layers can go: {', '.join(ways)}."
            )
        if self.macs is not None:
            least = deepcopy(model)
            for way in ways.values():
                least = way.apply(least)
            left = count_macs(least, batch).per_sample / full
            if left > self.macs:
                raise ModelError(
                    f"the model keeps {left:.3f} of its MACs when all {len(ways)} layers go that "
                    f"can, and {self.macs:.3f} was asked for. Ask for more, or add PruneChannels."
                )

    def _goal(self, total: int) -> int | None:
        if self.fraction is not None:
            return max(1, round(self.fraction * total))
        return self.count

    def _most_measurements(self, total: int) -> int:
        goal = self._goal(total) or total
        return sum(range(total - goal + 1, total + 1))

    def _met(self, model: nn.Module, batch: Batch, dropped: int, total: int, full: int) -> bool:
        goal = self._goal(total)
        if goal is not None:
            return dropped >= goal
        assert self.macs is not None
        return count_macs(model, batch).per_sample / full <= self.macs

    def _loss(self, model: nn.Module, ctx: Context, indices: Tensor) -> float:
        device, total = model_device(model), 0.0
        with evaluating(model):
            for batch in ctx.data.val.batches(list(indices.split(self.batch_size))):
                there = batch.to(device)
                loss = ctx.task.loss(there.forward(model), there.targets)
                total += float(loss) * len(batch)
        return total / len(indices)


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
