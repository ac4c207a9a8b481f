"""`Manifest`: which files an artifact has, and their hashes."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from overhaul.runtime._errors import ArtifactError, CorruptedFileError
from overhaul.runtime._fields import Fields
from overhaul.runtime._hashes import canonical_json, file_hash

MANIFEST = "manifest.json"
"""The file of an artifact with the hashes of the others."""


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One file of an artifact.

    Attributes:
        sha256: Hash of its content.
        bytes: Its size.
    """

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Which files an artifact has, and their hashes.

    Attributes:
        created_at: When it was made, in UTC.
        overhaul_version: By which version of Overhaul.
        versions: Versions of the engine's packages.
        files: Every other file of the folder by name.
        sha256: Hash of all these entries, so that the manifest vouches for itself.
    """

    created_at: str
    overhaul_version: str
    versions: dict[str, str]
    files: dict[str, ManifestEntry]
    sha256: str = ""

    def signed(self) -> "Manifest":
        """Return the manifest with its own hash."""
        entries = {name: value for name, value in asdict(self).items() if name != "sha256"}
        own = hashlib.sha256(canonical_json(entries).encode()).hexdigest()
        return replace(self, sha256=own)

    def to_json(self) -> str:
        """Return it as the text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"


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
        manifest = _manifest(json.loads(text))
    except OSError as error:
        raise _corrupted(path, f"it cannot be read ({error.strerror})") from error
    except ValueError as error:  # what JSON and UTF-8 raise too
        raise _corrupted(path, "it is not a manifest") from error
    if text != manifest.signed().to_json():
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
        try:
            found = file_hash(folder / name)
        except OSError as error:
            raise _corrupted(folder / name, f"it cannot be read ({error.strerror})") from error
        if found != entry.sha256:
            raise _corrupted(folder / name, "its SHA-256 is not the one in the manifest")
    for name in sorted(present - set(manifest.files)):
        raise CorruptedFileError(
            f"'{folder / name}' does not belong to the artifact: the manifest does not list it. "
            "Remove it if you put it there; else copy the folder again from where it was made."
        )


def _manifest(data: object) -> Manifest:
    known = Fields(data, (each.name for each in fields(Manifest)))
    files = {}
    for name, entry in known.get("files", dict).items():
        values = Fields(entry, (each.name for each in fields(ManifestEntry)))
        files[name] = ManifestEntry(
            sha256=values.get("sha256", str), bytes=values.get("bytes", int)
        )
    return Manifest(
        created_at=known.get("created_at", str),
        overhaul_version=known.get("overhaul_version", str),
        versions=known.texts_by_name("versions"),
        files=files,
        sha256=known.get("sha256", str),
    )


def _corrupted(path: Path, why: str) -> CorruptedFileError:
    return CorruptedFileError(
        f"'{path}' is corrupted: {why}. Copy the folder again from where it was made, or run the "
        "recipe again to make it anew."
    )
