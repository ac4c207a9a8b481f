"""Numbers that may be `auto`, to be chosen on `val`."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from overhaul.core import SpecError
from overhaul.training import OpenSetting

Temperature: TypeAlias = Annotated[float, Field(gt=0)] | Literal["auto"]
"""What divides logits, or `auto`."""
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]
"""A fraction, or `auto`."""
_TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


def open_temperature(name: str, start: float) -> OpenSetting:
    """Return a temperature that is to be chosen: of 1, 2, 4 and 8, and what it starts with."""
    return OpenSetting(name, tuple(sorted({*_TEMPERATURES, start})), start)


def as_number(value: float | Literal["auto"], setting: str) -> float:
    """Return a setting that was given or chosen.

    Raises:
        SpecError: it is still `auto`.
    """
    if isinstance(value, str):
        raise SpecError(
            f"`{setting}` is 'auto', which `Train` replaces by what it chooses on `val`. Give a "
            "number where the objective is used without `Train`."
        )
    return value
