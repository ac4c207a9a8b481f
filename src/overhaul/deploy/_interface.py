"""`Interface`: the inputs and outputs of a model, found by running it."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from overhaul.core import ArtifactError, Batch, Outputs, OverhaulError, Split, model_tensors
from overhaul.runtime import TensorInfo

FORWARD_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, KeyError)
_SIZES = (5, 3)
_APART = 0.05
"""Far more than what kernels for another number of samples round otherwise, in few bits too."""


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a model.

    Attributes:
        inputs: In the order of the batch.
        outputs: One, or one for each named task.
        named_inputs: Whether the model is called with keywords.
        named_outputs: Whether the model returns a dict.
        length: The shortest and the longest sequence; None if no length may change.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    named_inputs: bool
    named_outputs: bool
    length: tuple[int, int] | None = None

    @classmethod
    def of(cls, model: nn.Module, split: Split) -> "Interface":
        """Run the model on real batches of two sizes and see what changes with the size.

        Args:
            model: In evaluation mode, on the CPU.
            split: Where the batches come from.

        Raises:
            ArtifactError: the model fails at one of the sizes or changes tensors in place, an
                output depends on the other samples, an input is not a tensor, or its shape differs
                from sample to sample.
        """
        batches = [real_batch(split, size) for size in _SIZES]
        found = [_outputs(model, batch) for batch in batches]
        outputs = [named(one) for one in found]
        names = input_names(model, batches[0])
        inputs = [dict(zip(names, flat_inputs(batch), strict=True)) for batch in batches]
        interface = cls(
            tuple(_describe("input", name, [sizes[name] for sizes in inputs]) for name in names),
            tuple(_describe("output", name, [o[name] for o in outputs]) for name in outputs[0]),
            isinstance(batches[0].inputs, dict),
            isinstance(found[0], dict),
        )
        _see_that_samples_are_apart(model, batches[0], outputs)
        return interface


def real_batch(split: Split, size: int, start: int = 0) -> Batch:
    """Return `size` samples of a split from position `start` on, going round at its end."""
    return split.read((torch.arange(size) + start) % len(split))


def flat_inputs(batch: Batch) -> list[Tensor]:
    """Return the inputs of a batch in order.

    Raises:
        ArtifactError: one of them is not a tensor.
    """
    inputs = batch.inputs
    pairs = list(inputs.items() if isinstance(inputs, dict) else enumerate(inputs))
    for name, value in pairs:
        if not isinstance(value, Tensor):
            raise ArtifactError(
                f"every input of a deployed model must be a tensor, and input `{name}` is "
                f"{type(value).__name__}. Give the task data whose inputs are tensors."
            )
    return [value for _, value in pairs]


def input_names(model: nn.Module, batch: Batch) -> list[str]:
    """Return what the inputs of a batch are called: by the batch, else by the model's `forward`."""
    if isinstance(batch.inputs, dict):
        return list(batch.inputs)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    count = len(batch.inputs)
    return [*names[:count], *(f"input_{i}" for i in range(len(names), count))]


def named(outputs: Outputs) -> Mapping[str, Tensor]:
    """Return outputs by name; a single one is called `output`."""
    return outputs if isinstance(outputs, dict) else {"output": outputs}


def _outputs(model: nn.Module, batch: Batch) -> Outputs:
    names = input_names(model, batch)
    inputs = {f"input {n}": x for n, x in zip(names, flat_inputs(batch), strict=True)}
    watched = {**model_tensors(model), **inputs}
    versions = {name: tensor._version for name, tensor in watched.items()}
    try:
        with torch.no_grad():
            outputs = batch.forward(model)
    except OverhaulError:
        raise
    except FORWARD_ERRORS as error:
        raise ArtifactError(
            "a deployed model must take any number of samples, and this one fails on "
            f"{len(batch)}: {error}. Look for a `reshape`, `view` or `expand` with a written "
            "number of samples and use `x.shape[0]` or -1 instead."
        ) from error
    changed = [name for name, tensor in watched.items() if tensor._version != versions[name]]
    if changed:
        raise ArtifactError(
            "a deployed model must compute the same from call to call, and this one changes "
            f"`{changed[0]}` in place. Compute a new tensor instead, or change it in training "
            "mode only."
        )
    return outputs


def _see_that_samples_are_apart(
    model: nn.Module, batch: Batch, found: Sequence[Mapping[str, Tensor]]
) -> None:
    """Refuse a model whose answer for a sample depends on the other samples of the call.

    Both batches begin with the same samples. A model that answers otherwise each time is left to
    the comparison with its artifact, which can name the operation.
    """
    for name, output in found[1].items():
        wanted = found[0][name]
        if not output.ndim or (len(wanted), len(output)) != _SIZES:
            continue
        far = _apart(output, wanted[: len(output)])
        if far > _APART and _apart(named(_outputs(model, batch))[name], wanted) <= _APART:
            raise ArtifactError(
                f"a deployed model must compute each sample by itself, and `{name}` of the same "
                f"samples differs by {far:.2g} of the largest if others are in the call. Look for "
                "a mean or a norm over the first dimension, such as BatchNorm with "
                "track_running_stats=False."
            )


def _apart(one: Tensor, other: Tensor) -> float:
    if not one.is_floating_point() or one.shape != other.shape or not one.numel():
        return 0.0
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))


def _describe(kind: str, name: str, tensors: Sequence[Tensor]) -> TensorInfo:
    first, second = tensors
    shape: list[int | str] = []
    for dimension, sizes in enumerate(zip(first.shape, second.shape, strict=True)):
        if sizes[0] == sizes[1]:
            shape.append(sizes[0])
        elif sizes == _SIZES:
            shape.append("batch")
        else:
            raise ArtifactError(
                f"the samples of a deployed model must all have one shape, and dimension "
                f"{dimension} of {kind} `{name}` is {sizes[0]} for some and {sizes[1]} for others. "
                "Pad or cut the data to one length."
            )
    return TensorInfo(name=name, dtype=_dtype(first), shape=tuple(shape))


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
