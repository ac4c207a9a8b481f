"""`verify`: whether an artifact still is what was written, and computes what it computed."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from overhaul.core import OverhaulError
from overhaul.deploy._artifact import load
from overhaul.deploy._difference import difference
from overhaul.deploy._golden import read_golden
from overhaul.deploy._interface import unnamed


class Verification(BaseModel):
    """What `verify` found.

    Attributes:
        path: The folder.
        engine: The short name of the engine; None if it could not be opened.
        files: How many files have the hash that the manifest lists.
        samples: How many golden samples were computed again.
        max_abs_error: The largest absolute error on them.
        max_relative_error: The same over the largest output.
        tolerance: What the relative error may be.
        problem: What is wrong and what to do; None if nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    engine: str | None = None
    files: int = 0
    samples: int = 0
    max_abs_error: float | None = None
    max_relative_error: float | None = None
    tolerance: float | None = None
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem is None


def verify(path: str | Path, *, threads: int | None = None) -> Verification:
    """Check the hashes of an artifact and compute its golden outputs again.

    It does not raise for what is wrong with the artifact: it says so.

    Args:
        path: The folder that `Deploy` wrote.
        threads: How many threads a call may use. Default: the engine's own choice.

    Example:
        >>> verify("no/such/folder").passed
        False
    """
    folder = Path(path)
    try:
        artifact = load(folder, threads=threads)
        signature = artifact.signature
        inputs, outputs = read_golden(folder, signature)
        found = artifact(*inputs)
    except OverhaulError as error:
        return Verification(path=str(folder), problem=str(error))
    names = [info.name for info in signature.outputs]
    wanted = unnamed(outputs, names, is_dict=signature.named_outputs)
    off = difference([(found, wanted)])
    problem = None
    if not off.max_relative <= signature.tolerance:
        problem = (
            f"the golden outputs differ by {off.max_relative:.2g} of the largest, and at most "
            f"{signature.tolerance:.2g} is allowed. It was made with {signature.versions}: use "
            "these versions, or deploy the model again on this machine."
        )
    return Verification(
        path=str(folder),
        engine=artifact.engine,
        files=len(artifact.manifest.files),
        samples=max(len(tensor) for tensor in inputs),
        max_abs_error=off.max_abs,
        max_relative_error=off.max_relative,
        tolerance=signature.tolerance,
        problem=problem,
    )
