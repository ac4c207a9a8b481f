"""Errors of making a model; those of running one are in `overhaul.runtime`."""

from overhaul.runtime import OverhaulError


class SpecError(OverhaulError, ValueError):
    """A step, plug, task or recipe was written wrongly: an unknown name or key, a bad value."""

    exit_code = 2


class OrderError(SpecError):
    """The steps of a recipe do not fit together in this order."""


class ModelError(OverhaulError, ValueError):
    """The model cannot be used as given, or a selector does not match it."""

    exit_code = 3


class SealedTestError(OverhaulError, RuntimeError):
    """The test split was read outside the final evaluation."""

    exit_code = 3


class NonFiniteLossError(OverhaulError, ArithmeticError):
    """The training loss became NaN or infinite."""

    exit_code = 6
