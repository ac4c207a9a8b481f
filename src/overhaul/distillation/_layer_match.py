"""`LayerMatch`: a match of layers inside of the networks."""

from abc import abstractmethod
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from overhaul.core import Batch, Context, SpecError, Task, nearest
from overhaul.distillation._match import BoundMatch, Match
from overhaul.distillation._pair_layers import Pair, pair_layers
from overhaul.distillation._precision import single
from overhaul.distillation._seen import Seen

LayerPairs = Literal["auto"] | tuple[tuple[str, str], ...]
"""Pairs of module paths, of the student and of the teacher; `auto` pairs by depth and shape."""


class LayerMatch(Match):
    """A match of layers inside of the networks. Which ones are paired is shown before training.

    Args:
        layers: Pairs of module paths, of the student and of the teacher. Default `auto`: by depth
            and shape, see `pair_layers`.
        weight: Factor of this loss beside the others. Default 1.
    """

    layers: LayerPairs = Field(
        default="auto", description="It is 'auto', or pairs of module paths: [[student, teacher]]."
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _pairs(cls, layers: Any) -> Any:
        if isinstance(layers, tuple | list) and any(
            isinstance(pair, str) or len(pair) != 2 for pair in layers if hasattr(pair, "__len__")
        ):
            raise SpecError(
                f"`layers` must be pairs of module paths, of the student and of the teacher, or "
                f"'auto', got {layers}. Write layers=[('student.path', 'teacher.path')]."
            )
        return layers

    @field_validator("layers")
    @classmethod
    def _some(cls, layers: LayerPairs) -> LayerPairs:
        if layers == ():
            raise SpecError("`layers` must have a pair of module paths, or be 'auto'.")
        return layers

    def preflight(self, teacher: nn.Module, task: Task, batch: Batch) -> None:
        """See that the teacher has the layers that are named."""
        known = [path for path, _ in teacher.named_modules() if path]
        for _, path in self.layers if self.layers != "auto" else ():
            if path not in known:
                raise SpecError(f"the teacher has no layer '{path}'. {nearest(path, known)}")

    def bind(
        self, student: nn.Module, teacher: nn.Module, batch: Batch, ctx: Context
    ) -> BoundMatch:
        """Return the match of these layers, and say which they are."""
        named = () if self.layers == "auto" else self.layers
        pairs = pair_layers(student, teacher, batch, named)
        pairs = pairs if named else self.choose(pairs)
        for pair in pairs:
            detail: dict[str, Any] = {"match": self.spec_name(), "teacher": pair.teacher.path}
            ctx.log("layer_pair", pair.student.path, detail=detail)
            ctx.progress.say(f"{self.spec_name()}: {pair.student} learns from {pair.teacher}")
        return self.bind_pairs(pairs, student, teacher, batch)

    def choose(self, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        """Return those of the pairs found by `auto` that this match takes; all by default."""
        return pairs

    @abstractmethod
    def bind_pairs(
        self, pairs: tuple[Pair, ...], student: nn.Module, teacher: nn.Module, batch: Batch
    ) -> "BoundLayerMatch":
        """Return the match of these pairs of layers."""


class BoundLayerMatch(BoundMatch):
    """A match of pairs of layers at work: the mean over the pairs of the loss of each."""

    def __init__(self, plan: LayerMatch, pairs: tuple[Pair, ...]) -> None:
        """Take the pairs."""
        super().__init__()
        self.name, self.pairs = plan.spec_name(), pairs
        self.student_paths = tuple(pair.student.path for pair in pairs)
        self.teacher_paths = tuple(pair.teacher.path for pair in pairs)

    def forward(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        """Return the mean loss of the pairs."""
        losses = [
            self.pair_loss(
                number,
                pair.student.by_place(student.features[pair.student.path]),
                pair.teacher.by_place(teacher.features[pair.teacher.path]),
                student.batch,
            )
            for number, pair in enumerate(self.pairs)
        ]
        return {self.name: sum(losses[1:], losses[0]) / len(losses)}

    @abstractmethod
    def pair_loss(
        self, number: int, student_BCP: Tensor, teacher_BCP: Tensor, batch: Batch
    ) -> Tensor:
        """Return the loss of a pair, a scalar.

        Args:
            number: Of the pair.
            student_BCP: Samples, channels, places.
            teacher_BCP: Samples, channels, places; it has no gradient.
            batch: The samples, with their labels.
        """


def sample_rows(feature_BCP: Tensor) -> Tensor:
    """Return a row for each sample, in the order of the memory, so that nothing is copied.

    For products and distances of rows, which do not depend on the order within them.
    """
    in_order = feature_BCP if feature_BCP.is_contiguous() else feature_BCP.transpose(1, 2)
    return single(in_order).flatten(1)
