"""`verify`: whether an artifact still is what was written, and computes what it computed."""

from pathlib import Path

from overhaul.deploy._artifact import load
from overhaul.runtime import Verification, verify_opened


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
        overhaul.runtime._errors.ArtifactError: 'no/such/folder' is not an artifact: it has no \
manifest.json. Give the `artifact` folder of a run.
    """
    return verify_opened(load(path, threads=threads, trust=trust))
