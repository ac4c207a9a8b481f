"""`check_max_drop`: a drop that nothing can exceed would be allowed always."""

from overhaul.core import SpecError
from overhaul.evaluation._metric_scale import is_in_points


def check_max_drop(max_drop: float | None, metric: str, field: str = "max_drop") -> None:
    """Refuse a drop of a whole or more for a metric that is a fraction: it was meant in points.

    Args:
        max_drop: In units of the metric; None if there is no limit.
        metric: The task's selection metric.
        field: What it is called in the error.

    Raises:
        SpecError: the metric is a fraction, and `max_drop` is 1 or more.

    Example:
        >>> check_max_drop(0.02, "accuracy")
        >>> check_max_drop(2.0, "mae")
    """
    if max_drop is not None and max_drop >= 1 and is_in_points(metric):
        raise SpecError(
            f"`{field}` must be below 1, since {metric} is a fraction and cannot drop by more, got "
            f"{max_drop:g}. For {max_drop:g} points write {max_drop / 100:g}."
        )
