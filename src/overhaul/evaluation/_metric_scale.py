"""`is_in_points`: which metrics are fractions, and so told in points of a hundred."""

_FRACTIONS = ("accuracy", "f1", "auroc", "precision", "recall")


def is_in_points(metric: str) -> bool:
    """Return whether a metric is a fraction, by its name.

    Example:
        >>> is_in_points("mean_accuracy"), is_in_points("mae")
        (True, False)
    """
    return any(word in metric for word in _FRACTIONS)
