"""`OpenedArtifact`: a deployed model that can be called, whatever kind of tensor it takes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from numpy.typing import NDArray

from overhaul.runtime._difference import INFINITE, Difference, difference
from overhaul.runtime._errors import ArtifactError, DataError, nearest
from overhaul.runtime._golden import read_golden
from overhaul.runtime._manifest import Manifest, check_files, read_manifest
from overhaul.runtime._signature import SIGNATURE, AnyTensor, Signature, read_signature
from overhaul.runtime._surroundings import differences_here

T = TypeVar("T", bound=AnyTensor)


class OpenedArtifact(ABC, Generic[T]):
    """A deployed model: called like the model that it was made from, without its source code.

    Get one from `load`. It computes on the CPU, keeps no gradients, and may be called with any
    number of samples.

    Attributes:
        path: Its folder.
        signature: What it takes and returns.
        manifest: Its files.
        differences_here: Sentences on what is not as it was where it was made: the version of the
            engine, instructions that this CPU lacks.
    """

    kind: ClassVar[Literal["numpy", "pt"]]
    """What safetensors reads golden samples as."""
    taken_as_it_is: ClassVar[type[Any] | None] = None
    """A class whose objects an engine takes as they are, whatever their layout in memory."""

    def __init__(
        self,
        path: Path,
        signature: Signature,
        manifest: Manifest,
        runner: Callable[[Sequence[T]], list[T]],
    ) -> None:
        """Hold an opened model; see `load`.

        Raises:
            ArtifactError: something is not as it was where it was made, and it computes something
                else than there.
        """
        self.path = path
        self.signature = signature
        self.manifest = manifest
        self.differences_here = differences_here(signature)
        self._run = runner
        self._names = [info.name for info in signature.inputs]
        self._accepted: list[tuple[Any, Any]] = []
        if self.differences_here:
            self.golden_check()

    def __call__(self, *inputs: Any, **named_inputs: Any) -> T | dict[str, T]:
        """Return the outputs: one tensor, or a dict of tensors by name.

        Args:
            inputs: In the order of the signature; or one mapping of them by name.
            named_inputs: The same by name.

        Raises:
            DataError: an input is missing or unknown, or has the wrong type or shape.
        """
        return self.signature.by_name(self._run(self._checked(inputs, named_inputs)))

    def golden_check(self) -> tuple[Difference, int]:
        """Compute the golden samples again; return how far they are off, and how many they are.

        Raises:
            ArtifactError: they are off by more than the signature allows, or cannot be read.
            MissingExtraError: safetensors is not installed.
        """
        inputs, wanted = read_golden(self.path, self.signature, self.kind)
        outputs = self._run(self._checked(tuple(inputs), {}))
        pairs = list(zip(outputs, wanted, strict=False))
        found = Difference.worst(difference([pair], self._to_float64) for pair in pairs)
        if len(outputs) != len(wanted):
            found = INFINITE
        allowed = self.signature.tolerance
        if not found.max_relative <= allowed:
            raise ArtifactError(
                f"'{self.path}' does not compute what it did when it was made: its golden outputs "
                f"differ by {found.max_relative:.2g} of the largest, and at most {allowed:.2g} is "
                f"allowed. {' '.join(self.differences_here)}".rstrip()
                + f" It was made with {self.signature.versions}: use these versions, or deploy the "
                "model again on this machine."
            )
        return found, max(len(array) for array in inputs)

    @property
    def engine(self) -> str:
        """The short name of what runs it."""
        return self.signature.engine

    @property
    def made_with(self) -> str:
        """What it was made with, in words: the version of the engine, and what the CPU has."""
        versions, engine = self.signature.versions, self.engine
        name = engine if engine in versions else "torch"
        made_with = f"{name} {versions.get(name, 'of unknown version')}"
        cpu = " ".join(self.signature.cpu)
        return f"{made_with} on a CPU with {cpu}" if cpu else made_with

    def __repr__(self) -> str:
        """Return where it is, what runs it, what it takes and returns, what it was made with."""
        takes = ", ".join(map(str, self.signature.inputs))
        returns = ", ".join(map(str, self.signature.outputs))
        return (
            f"<Artifact {str(self.path)!r} on {self.engine}: {takes} -> {returns}; "
            f"made with {self.made_with}>"
        )

    @abstractmethod
    def _converted(self, name: str, value: Any) -> T:
        """Return an input as what the engine takes.

        Raises:
            DataError: it is of a kind that cannot be converted.
        """

    @abstractmethod
    def _to_float64(self, value: T) -> NDArray[Any]:
        """Return an output as a NumPy array of 64-bit numbers."""

    def _checked(self, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> Sequence[T]:
        values = self._in_order(inputs, named_inputs)
        # A small model takes some microseconds, and to look at all that is known would take some.
        accepted = self._accepted  # another thread may set it meanwhile
        for value, (dtype, shape) in zip(values, accepted, strict=False):
            if type(value) is not self.taken_as_it_is:
                break
            if value.dtype is not dtype or value.shape != shape:
                break
        else:
            if accepted:
                return values
        tensors = [self._converted(*pair) for pair in zip(self._names, values, strict=True)]
        form = [(tensor.dtype, tensor.shape) for tensor in tensors]
        if form != accepted:
            self._check(tensors)
            self._accepted = form
        return tensors

    def _in_order(self, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> Sequence[Any]:
        names = self._names
        if not inputs and len(named_inputs) == len(names):
            try:
                return [named_inputs[name] for name in names]
            except KeyError:  # told below
                pass
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return self._in_order((), {**inputs[0], **named_inputs})
        if not named_inputs and len(inputs) == len(names):
            return inputs
        given = {**dict(zip(names, inputs, strict=False)), **named_inputs}
        unknown = [name for name in given if name not in names]
        if unknown:
            raise DataError(f"there is no input '{unknown[0]}'. {nearest(unknown[0], names)}")
        if len(inputs) + len(named_inputs) != len(names) or len(given) != len(names):
            raise DataError(
                f"the deployed model takes {len(names)} inputs ({', '.join(names)}), each once, "
                f"got {len(inputs)} by position and {sorted(named_inputs)} by name."
            )
        return [given[name] for name in names]

    def _check(self, tensors: list[T]) -> None:
        batch_sizes: set[int] = set()
        lengths: set[int] = set()
        for info, tensor in zip(self.signature.inputs, tensors, strict=True):
            problem = info.problem_with(tensor)
            if problem is not None:
                raise DataError(
                    f"input `{info.name}` {problem}. Convert it, and do to it what the model's "
                    f"training data went through: {self.signature.preprocessing or 'nothing'}."
                )
            batch_sizes |= info.sizes(tensor, "batch")
            lengths |= info.sizes(tensor, "length")
        if len(batch_sizes) > 1 or 0 in batch_sizes:
            raise DataError(
                "all inputs must have the same number of samples, at least one, got "
                f"{sorted(batch_sizes)}."
            )
        if self.signature.length is not None:
            _check_lengths(lengths, *self.signature.length)


def _check_lengths(lengths: set[int], shortest: int, longest: int) -> None:
    if len(lengths) > 1 or not all(shortest <= each <= longest for each in lengths):
        raise DataError(
            f"all sequences of a call must have one length from {shortest} to {longest}, got "
            f"{sorted(lengths)}. Cut or pad them, or deploy the model again with another "
            "`Deploy(max_length=...)`."
        )


def checked_folder(path: str | Path, threads: int | None) -> tuple[Path, Manifest, Signature]:
    """Return what an artifact is made of, after every file was held against its hash.

    Args:
        path: Its folder.
        threads: How many threads a call shall use, which is checked too.

    Raises:
        ArtifactError: the folder is not an artifact, or of another version.
        CorruptedFileError: a file is missing, added or changed.
        DataError: `threads` is less than one.
    """
    if threads is not None and threads < 1:
        raise DataError(f"`threads` must be at least 1, got {threads}. Leave it out for all.")
    folder = Path(path)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    signature = read_signature(folder)
    if signature.file not in manifest.files:
        raise ArtifactError(
            f"'{folder / SIGNATURE}' names the file '{signature.file}', which is not in the "
            "manifest. Deploy the model again."
        )
    return folder, manifest, signature
