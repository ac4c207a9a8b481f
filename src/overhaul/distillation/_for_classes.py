"""Which matches are for tasks of classes alone."""

from overhaul.core import SpecError, Task


def check_has_classes(match: str, task: Task) -> None:
    """Refuse a task any part of which has other outputs than classes.

    Raises:
        SpecError: it has.
    """
    others = {name: part.output_kind for name, part in task.parts.items()}
    for name, kind in others.items():
        if kind != "classes":
            raise SpecError(
                f"{match} needs classes, and the outputs of '{name}' are {kind}. Use soft_targets, "
                "which knows both."
            )
