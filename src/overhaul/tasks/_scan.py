"""`scan`: the one reading of a split before any work, which hashes and checks every sample."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overhaul.core import DataError, SplitName, Targets, derived_seed, seeded
from overhaul.tasks._samples import Pair, Samples, joined, named_tensors

_SAMPLE_SIZE = 1000
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Scan:
    """What one reading of some samples found.

    Attributes:
        name: What the user calls them: `train`, `val` or `test`.
        samples: What was read.
        positions: Which of them were read, `[S]`.
        digests: A hash of the bytes of the inputs of each, `[S, 16]`.
        targets: The targets of each of `target_positions`.
        target_positions: All positions, where all targets are known; else those that were read.
        form: Type and number of dimensions of each tensor, by its name.
    """

    name: SplitName
    samples: Samples
    positions: Tensor
    digests: NDArray[np.uint8]
    targets: Targets
    target_positions: Tensor
    form: dict[str, tuple[torch.dtype, int]]

    @property
    def complete(self) -> bool:
        """Whether every sample was read."""
        return len(self.positions) == len(self.samples)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The first eight bytes of each digest as one number, `[S]`."""
        keys: NDArray[np.uint64] = self.digests.view(np.uint64)[:, 0]
        return keys

    def fingerprint(self, positions: Tensor | None, prefix: str) -> str:
        """Return a hash of the samples at these positions (None: all), inputs and targets.

        Args:
            positions: Which samples, `[N]`.
            prefix: What else decides how they are read.
        """
        size = len(self.samples) if positions is None else len(positions)
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        digest.update(f"{prefix} {size} {self.form}".encode())
        read = self._inside(self.positions, positions)
        digest.update(self.digests[read.numpy()].tobytes())
        if not self.complete and positions is not None:
            digest.update(positions.numpy().tobytes())
        known = self.targets_at(positions)
        for tensor in named_tensors(known, "target").values():
            digest.update(_rows(tensor).tobytes())
        return digest.hexdigest()

    def targets_at(self, positions: Tensor | None) -> Targets:
        """Return those of the targets that belong to these positions (None: all)."""
        index = self._inside(self.target_positions, positions)
        if isinstance(self.targets, dict):
            return {name: tensor[index] for name, tensor in self.targets.items()}
        return self.targets[index]

    def _inside(self, known: Tensor, wanted: Tensor | None) -> Tensor:
        if wanted is None:
            return torch.arange(len(known))
        if len(known) == len(self.samples):
            return wanted
        return torch.isin(known, wanted).nonzero().flatten()


def scan(name: SplitName, samples: Samples, *, every_sample: bool = True) -> Scan:
    """Read samples once, in order, hash their inputs, and check them.

    Random numbers that a data set draws while it is read come from a fixed seed, so that two
    scans of the same data agree.

    Args:
        name: What the user calls them.
        samples: What to read.
        every_sample: Read all; otherwise 1,000 of them, evenly spaced.

    Raises:
        DataError: there are none, an input is NaN or infinite, or all inputs are the same.
    """
    size = len(samples)
    if size == 0:
        remedy = (
            "Look at how it is read or filtered."
            if name == "train"
            else "Leave it out to have it split off `train`."
        )
        raise DataError(f"`{name}` is empty, and a split needs at least one sample. {remedy}")
    count = size if every_sample else min(size, _SAMPLE_SIZE)
    positions = torch.linspace(0, size - 1, count, dtype=torch.float64).round().long()
    digests: list[bytes] = []
    parts: list[Targets] = []
    form: dict[str, tuple[torch.dtype, int]] = {}
    with seeded(derived_seed(0, "scan")):
        index_batches = list(torch.split(positions, samples.rows_per_read))
        for index_B, pair in zip(index_batches, samples.batches(index_batches), strict=True):
            form = form or _form(pair)
            _check_inputs(name, index_B, pair)
            digests += _digests(pair)
            parts.append(pair[1])
    _check_varied(name, digests)
    targets = _joined(name, parts)
    target_positions = positions
    if count < size:
        known = samples.known_targets()
        if known is not None and _agree(known, targets, positions):
            targets, target_positions = known, torch.arange(size)
    table = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, _DIGEST_BYTES)
    return Scan(name, samples, positions, table, targets, target_positions, form)


def _form(pair: Pair) -> dict[str, tuple[torch.dtype, int]]:
    tensors = named_tensors(pair[0], "input") | named_tensors(pair[1], "target")
    return {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()}


def _check_inputs(name: str, index_B: Tensor, pair: Pair) -> None:
    inputs, targets = pair
    tensors = named_tensors(inputs, "input") | named_tensors(targets, "target")
    for what, tensor in tensors.items():
        if tensor.ndim == 0 or len(tensor) != len(index_B):
            shape = list(tensor.shape)
            raise DataError(
                f"a batch of {len(index_B)} samples of `{name}` has {what} of shape {shape}. The "
                "first dimension of every tensor must be the samples."
            )
    for what, tensor in named_tensors(inputs, "input").items():
        if tensor.is_floating_point():
            check_finite(name, what, index_B, tensor)


def check_finite(name: str, what: str, index_N: Tensor, values: Tensor) -> None:
    """Refuse NaN and infinity.

    Args:
        name: Which split.
        what: Which field of it.
        index_N: The position of each sample in the user's data.
        values: `[N, ...]`.

    Raises:
        DataError: some are not finite; the message names the first sample.
    """
    finite_N = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else values.isfinite()
    if not bool(finite_N.all()):
        row = int((~finite_N).nonzero()[0])
        kind = "NaN" if bool(values[row].isnan().any()) else "infinity"
        raise DataError(
            f"`{name}` has {kind} in {what} of sample {int(index_N[row])}. Fill in or drop such "
            "samples before passing the data."
        )


def _rows(tensor: Tensor) -> NDArray[np.uint8]:
    flat = tensor.contiguous().reshape(len(tensor), -1)
    rows: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return rows


def _digests(pair: Pair) -> list[bytes]:
    columns = [_rows(tensor) for tensor in named_tensors(pair[0], "input").values()]
    rows = np.concatenate(columns, axis=1) if len(columns) > 1 else columns[0]
    return [hashlib.blake2b(row.tobytes(), digest_size=_DIGEST_BYTES).digest() for row in rows]


def _check_varied(name: str, digests: list[bytes]) -> None:
    if len(digests) > 1 and len(set(digests)) == 1:
        raise DataError(
            f"`{name}` has a constant input: all {len(digests)} samples have the same bytes. "
            "Check how the data is read."
        )


def _joined(name: str, parts: list[Targets]) -> Targets:
    try:
        targets: Targets = joined(parts)
    except (RuntimeError, KeyError, TypeError) as error:
        raise DataError(
            f"the targets of `{name}` differ in form from sample to sample: {error}."
        ) from error
    return targets


def _agree(known: Targets, read: Targets, positions: Tensor) -> bool:
    if isinstance(known, Tensor) and isinstance(read, Tensor):
        return torch.equal(known[positions], read)
    if isinstance(known, dict) and isinstance(read, dict):
        return all(torch.equal(known[name][positions], read[name]) for name in read)
    return False
