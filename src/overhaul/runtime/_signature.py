"""`Signature`: what a deployed model takes, what it returns, and what runs it."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from overhaul.runtime._errors import ArtifactError
from overhaul.runtime._fields import Fields

SIGNATURE = "signature.json"
"""The file of an artifact that says what it takes and returns."""
FORMAT_VERSION = 1


class AnyTensor(Protocol):
    """A NumPy array or a torch tensor."""

    @property
    def dtype(self) -> Any:
        """Its type."""

    @property
    def shape(self) -> Any:
        """Its sizes."""


T = TypeVar("T", bound=AnyTensor)


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One input or output of a deployed model.

    Attributes:
        name: Its name.
        dtype: Its type: `float32`.
        shape: A number for each fixed dimension, `batch` or `length` for one that may change, and
            `varies` for one of an output that follows from the length.

    Example:
        >>> import numpy as np
        >>> info = TensorInfo(name="x", dtype="float32", shape=("batch", 3))
        >>> info.problem_with(np.zeros((5, 4), np.float32))
        'must have the shape [batch, 3], got [5, 4]'
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def problem_with(self, tensor: AnyTensor) -> str | None:
        """Return which rule a tensor breaks, with its value, or None."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype != self.dtype:
            return f"must be {self.dtype}, got {dtype}"
        fits = len(tensor.shape) == len(self.shape) and all(
            isinstance(wanted, str) or size == wanted
            for size, wanted in zip(tensor.shape, self.shape, strict=True)
        )
        return None if fits else f"must have the shape {self._shape}, got {list(tensor.shape)}"

    def sizes(self, tensor: AnyTensor, dimension: str) -> set[int]:
        """Return the sizes that a tensor has along `batch`, or along `length`."""
        pairs = zip(tensor.shape, self.shape, strict=True)
        return {size for size, wanted in pairs if wanted == dimension}

    @property
    def _shape(self) -> str:
        return f"[{', '.join(map(str, self.shape))}]"

    def __str__(self) -> str:
        """Return name, type and shape."""
        return f"{self.name} {self.dtype} {self._shape}"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a deployed model takes, what it returns, and what runs it.

    Attributes:
        format_version: Of the folder's layout.
        engine: Short name of the engine.
        options: How the engine was set.
        file: The engine's own file.
        versions: Versions of the packages that wrote it.
        cpu: Instructions of the CPU that it was made on, as far as they matter.
        task: Short name of the task.
        inputs: In the order of positional arguments.
        outputs: One, or one for each named task.
        named_outputs: Whether calling returns a dict of tensors by name instead of one tensor.
        class_names: What the outputs mean, in order.
        preprocessing: What the data went through before it came to the model, as data: the caller
            has to do the same. None if nothing.
        tolerance: The largest error that the golden check allows, relative to the largest output.
        length: The shortest and the longest sequence that a call may have, both checked when it was
            made. None if no dimension but the batch may change.
    """

    format_version: int = FORMAT_VERSION
    engine: str
    options: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    file: str
    versions: dict[str, str]
    cpu: tuple[str, ...] = ()
    task: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    named_outputs: bool
    class_names: tuple[str, ...] | None = None
    preprocessing: Any = None
    tolerance: float
    length: tuple[int, int] | None = None

    def by_name(self, outputs: Sequence[T]) -> T | dict[str, T]:
        """Return outputs as a call does: the only one, or a dict of them by name."""
        if not self.named_outputs:
            return outputs[0]
        return {info.name: y for info, y in zip(self.outputs, outputs, strict=True)}

    def to_json(self) -> str:
        """Return it as the text of `signature.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def read_signature(folder: Path) -> Signature:
    """Read the signature of an artifact.

    Raises:
        ArtifactError: another version of Overhaul wrote it.
    """
    path = folder / SIGNATURE
    try:
        data = json.loads(path.read_bytes())
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"'{path}' must have the format {FORMAT_VERSION}, got {version}. Use the version "
                "of Overhaul that is in its manifest, or deploy the model again."
            )
        return _signature(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"'{path}' is not a signature that this version of Overhaul can read: "
            f"{' '.join(str(error).split())}. Upgrade Overhaul, or deploy the model again."
        ) from error


def _signature(data: object) -> Signature:
    known = Fields(data, (each.name for each in fields(Signature)))
    engine, options = known.get("engine", str), known.any("options") or {}
    # A short name only: an import path here would let a file decide what is imported.
    if not re.fullmatch(r"[a-z0-9_]+", engine):
        raise ValueError(f"`engine` must be a short name, got '{engine}'")
    if not isinstance(options, dict) or not all(
        value is None or isinstance(value, str | int | float) for value in options.values()
    ):
        raise ValueError(f"`options` must be plain values by name, got {options!r:.80}")
    return Signature(
        engine=engine,
        options=options,
        file=known.get("file", str),
        versions=known.texts_by_name("versions"),
        cpu=known.texts("cpu") if known.has("cpu") else (),
        task=known.get("task", str),
        inputs=_tensors(known.get("inputs", list), "inputs"),
        outputs=_tensors(known.get("outputs", list), "outputs"),
        named_outputs=known.get("named_outputs", bool),
        class_names=known.texts("class_names") if known.has("class_names") else None,
        preprocessing=known.any("preprocessing"),
        tolerance=known.get("tolerance", float),
        length=_length(known.get("length", list)) if known.has("length") else None,
    )


def _length(limits: list[Any]) -> tuple[int, int]:
    if len(limits) != 2 or not all(type(limit) is int for limit in limits):
        raise ValueError(f"`length` must be two whole numbers, got {limits!r:.80}")
    return limits[0], limits[1]


def _tensors(data: list[object], name: str) -> tuple[TensorInfo, ...]:
    if not data:
        raise ValueError(f"its field '{name}' must have at least one entry")
    return tuple(map(_tensor_info, data))


def _tensor_info(data: object) -> TensorInfo:
    known = Fields(data, (each.name for each in fields(TensorInfo)))
    shape = known.get("shape", list)
    if not all(type(size) in (int, str) for size in shape):
        raise ValueError(f"`shape` must have whole numbers and names, got {shape!r:.80}")
    return TensorInfo(
        name=known.get("name", str), dtype=known.get("dtype", str), shape=tuple(shape)
    )
