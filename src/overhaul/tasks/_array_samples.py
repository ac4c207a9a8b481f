"""`ArraySamples`: data that is in memory as tensors, read by indexing."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from overhaul.core import DataError, Targets
from overhaul.tasks._samples import Inputs, Pair, Samples, named_tensors


class ArraySamples(Samples):
    """Data that is in memory as tensors, read by indexing.

    Args:
        inputs: Tensors with the samples along the first dimension.
        targets: The same for the targets, or for each named task.
        pixels: uint8 inputs are pixels, to be read as floats in [0, 1].
        where: Which split this is, for the error.

    Raises:
        DataError: the tensors differ in their number of samples.

    Example:
        >>> import torch
        >>> data = ArraySamples((torch.arange(6.0).reshape(3, 2),), torch.tensor([0, 1, 0]))
        >>> next(data.batches([torch.tensor([2])]))
        ((tensor([[4., 5.]]),), tensor([0]))
    """

    def __init__(
        self, inputs: Inputs, targets: Targets, *, pixels: bool = False, where: str = "train"
    ) -> None:
        """Hold the tensors, which are not copied."""
        self._inputs, self._targets = inputs, targets
        self.pixels = pixels
        tensors = named_tensors(inputs, "input") | named_tensors(targets, "target")
        for name, tensor in tensors.items():
            if tensor.ndim == 0:
                raise DataError(f"{name} of `{where}` is a single number, not one per sample.")
        sizes = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(sizes.values())) > 1:
            counts = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise DataError(
                f"inputs and targets of `{where}` must have the same number of samples: {counts}. "
                "The samples go along the first dimension, and the targets come last: (x, y)."
            )
        self._size = next(iter(sizes.values()))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._size

    def batches(self, index_batches: Iterable[Tensor], workers: int = 0) -> Iterator[Pair]:
        """Yield copies of the samples at each tensor of positions; `workers` are not needed."""
        for index_B in index_batches:
            yield self._at(index_B)

    def known_targets(self) -> Targets:
        """Return every target."""
        return self._targets

    def take(self, index_N: Tensor) -> "ArraySamples":
        """Return the samples at these positions."""
        return ArraySamples(*self._at(index_N), pixels=self.pixels)

    def _at(self, index_B: Tensor) -> Pair:
        inputs: Inputs
        if isinstance(self._inputs, dict):
            inputs = {name: tensor[index_B] for name, tensor in self._inputs.items()}
        else:
            inputs = tuple(tensor[index_B] for tensor in self._inputs)
        if isinstance(self._targets, dict):
            return inputs, {name: tensor[index_B] for name, tensor in self._targets.items()}
        return inputs, self._targets[index_B]
