"""`Artifact` and `load`: a deployed model, opened and called."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overhaul.core import ArtifactError, DataError, SpecError, find_class
from overhaul.deploy._engine import Engine
from overhaul.runtime import OpenedArtifact, Signature, checked_folder

_ENGINE: type[Engine] = Engine  # type: ignore[type-abstract]


class Artifact(OpenedArtifact[Tensor]):
    """A deployed model that takes torch tensors or NumPy arrays and returns tensors.

    Get one from `load`. It computes on the CPU, keeps no gradients, and may be called with any
    number of samples.
    """

    kind: ClassVar[Literal["numpy", "pt"]] = "pt"

    def _converted(self, name: str, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value if value.is_cpu and not value.requires_grad else value.detach().cpu()
        if isinstance(value, np.ndarray):
            # torch shares the memory of an array, and needs it writable for that.
            return torch.from_numpy(np.require(value, requirements=["C", "W"]))
        raise DataError(
            f"input `{name}` must be a torch tensor or a NumPy array, got {type(value).__name__}. "
            "Convert it with torch.as_tensor."
        )

    def _to_float64(self, value: Tensor) -> NDArray[Any]:
        array: NDArray[Any] = value.double().numpy()
        return array


def load(path: str | Path, *, threads: int | None = None, trust: bool = False) -> Artifact:
    """Open a deployed model.

    Every file is first held against the hashes in the manifest. Nothing in the folder is unpickled
    or executed unless you say `trust=True`, and the source code of the model is not needed. Where
    the version of the engine is another than that it was made with, or the CPU lacks instructions,
    the golden samples are computed again, and must come out the same.

    Args:
        path: The folder that `Deploy` wrote: `runs/first/artifact`.
        threads: How many threads one call may use. Default: the engine's own choice.
        trust: Whether an engine may execute what is in the folder, as `aotinductor` does: the file
            is a program then, which can do whatever you can. The hashes only show damage. Default
            false.

    Raises:
        ArtifactError: the folder is not an artifact, would be executed, cannot be opened by this
            version of the engine, or computes something else here.
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
    engine = engine_named(signature)
    if engine.executes_file and not trust:
        raise ArtifactError(
            f"'{folder / signature.file}' is compiled code for the engine {signature.engine}: "
            "opening it executes it, and it can do whatever you can. The hashes show damage, not "
            "who wrote it. If you made it or trust who did, open it with load(path, trust=True)."
        )
    runner = engine.open(folder / signature.file, signature, threads)
    return Artifact(folder, signature, manifest, runner)


def engine_named(signature: Signature) -> Engine:
    """Return the engine of an artifact, set as it was.

    Raises:
        ArtifactError: there is no such engine.
    """
    try:
        return find_class(_ENGINE, signature.engine)(**signature.options)
    except SpecError as error:
        raise ArtifactError(
            f"{error} If the engine is of a package of yours, import that first; if it is of a "
            "newer Overhaul, upgrade."
        ) from None
