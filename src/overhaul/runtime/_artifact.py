"""`Artifact` and `load`: a deployed model, opened and called where there is no torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from overhaul.runtime._errors import ArtifactError, DataError, nearest
from overhaul.runtime._onnxruntime import ArrayRunner, open_onnxruntime
from overhaul.runtime._opened import OpenedArtifact, checked_folder
from overhaul.runtime._openvino import open_openvino
from overhaul.runtime._signature import Signature

_OPEN: dict[str, Callable[[Path, Signature, int | None], ArrayRunner]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
}
_OPTIONS = {"onnxruntime": {"round_inputs"}, "openvino": {"hint", "precision", "half_weights"}}
_NEED_TORCH = ("torch", "torch_compile", "aotinductor", "executorch")


class Artifact(OpenedArtifact[NDArray[Any]]):
    """A deployed model that takes and returns NumPy arrays.

    Get one from `load`. It computes on the CPU, and may be called with any number of samples.
    """

    kind: ClassVar[Literal["numpy", "pt"]] = "numpy"
    taken_as_it_is: ClassVar[type[Any] | None] = np.ndarray

    def _converted(self, name: str, value: Any) -> NDArray[Any]:
        if isinstance(value, np.ndarray):
            return np.ascontiguousarray(value)
        raise DataError(
            f"input `{name}` must be a NumPy array, got {type(value).__name__}. Convert it with "
            "numpy.asarray."
        )

    def _to_float64(self, value: NDArray[Any]) -> NDArray[Any]:
        return value.astype(np.float64)


def load(path: str | Path, *, threads: int | None = None) -> Artifact:
    """Open a deployed model with NumPy and its engine alone, without torch.

    Every file is first held against the hashes in the manifest. Nothing in the folder is unpickled
    or executed. Where the version of the engine is another than that it was made with, or the CPU
    lacks instructions, the golden samples are computed again, and must come out the same.

    Args:
        path: The folder that `Deploy` wrote: `runs/first/artifact`.
        threads: How many threads one call may use. Default: the engine's own choice.

    Raises:
        ArtifactError: the folder is not an artifact, its engine needs torch or is unknown, or it
            cannot be opened or computes something else here.
        CorruptedFileError: a file is missing, added or changed.
        MissingExtraError: the engine's package is not installed.

    Example:
        >>> load("no/such/folder")
        Traceback (most recent call last):
        ...
        overhaul.runtime._errors.ArtifactError: 'no/such/folder' is not an artifact: it has no \
manifest.json. Give the `artifact` folder of a run.
    """
    folder, manifest, signature = checked_folder(path, threads)
    check_engine(signature)
    runner = _OPEN[signature.engine](folder / signature.file, signature, threads)
    return Artifact(folder, signature, manifest, runner)


def check_engine(signature: Signature) -> None:
    """Check that an artifact runs without torch.

    Raises:
        ArtifactError: its engine needs torch, is unknown, or has an option that is unknown.
    """
    engine = signature.engine
    if engine in _NEED_TORCH:
        raise ArtifactError(
            f"the engine {engine} of this artifact needs torch. Install Overhaul with all it needs "
            f"(`pip install overhaul`) and open it with overhaul.load, or deploy the model to "
            f"{' or '.join(_OPEN)}."
        )
    if engine not in _OPEN:
        raise ArtifactError(
            f"unknown engine '{engine}'. {nearest(engine, _OPEN)} If it is of a newer Overhaul, "
            "upgrade; if it is of a package of yours, open it with overhaul.load."
        )
    unknown = sorted(set(signature.options) - _OPTIONS[engine])
    if unknown:
        raise ArtifactError(
            f"the engine {engine} has no option '{unknown[0]}'. "
            f"{nearest(unknown[0], _OPTIONS[engine])} If it is of a newer Overhaul, upgrade."
        )
