"""`AddHeads`: one head for each task on a shared trunk."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from overhaul.core import (
    Batch,
    Context,
    ModelError,
    SpecError,
    Splits,
    Step,
    Task,
    Trait,
    Traits,
    evaluating,
    find_head,
    seeded,
)
from overhaul.multitask._multi_task import MultiTask
from overhaul.multitask._needless import needless_layers, used_parameters
from overhaul.multitask._new_heads import NewHeads
from overhaul.multitask._passage import Passage, features_of, observe
from overhaul.multitask._shared_trunk import SeparateTrunks, SharedTrunk, trunk_output

_FORWARD_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError)


class AddHeads(Step):
    r"""Keep the model up to one of its modules, for all tasks, and put a head for each on top.

    .. math:: f_k(x) = W_k\,\operatorname{mean}(h(x)) + b_k

    with what the module returns, :math:`h(x)`, averaged over every position (padding too) if it has
    more dimensions than samples and channels. The losses of all tasks train the one trunk: hard
    parameter sharing. Layers that run only after the module are taken out of the model, and so are
    those that run in training only and do not act on it (auxiliary classifiers). Code that is no
    layer (a `relu` or a `flatten` in the user's `forward`) still runs after it, without effect.

    Before the model is changed, a copy is: what its heads get must be, bit for bit, what the module
    of the untouched model gives on real inputs, in evaluation and (dropout off) in training.

    The control is `shared=False`: each task has its own copy of the trunk, so these are
    single-task models that see the same batches. What they still have in common is one norm
    for `clip_norm`, and one choice of the best epoch.

    Args:
        trunk: Path of the module whose output the heads get: `layer3`.
        head: Path of the layer whose input the heads get, instead of `trunk`: `fc`. Default for
            both: the output layer is found, and the heads take its place.
        channels: Which dimension of what the heads get holds the channels: 1 for convolutions, the
            last for transformers. None finds it by the width of the last layer.
        shared: Whether the tasks share the trunk.

    Shapes: what the heads get `[B, C]` or `[B, ..., C, ...]`; the model returns
        `{name: [B, outputs]}`.

    Raises:
        SpecError: the task is not a `MultiTask`, or both `trunk` and `head` are given.
        ModelError: there is no such module, it runs more than once, it does not return a tensor, or
            the model does not work without the layers after it.

    Example:
        >>> AddHeads(trunk="bn")
        AddHeads(trunk='bn')
        >>> AddHeads(trunk="bn").control()
        AddHeads(trunk='bn', shared=False)

    Paper: Caruana, Machine Learning 28, 1997, section 2.  Differs: the trunk is a trained model.
    """

    gives: ClassVar[Traits] = frozenset({Trait.FITS_TASK, Trait.TRAINABLE})

    trunk: str | None = None
    head: str | None = None
    channels: int | None = Field(
        default=None, ge=1, description="The dimension that holds the channels, from 1 on."
    )
    shared: bool = True

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.trunk is not None and self.head is not None:
            raise SpecError(
                f"give `trunk` (its output is shared) or `head` (its input is), not both: got "
                f"'{self.trunk}' and '{self.head}'."
            )
        return self

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """See that the task has parts to make heads for."""
        _as_multi_task(task)

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Take out what is not needed and add the heads."""
        outputs = _as_multi_task(ctx.task).output_sizes(ctx.data)
        if not self.shared and ctx.carried:
            held = ", ".join(type(item).__name__ for item in ctx.carried)
            raise SpecError(
                f"`shared=False` copies every layer, and what earlier steps left ({held}) would "
                "hold for none of the copies. Put AddHeads before these steps."
            )
        batch = next(ctx.data.train.in_order(2)).to(_device(model))
        path, passage = self._find_place(model, batch)
        channels = self._find_channels(path, passage)
        edit = NewHeads(
            trunk=path,
            outputs=outputs,
            features=passage.features.shape[channels],
            channels=channels,
            removed=needless_layers(model, batch, path, passage, at_input=self.trunk is None),
            shared=self.shared,
            dtype=str(passage.features.dtype).removeprefix("torch."),
        )
        _check_same_features(model, batch, edit, at_input=self.trunk is None)
        before = _count(model)
        edited = ctx.edit(model, edit)
        _log(edit, passage, before - _count(_trunks(edited)[0]), ctx)
        _log_unused(edited, next(ctx.data.train.in_order(3)).to(_device(edited)), ctx)
        return edited

    def control(self) -> Step:
        """Return the single-task baselines: a trunk of its own for each task."""
        return self.model_copy(update={"shared": False})

    def _find_place(self, model: nn.Module, batch: Batch) -> tuple[str, Passage]:
        remedy = "Name the layer whose input the heads get with `head`"
        try:
            path = self.trunk or self.head or find_head(model, batch, remedy=remedy)
            with evaluating(model):
                return path, observe(model, batch, path, at_input=self.trunk is None)
        except ModelError:
            raise
        except _FORWARD_ERRORS as error:
            raise ModelError(f"the model fails on a batch of the data: {error}") from error

    def _find_channels(self, path: str, passage: Passage) -> int:
        shape = list(passage.features.shape)
        if not passage.features.is_floating_point() or len(shape) < 2:
            raise ModelError(
                f"the heads need numbers [B, C] or [B, ...] from '{path}', got {shape} "
                f"{str(passage.features.dtype).removeprefix('torch.')}. Name another module."
            )
        channels = passage.channels if self.channels is None else self.channels
        if channels is None:
            raise ModelError(
                f"it is not clear which dimension of {shape} from '{path}' holds the channels. Say "
                "so with `channels`: 1 for convolutions, the last for transformers."
            )
        if channels >= len(shape):
            raise ModelError(
                f"`channels` is {channels}, and what comes from '{path}' has the shape {shape}. "
                f"Name one of the dimensions 1 to {len(shape) - 1}."
            )
        return channels


def _as_multi_task(task: Task) -> MultiTask:
    if not isinstance(task, MultiTask):
        raise SpecError(
            f"AddHeads makes a head for each part of a multi_task, and the task is "
            f"{task.spec_name()}. Use ReplaceHead, or MultiTask(tasks={{...}})."
        )
    return task


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _explained(edit: NewHeads) -> Iterator[None]:
    try:
        yield
    except _FORWARD_ERRORS as error:
        removed = ", ".join(edit.removed) or "nothing"
        raise ModelError(
            f"the model does not work as a trunk that ends at '{edit.trunk}': without the layers "
            f"that run only after it ({removed}) its forward pass fails: {error}. Choose a later "
            "module, or move the code that needs them into a layer of its own."
        ) from error


def _check_same_features(model: nn.Module, batch: Batch, edit: NewHeads, *, at_input: bool) -> None:
    """See on copies that the heads will get what the module of the untouched model gives."""
    for training in (False, True):
        untouched = _without_dropout(deepcopy(model).train(training))
        edited = _without_dropout(edit.apply(deepcopy(model)).train(training))
        with torch.no_grad(), seeded(0):
            wanted = features_of(untouched, batch, edit.trunk, at_input=at_input)
        for part in _trunks(edited):
            with _explained(edit), torch.no_grad(), seeded(0):
                found = trunk_output(part, edit.trunk, *batch.arguments)
            if not torch.equal(found, wanted):
                mode = "training" if training else "evaluation"
                raise ModelError(
                    f"without the layers that run only after '{edit.trunk}' "
                    f"({', '.join(edit.removed)}) it gives something else in {mode}. They take "
                    "part in some other way than by being called. Choose a later module."
                )


def _without_dropout(model: nn.Module) -> nn.Module:
    """Turn dropout off: a layer that was taken out would have drawn numbers before the others."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return model


def _trunks(edited: nn.Module) -> list[nn.Module]:
    if isinstance(edited, SharedTrunk):
        return [edited.trunk]
    assert isinstance(edited, SeparateTrunks)
    return list(edited.trunks.values())


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _log(edit: NewHeads, passage: Passage, removed: int, ctx: Context) -> None:
    detail = {
        "features": list(passage.features.shape[1:]),
        "channels": edit.channels,
        "outputs": edit.outputs,
        "shared": edit.shared,
    }
    ctx.log("trunk", edit.trunk, detail=detail)
    ctx.log("removed_parameters", removed, detail={"layers": list(edit.removed)})


def _log_unused(edited: nn.Module, batch: Batch, ctx: Context) -> None:
    """Log what is still there although no head depends on it.

    Raises:
        ModelError: the heads do not give one output for each sample.
    """
    copy = deepcopy(edited).train()
    parameters = {name: p for name, p in copy.named_parameters() if p.is_floating_point()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    outputs = batch.forward(copy)
    assert isinstance(outputs, dict)
    if any(len(output) != len(batch) for output in outputs.values()):
        raise ModelError(
            f"what the heads get must have the samples as its first dimension, and the heads give "
            f"{len(next(iter(outputs.values())))} outputs for {len(batch)} samples. Name another "
            "module, or build the model with batch_first=True."
        )
    used = used_parameters(torch.cat(list(outputs.values()), dim=1), parameters)
    unused = [name for name in parameters if name not in used]
    if unused:
        ctx.log(
            "unused_parameters",
            sum(parameters[name].numel() for name in unused),
            reason="no head depends on them, on three samples; they do not belong to a layer that "
            "could be taken out",
            detail={"parameters": unused},
        )
