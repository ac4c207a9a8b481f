"""`Manifest`: which files an artifact has, and their hashes."""

import hashlib
import json
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from overhaul.core import ArtifactError, CorruptedFileError, canonical_json, file_hash, write_text

MANIFEST = "manifest.json"


class ManifestEntry(BaseModel):
    """One file of an artifact.

    Attributes:
        sha256: Hash of its content.
        bytes: Its size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """Which files an artifact has, and their hashes.

    Attributes:
        created_at: When it was made, in UTC.
        overhaul_version: By which version of Overhaul.
        versions: Versions of the engine's packages.
        files: Every other file of the folder by name.
        sha256: Hash of all these entries, so that the manifest vouches for itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    created_at: str
    overhaul_version: str
    versions: dict[str, str]
    files: dict[str, ManifestEntry]
    sha256: str = ""

    def signed(self) -> "Manifest":
        """Return the manifest with its own hash."""
        entries = self.model_dump(exclude={"sha256"})
        own = hashlib.sha256(canonical_json(entries).encode()).hexdigest()
        return self.model_copy(update={"sha256": own})


def write_manifest(folder: Path, versions: dict[str, str]) -> Manifest:
    """Write the manifest of the files that are in a folder."""
    manifest = Manifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        overhaul_version=_own_version(),
        versions=versions,
        files={
            path.name: ManifestEntry(sha256=file_hash(path), bytes=path.stat().st_size)
            for path in sorted(folder.iterdir())
        },
    ).signed()
    write_text(folder / MANIFEST, _text(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact, without looking at its files.

    Raises:
        ArtifactError: the folder is not an artifact.
        CorruptedFileError: the manifest is not what was written.
    """
    path = folder / MANIFEST
    if (folder / "artifact" / MANIFEST).is_file():
        raise ArtifactError(
            f"'{folder}' is a run, and its artifact is in a folder of its own. Give "
            f"'{folder / 'artifact'}'."
        )
    if not path.is_file():
        raise ArtifactError(
            f"'{folder}' is not an artifact: it has no {MANIFEST}. Give the `artifact` folder of a "
            "run."
        )
    try:
        text = path.read_text("utf-8")
        manifest = Manifest.model_validate_json(text)
    except (UnicodeDecodeError, ValidationError) as error:
        raise _corrupted(path, "it is not a manifest") from error
    if text != _text(manifest.signed()):
        raise _corrupted(path, "it is not what was written")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Hold every file of an artifact against the manifest.

    Raises:
        CorruptedFileError: a file is missing, added or changed; the message names it.
    """
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name, entry in manifest.files.items():
        if name not in present:
            raise _corrupted(folder / name, "the manifest lists it, and it is missing")
        if file_hash(folder / name) != entry.sha256:
            raise _corrupted(folder / name, "its SHA-256 is not the one in the manifest")
    for name in sorted(present - set(manifest.files)):
        raise CorruptedFileError(
            f"'{folder / name}' does not belong to the artifact: the manifest does not list it. "
            "Remove it if you put it there; else copy the folder again from where it was made."
        )


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(), indent=2) + "\n"


def _corrupted(path: Path, why: str) -> CorruptedFileError:
    return CorruptedFileError(
        f"'{path}' is corrupted: {why}. Copy the folder again from where it was made, or run the "
        "recipe again to make it anew."
    )


def _own_version() -> str:
    try:
        return version("overhaul")
    except PackageNotFoundError:
        return "unknown"
