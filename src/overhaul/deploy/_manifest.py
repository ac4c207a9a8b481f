"""`write_manifest`: the hashes of an artifact, when it is made."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from overhaul.core import file_hash, write_text
from overhaul.runtime import MANIFEST, Manifest, ManifestEntry


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
    write_text(folder / MANIFEST, manifest.to_json())
    return manifest


def _own_version() -> str:
    try:
        return version("overhaul")
    except PackageNotFoundError:
        return "unknown"
