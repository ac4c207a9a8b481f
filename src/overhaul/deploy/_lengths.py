"""`with_lengths`: which inputs are sequences, and how short and long they may be."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from overhaul.core import ArtifactError, Batch
from overhaul.deploy._capture import capture
from overhaul.deploy._interface import FORWARD_ERRORS, Interface, flat_inputs, named
from overhaul.runtime import TensorInfo

_WHOLE = ("int64", "int32")
_OUT_OF_RANGE = "Not all values of length"
_MORE = 4
"""How many shortest lengths are tried."""


def with_lengths(
    model: nn.Module, batch: Batch, interface: Interface, *, longest: int | None, wanted: bool
) -> Interface:
    """Let the second dimension of sequences change, as far as the model can.

    Sequences are whole numbers `[B, T]`, and real numbers `[B, T, F]` where the model is recurrent
    or the user says so; inputs `[B, T]` of the same length (masks) go with them. The shortest
    length is the smallest that the model runs on.

    Args:
        model: In evaluation mode, on the CPU.
        batch: Real inputs.
        interface: Its inputs and outputs, in which only the batch may change.
        longest: The longest length; None for that of the batch.
        wanted: Whether the user asked for it.

    Returns:
        The interface as it was if there are no sequences and nobody asked.

    Raises:
        ArtifactError: there are none and the user asked, or the model takes no other length.
    """
    length, names = _sequences(model, interface, wanted)
    if not names:
        if not wanted:
            return interface
        raise ArtifactError(
            "no input is a sequence: whole numbers [B, T], or real numbers [B, T, F]. Leave out "
            "`dynamic_length` and `max_length`."
        )
    longest = length if longest is None else longest
    if longest < length:
        raise ArtifactError(
            f"`max_length` must be at least the length of the data, {length}, got {longest}."
        )
    inputs = tuple(
        replace(info, shape=("batch", "length", *info.shape[2:])) if info.name in names else info
        for info in interface.inputs
    )
    flexible = replace(interface, inputs=inputs)

    def problem(size: int) -> str | None:
        try:
            with torch.no_grad():
                of_length(batch, flexible, size).forward(model)
        except FORWARD_ERRORS as error:
            return " ".join(str(error).split())
        return None

    shortest = _smallest(lambda size: problem(size) is None, length)
    for size in {min(length - 1, shortest), longest}:
        if shortest >= length or problem(size) is not None:
            raise ArtifactError(
                f"the model takes sequences of {length} and not of {size}: {problem(size)}. Look "
                "for a layer or a `reshape` with a written length."
            )
    other = of_length(batch, flexible, shortest)
    with torch.no_grad():
        found = [named(each.forward(model)) for each in (other, batch)]
    outputs = tuple(
        _changing(info, found[0][info.name], found[1][info.name]) for info in interface.outputs
    )
    return replace(flexible, outputs=outputs, length=(shortest, longest))


def capture_flexible(
    model: nn.Module, batch: Batch, interface: Interface
) -> tuple[ExportedProgram, Interface]:
    """Trace a model whose lengths may change, and return what may change then.

    torch takes a size of one for a constant, whatever it is the size of: after a convolution the
    shortest length may be one or two more than that which the model itself takes.

    Raises:
        ArtifactError: see `capture`.
    """
    if interface.length is None:
        return capture(model, batch, interface), interface
    shortest, longest = interface.length
    for more in range(_MORE):
        tried = replace(interface, length=(min(shortest + more, longest), longest))
        try:
            return capture(model, batch, tried), tried
        except ArtifactError as error:
            if _OUT_OF_RANGE not in str(error.__cause__) or more == _MORE - 1:
                raise
    raise AssertionError("the last try returns or raises")


def of_length(batch: Batch, interface: Interface, length: int) -> Batch:
    """Return a batch whose sequences are cut, or repeated from their beginning, to a length."""
    pairs = zip(interface.inputs, flat_inputs(batch), strict=True)
    values = [_resized(x, length) if "length" in info.shape else x for info, x in pairs]
    keys = list(batch.inputs) if isinstance(batch.inputs, dict) else None
    inputs = tuple(values) if keys is None else dict(zip(keys, values, strict=True))
    return replace(batch, inputs=inputs)


def _sequences(model: nn.Module, interface: Interface, wanted: bool) -> tuple[int, set[str]]:
    """Return the length of the first sequence, and the inputs that share it."""
    real = wanted or any(isinstance(module, nn.RNNBase) for module in model.modules())

    def is_sequence(info: TensorInfo) -> bool:
        whole = info.dtype in _WHOLE
        return (len(info.shape) == 2 and whole) or (len(info.shape) == 3 and not whole and real)

    sized = [info for info in interface.inputs if len(info.shape) > 1 and info.shape[0] == "batch"]
    sequences = [info for info in sized if is_sequence(info)]
    if not sequences:
        return 0, set()
    length = sequences[0].shape[1]
    assert isinstance(length, int)
    beside = [info for info in sized if info in sequences or len(info.shape) == 2]
    return length, {info.name for info in beside if info.shape[1] == length}


def _smallest(works: Callable[[int], bool], known: int) -> int:
    """Return the smallest size that works, by bisection; `known` does."""
    low, high = 1, known
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle + 1, high)
    return high


def _resized(x: Tensor, length: int) -> Tensor:
    times = -(-length // x.shape[1])
    return torch.cat([x] * times, 1)[:, :length]


def _changing(info: TensorInfo, other: Tensor, own: Tensor) -> TensorInfo:
    """Name the dimensions of an output that change with the length."""
    if len(info.shape) != other.ndim:
        raise ArtifactError(f"output `{info.name}` has another number of dimensions at each length")
    shape = list(info.shape)
    for i, (size, before) in enumerate(zip(other.shape, own.shape, strict=True)):
        if size != before:
            shape[i] = "varies"
    return replace(info, shape=tuple(shape))
