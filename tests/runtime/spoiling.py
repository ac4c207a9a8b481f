"""Changes to an artifact that its hashes vouch for."""

import json
from pathlib import Path
from typing import Any

from overhaul.deploy._manifest import write_manifest


def vouch_for(folder: Path) -> None:
    """Write a new manifest for whatever is in the folder, as an attacker would."""
    (folder / "manifest.json").unlink()
    write_manifest(folder, {})


def change_signature(folder: Path, **changes: Any) -> None:
    """Change fields of the signature; what is `...` is taken out."""
    path = folder / "signature.json"
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))
    vouch_for(folder)
