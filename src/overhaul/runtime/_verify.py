"""`verify`: whether an artifact still is what was written, and computes what it computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overhaul.runtime._artifact import load
from overhaul.runtime._opened import OpenedArtifact


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found out about an artifact in which nothing is wrong.

    Attributes:
        path: The folder.
        engine: The short name of what runs it.
        files: How many files have the hash that the manifest lists.
        samples: How many golden samples were computed again.
        max_abs_error: The largest absolute error on them.
        max_relative_error: The same over the largest output.
        tolerance: What the relative error may be.
        made_with: The version of the engine, and what matters of the CPU, where it was made.
        warnings: Sentences on what is not so here.
    """

    path: str
    engine: str
    files: int
    samples: int
    max_abs_error: float
    max_relative_error: float
    tolerance: float
    made_with: str
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as lines of text."""
        intact = (
            f"{self.path} is intact: {self.files} files have their hashes, and {self.engine} "
            f"computes the {self.samples} golden samples again with an error of "
            f"{self.max_relative_error:.2g} of the largest output (allowed: {self.tolerance:.2g}). "
            f"It was made with {self.made_with}."
        )
        return "\n".join([intact, *(f"Warning: {warning}" for warning in self.warnings)])


def verify(path: str | Path, *, threads: int | None = None) -> Verification:
    """Check the hashes of an artifact and compute its golden outputs again, without torch.

    Args:
        path: The folder that `Deploy` wrote.
        threads: How many threads a call may use. Default: the engine's own choice.

    Raises:
        ArtifactError: the folder is not an artifact, cannot be opened without torch, or computes
            something else than when it was made.
        CorruptedFileError: a file is missing, added or changed.
        MissingExtraError: the engine's package is not installed.

    Example:
        >>> verify("no/such/folder")
        Traceback (most recent call last):
        ...
        overhaul.runtime._errors.ArtifactError: 'no/such/folder' is not an artifact: it has no \
manifest.json. Give the `artifact` folder of a run.
    """
    return verify_opened(load(path, threads=threads))


def verify_opened(artifact: OpenedArtifact[Any]) -> Verification:
    """Compute the golden outputs of an artifact again; its hashes were checked on opening.

    Raises:
        ArtifactError: it computes something else than when it was made.
        MissingExtraError: safetensors is not installed.
    """
    error, samples = artifact.golden_check()
    return Verification(
        path=str(artifact.path),
        engine=artifact.engine,
        files=len(artifact.manifest.files),
        samples=samples,
        max_abs_error=error.max_abs,
        max_relative_error=error.max_relative,
        tolerance=artifact.signature.tolerance,
        made_with=artifact.made_with,
        warnings=artifact.differences_here,
    )
