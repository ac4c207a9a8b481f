"""`Run`: what a recipe has done to a model, with everything that was measured."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from overhaul.core import Fact, RunFolder
from overhaul.evaluation import Verdict
from overhaul.report import write_report


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where all of it is kept.
        model: The model after the last step, an ordinary `nn.Module`.
        verdict: What was proved on the sealed test split.
    """

    folder: RunFolder
    model: nn.Module
    verdict: Verdict

    @property
    def facts(self) -> list[Fact]:
        """Every measurement of the run."""
        return self.folder.facts()

    @property
    def artifact(self) -> Path | None:
        """The folder of the deployed model, for `overhaul.load`; None if nothing was deployed."""
        return self.folder.artifact if self.folder.artifact.is_dir() else None

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report as one HTML file and return its path.

        Args:
            path: Where to; default is `report.html` in the run folder.
        """
        return write_report(self.folder, Path(path) if path else self.folder.path / "report.html")
