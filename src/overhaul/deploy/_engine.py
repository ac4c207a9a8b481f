"""`Engine`: what runs a deployed model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from torch import Tensor
from torch.export import ExportedProgram

from overhaul.core import Spec
from overhaul.runtime import Signature

Runner: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]
"""Takes the inputs in the order of the signature and returns the outputs in its order."""


class Engine(Spec, ABC):
    """What runs a deployed model: `torch`, `onnxruntime`.

    A new engine is a subclass in a file of its own; it is found by its short name, in recipes and
    in the signature of an artifact.

    Attributes:
        file_name: Its own file in the artifact folder.
        executes_file: Whether opening the file executes what is in it, so that whoever opens it has
            to trust whoever wrote it.
    """

    file_name: ClassVar[str]
    executes_file: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        """Return the fields that are not at their defaults, for the signature."""
        data = self.to_data()
        return {} if isinstance(data, str) else dict(data[self.spec_name()])

    @property
    def label(self) -> str:
        """The short name, and the fields that are not at their defaults.

        Example:
            >>> from overhaul.deploy import OnnxRuntime
            >>> OnnxRuntime(round_inputs=True).label
            'onnxruntime(round_inputs=True)'
        """
        own = ", ".join(f"{name}={value}" for name, value in self.options().items())
        return f"{self.spec_name()}({own})" if own else self.spec_name()

    @property
    def rounds_inputs(self) -> bool:
        """Whether it rounds what the model does not, so that outputs agree less closely."""
        return False

    @abstractmethod
    def check_installed(self) -> None:
        """Import what writing and running need.

        Raises:
            MissingExtraError: a package is missing.
        """

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that write and run the file."""

    @abstractmethod
    def write(self, program: ExportedProgram, signature: Signature, folder: Path) -> None:
        """Write the engine's own file, and no code into it that loading would run.

        An engine that cannot do without says so in `executes_file`.

        Args:
            program: What the model computes; other engines get the same, so it is not changed.
            signature: Names of inputs and outputs.
            folder: Where to; empty.

        Raises:
            ArtifactError: the engine cannot run this model; the message is the short reason.
        """

    @abstractmethod
    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        """Open a file that `write` wrote.

        Args:
            path: The file. It may come from a stranger: nothing in it may be executed, except by an
                engine that says so.
            signature: What it takes and returns.
            threads: How many threads one call may use; None for the engine's default.

        Raises:
            ArtifactError: the file is of another kind or version, or holds what is not allowed.
            MissingExtraError: a package is missing.
        """
