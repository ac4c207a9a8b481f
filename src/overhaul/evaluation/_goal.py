"""`Goal`: how much of the original's quality may be lost."""

from pydantic import Field

from overhaul.core import Spec


class Goal(Spec):
    """What a run is to prove.

    Args:
        max_drop: How much worse than the original the result may be, in units of the task's
            selection metric: 0.005 is half a point of accuracy. Default 0.01.

    Example:
        >>> Goal(max_drop=0.005)
        Goal(max_drop=0.005)
    """

    max_drop: float = Field(
        default=0.01,
        ge=0,
        allow_inf_nan=False,
        description="How much worse than the original, in units of the selection metric.",
    )
