"""`verify`: whether an artifact still is what was written, and computes what it computed."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from overhaul.core import ArtifactError
from overhaul.deploy._artifact import load
from overhaul.deploy._difference import difference
from overhaul.deploy._golden import read_golden
from overhaul.deploy._interface import unnamed


class Verification(BaseModel):
    """What `verify` found out about an artifact in which nothing is wrong.

    Attributes:
        path: The folder.
        engine: The short name of what runs it.
        files: How many files have the hash that the manifest lists.
        samples: How many golden samples were computed again.
        max_abs_error: The largest absolute error on them.
        max_relative_error: The same over the largest output.
        tolerance: What the relative error may be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    engine: str
    files: int
    samples: int
    max_abs_error: float
    max_relative_error: float
    tolerance: float

    def __str__(self) -> str:
        """Return it as one line."""
        return (
            f"{self.path} is intact: {self.files} files have their hashes, and {self.engine} "
            f"computes the {self.samples} golden samples again with an error of "
            f"{self.max_relative_error:.2g} of the largest output (allowed: {self.tolerance:.2g})."
        )


def verify(path: str | Path, *, threads: int | None = None, trust: bool = False) -> Verification:
    """Check the hashes of an artifact and compute its golden outputs again.

    Args:
        path: The folder that `Deploy` wrote.
        threads: How many threads a call may use. Default: the engine's own choice.
        trust: Whether an engine may execute what is in the folder; see `load`. Default false.

    Raises:
        ArtifactError: the folder is not an artifact, cannot be opened, or computes something else
            than when it was made.
        CorruptedFileError: a file is missing, added or changed.
        MissingExtraError: the engine's package is not installed.

    Example:
        >>> verify("no/such/folder")
        Traceback (most recent call last):
        ...
        overhaul.core._errors.ArtifactError: 'no/such/folder' is not an artifact: it has no \
manifest.json. Give the `artifact` folder of a run.
    """
    artifact = load(path, threads=threads, trust=trust)
    signature = artifact.signature
    inputs, outputs = read_golden(artifact.path, signature)
    names = [info.name for info in signature.outputs]
    wanted = unnamed(outputs, names, is_dict=signature.named_outputs)
    error = difference([(artifact(*inputs), wanted)])
    if not error.max_relative <= signature.tolerance:
        raise ArtifactError(
            f"'{path}' does not compute what it did when it was made: its golden outputs differ by "
            f"{error.max_relative:.2g} of the largest, and at most {signature.tolerance:.2g} is "
            f"allowed. It was made with {signature.versions}: use these versions, or deploy the "
            "model again on this machine."
        )
    return Verification(
        path=str(path),
        engine=artifact.engine,
        files=len(artifact.manifest.files),
        samples=max(len(tensor) for tensor in inputs),
        max_abs_error=error.max_abs,
        max_relative_error=error.max_relative,
        tolerance=signature.tolerance,
    )
