"""`Budget`: what a model in integers may cost, or lose."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from overhaul.core import Spec
from overhaul.quantization._integer_map import WeightType


class Budget(Spec):
    """A limit under which each layer gets its own type.

    Args:
        bytes: At most this fraction of the bytes of the float model, in (0, 1).
        max_drop: By how much the selection metric on val may drop, for as few bytes as eight
            halvings find; fewer bytes are taken to be worse, which noise can contradict.
        ms: At most so many milliseconds for all layers together, by `layer_ms`.
        layer_ms: How long each layer takes by its path, for each type of `types` and `float32`: as
            measured with the engine that the model is for.
        types: What layers can have besides real numbers. Default `int4` and `int8`.

    Raises:
        SpecError: not exactly one limit is given, or `ms` without times.

    Example:
        >>> Budget(bytes=0.2)
        Budget(bytes=0.2)
    """

    bytes: float | None = Field(
        default=None, gt=0, lt=1, description="It is the fraction that is kept: 0.2 for a fifth."
    )
    max_drop: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="It is in the unit of the task's selection metric.",
    )
    ms: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Milliseconds of all layers."
    )
    layer_ms: Mapping[str, Mapping[str, float]] = {}
    types: tuple[WeightType, ...] = Field(
        default=("int4", "int8"), min_length=1, description="What layers can have."
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        limits = {"bytes": self.bytes, "max_drop": self.max_drop, "ms": self.ms}
        given = [name for name, value in limits.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                "a budget needs exactly one of `bytes`, `max_drop` and `ms`, got "
                f"{' and '.join(given) or 'none'}."
            )
        if (self.ms is None) != (not self.layer_ms):
            raise ValueError(
                "`ms` and `layer_ms` belong together: times depend on the engine, so give those "
                "that you measured with it."
            )
        return self
