"""`Artifact` and `load`: a deployed model, opened and called."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overhaul.core import ArtifactError, DataError, Outputs, SpecError, find_class, nearest
from overhaul.deploy._engine import Engine, Runner
from overhaul.deploy._interface import unnamed
from overhaul.deploy._manifest import Manifest, check_files, read_manifest
from overhaul.deploy._signature import FORMAT_VERSION, Signature

SIGNATURE = "signature.json"
_ENGINE: type[Engine] = Engine  # type: ignore[type-abstract]


class Artifact:
    """A deployed model: called like the model that it was made from, without its source code.

    Get one from `load`. It computes on the CPU, keeps no gradients, and may be called with any
    number of samples.

    Attributes:
        path: Its folder.
        signature: What it takes and returns.
        manifest: Its files.
    """

    def __init__(
        self, path: Path, signature: Signature, manifest: Manifest, runner: Runner
    ) -> None:
        """Hold an opened model; see `load`."""
        self.path = path
        self.signature = signature
        self.manifest = manifest
        self._run = runner

    def __call__(self, *inputs: Any, **named_inputs: Any) -> Outputs:
        """Return the outputs: one tensor, or a dict of tensors by name.

        Args:
            inputs: Torch tensors or NumPy arrays, in the order of the signature; or one mapping of
                them by name.
            named_inputs: The same by name.

        Raises:
            DataError: an input is missing or unknown, or has the wrong type or shape.
        """
        outputs = self._run(self._checked(inputs, named_inputs))
        names = [info.name for info in self.signature.outputs]
        return unnamed(outputs, names, is_dict=self.signature.named_outputs)

    @property
    def engine(self) -> str:
        """The short name of what runs it."""
        return self.signature.engine

    def __repr__(self) -> str:
        """Return where it is, what runs it, what it takes and returns."""
        takes = ", ".join(map(str, self.signature.inputs))
        returns = ", ".join(map(str, self.signature.outputs))
        return f"<Artifact {str(self.path)!r} on {self.engine}: {takes} -> {returns}>"

    def _checked(self, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> list[Tensor]:
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return self._checked((), {**inputs[0], **named_inputs})
        names = [info.name for info in self.signature.inputs]
        given = {**dict(zip(names, inputs, strict=False)), **named_inputs}
        unknown = [name for name in given if name not in names]
        if unknown:
            raise DataError(f"there is no input '{unknown[0]}'. {nearest(unknown[0], names)}")
        if len(inputs) + len(named_inputs) != len(names) or len(given) != len(names):
            raise DataError(
                f"the deployed model takes {len(names)} inputs ({', '.join(names)}), each once, "
                f"got {len(inputs)} by position and {sorted(named_inputs)} by name."
            )
        tensors = []
        batch_sizes: set[int] = set()
        for info in self.signature.inputs:
            tensor = _as_tensor(info.name, given[info.name])
            problem = info.problem_with(tensor)
            if problem is not None:
                raise DataError(
                    f"input `{info.name}` {problem}. Convert it, and do to it what the model's "
                    f"training data went through: {self.signature.preprocessing or 'nothing'}."
                )
            batch_sizes |= info.batch_sizes(tensor)
            tensors.append(tensor)
        if len(batch_sizes) > 1 or 0 in batch_sizes:
            raise DataError(
                "all inputs must have the same number of samples, at least one, got "
                f"{sorted(batch_sizes)}."
            )
        return tensors


def load(path: str | Path, *, threads: int | None = None, trust: bool = False) -> Artifact:
    """Open a deployed model.

    Every file is first held against the hashes in the manifest. Nothing in the folder is unpickled
    or executed unless you say `trust=True`, and the source code of the model is not needed.

    Args:
        path: The folder that `Deploy` wrote: `runs/first/artifact`.
        threads: How many threads one call may use. Default: the engine's own choice.
        trust: Whether an engine may execute what is in the folder, as `aotinductor` does: the file
            is a program then, which can do whatever you can. The hashes only show damage. Default
            false.

    Raises:
        ArtifactError: the folder is not an artifact, would be executed, or this version of the
            engine cannot open it.
        CorruptedFileError: a file is missing, added or changed.
        MissingExtraError: the engine's package is not installed.

    Example:
        >>> load("no/such/folder")
        Traceback (most recent call last):
        ...
        overhaul.core._errors.ArtifactError: 'no/such/folder' is not an artifact: it has no \
manifest.json. Give the `artifact` folder of a run.
    """
    if threads is not None and threads < 1:
        raise DataError(f"`threads` must be at least 1, got {threads}. Leave it out for all.")
    folder = Path(path)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    signature = read_signature(folder)
    engine = engine_named(signature)
    if engine.executes_file and not trust:
        raise ArtifactError(
            f"'{folder / signature.file}' is compiled code for the engine {signature.engine}: "
            "opening it executes it, and it can do whatever you can. The hashes show damage, not "
            "who wrote it. If you made it or trust who did, open it with load(path, trust=True)."
        )
    if signature.file not in manifest.files:
        raise ArtifactError(
            f"'{folder / SIGNATURE}' names the file '{signature.file}', which is not in the "
            "manifest. Deploy the model again."
        )
    runner = engine.open(folder / signature.file, signature, threads)
    return Artifact(folder, signature, manifest, runner)


def read_signature(folder: Path) -> Signature:
    """Read the signature of an artifact.

    Raises:
        ArtifactError: another version of Overhaul wrote it.
    """
    path = folder / SIGNATURE
    try:
        data = json.loads(path.read_bytes())
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"'{path}' must have the format {FORMAT_VERSION}, got {version}. Use the version "
                "of Overhaul that is in its manifest, or deploy the model again."
            )
        return Signature.model_validate(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"'{path}' is not a signature that this version of Overhaul can read: "
            f"{' '.join(str(error).split())}. Upgrade Overhaul, or deploy the model again."
        ) from error


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


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        # torch shares the memory of an array, and needs it writable for that.
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    raise DataError(
        f"input `{name}` must be a torch tensor or a NumPy array, got {type(value).__name__}. "
        "Convert it with torch.as_tensor."
    )
