"""What hashes are taken of: files, and plain data."""

import hashlib
import json
from pathlib import Path
from typing import Any


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(data: Any) -> str:
    """Return the one JSON text of plain data that hashes are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
