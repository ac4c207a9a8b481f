"""`MultiTask`: several named tasks on the same inputs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NoReturn, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from overhaul.core import (
    Batch,
    DataError,
    Fact,
    Outputs,
    SpecError,
    SplitName,
    Splits,
    Targets,
    Task,
    nearest,
)
from overhaul.multitask._joined_samples import JoinedSamples
from overhaul.multitask._part_data import by_name, data_of_part
from overhaul.multitask._part_rules import (
    DATA_FIELDS,
    check_fields,
    check_name,
    has_data,
    known,
    missing_value,
    refuse_nan_as_label,
    without_data,
)
from overhaul.tasks import Classification, DataTask, Samples, SingleTask


class MultiTask(DataTask):
    r"""Several named tasks for one model, which returns a dict with the outputs of each.

    The loss is the sum of the losses of the tasks, each the mean over the samples that have a label
    for it,

    .. math:: L = \sum_k \frac{1}{|B_k|} \sum_{b \in B_k} L_k(f_k(x_b), y_{kb})

    Labels may be missing: -1 for classes and labels, NaN for values. A batch without any label for
    a task has a loss of exactly 0 for it, and no gradient. A task that says `allow_missing=False`
    refuses them.

    Data comes in one of two ways. Either `train` (with `val` and `test`, see `DataTask`) has named
    targets: `(x, {"digit": y1, "parity": y2})`, or dicts with the `target_key` of each. Or every
    task brings data of its own, whose inputs have one form; it is joined into one data set with
    missing targets, before anything is split off, so that equal inputs stay on one side. Splits
    that are made keep the share of each class of the first task that has classes.

    Metrics: those of each task under its name (`digit_accuracy`), and the number to choose by. That
    is the plain mean of what the tasks are chosen by. If all are chosen by the same metric it is
    called after it: `mean_accuracy`. Otherwise it is `mean_score`, in which metrics of which
    less is better count with a minus; a mean of `accuracy`, `f1`, `auroc` and `r2` makes sense, as
    1 is perfect in each, while an `mae` brings in the unit of its target. A mean may hide that
    one task lost what another gained: look at the metrics of each.

    Args:
        tasks: The tasks by name; at least two. The fields about data belong to `MultiTask`, except
            that each task may bring its own `train`, `val`, `test` (or `data`) and `target_key`.

    Shapes: outputs and targets `{name: [B, ...]}`, each as its task has it.

    Raises:
        SpecError: a field is refused.
        DataError: from `prepare`, if the data breaks a rule; the message names the task.

    Example:
        >>> MultiTask(tasks={"digit": Classification(classes=10), "odd": Classification(classes=2)})
        MultiTask(tasks={'digit': Classification(classes=10), 'odd': Classification(classes=2)})
        >>> task = MultiTask(tasks={"a": Classification(classes=2), "b": Classification(classes=2)})
        >>> known, missing = torch.tensor([0]), torch.tensor([-1])
        >>> logits = {"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)}
        >>> task.losses(logits, {"a": known, "b": missing})
        {'a': tensor(0.6931), 'b': tensor(0.)}
    """

    tasks: dict[str, SingleTask] = Field(min_length=2, description="At least two, by name.")

    _parts: dict[str, SingleTask] = PrivateAttr(default_factory=dict)
    _ranges: dict[SplitName, dict[str, range]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        for name, task in self.tasks.items():
            check_name(name)
            check_fields(name, task)
        owners = self._owners()
        own = [name for name in DATA_FIELDS if getattr(self, name) is not None]
        if owners and own:
            raise SpecError(
                f"give data to MultiTask or to each of its tasks, not both: got `{own[0]}` and "
                f"data of '{owners[0]}'."
            )
        if owners and len(owners) < len(self.tasks):
            without = next(name for name in self.tasks if name not in owners)
            raise SpecError(
                f"'{owners[0]}' brings its own data and '{without}' does not. Give every task its "
                "own, or MultiTask one `train` with named targets."
            )
        self._parts.update({name: without_data(task) for name, task in self.tasks.items()})
        return self

    def _owners(self) -> list[str]:
        """Return the names of the tasks that bring their own data."""
        return [name for name, task in self.tasks.items() if has_data(task)]

    @property
    def parts(self) -> dict[str, Task]:
        """The tasks by name, without data."""
        return dict(self._parts)

    @property
    def output_kind(self) -> Literal["classes", "labels", "values"]:
        """Not one.

        Raises:
            SpecError: always.
        """
        _refuse_as_a_whole("kind of output")

    def output_size(self, data: Splits) -> int:
        """Not one; see `output_sizes`.

        Raises:
            SpecError: always.
        """
        _refuse_as_a_whole("number of outputs")

    def output_sizes(self, data: Splits) -> dict[str, int]:
        """Return how many outputs each task needs for one sample."""
        return {
            name: part.output_size(data_of_part(data, name)) for name, part in self._parts.items()
        }

    @property
    def selection_metric(self) -> str:
        """`mean_` and the metric that all tasks are chosen by, or `mean_score`."""
        metrics = {part.selection_metric for part in self._parts.values()}
        return f"mean_{metrics.pop()}" if len(metrics) == 1 else "mean_score"

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value of it is better; of `mean_score` it is."""
        metrics = {part.selection_metric for part in self._parts.values()}
        return len(metrics) > 1 or next(iter(self._parts.values())).higher_is_better

    def _sign(self, part: SingleTask) -> int:
        return 1 if part.higher_is_better == self.higher_is_better else -1

    def read_data(self) -> dict[SplitName, Samples]:
        """Return the samples of each split that there is, those of the tasks joined.

        Raises:
            DataError: there is no data, it cannot be read, or it does not fit together.
        """
        if not self._owners():
            return super().read_data()
        given = {name: task.read_data() for name, task in self.tasks.items()}
        first = next(iter(given))
        for name, splits in given.items():
            if splits.keys() != given[first].keys():
                raise DataError(
                    "all tasks must bring the same splits to be joined: "
                    f"'{first}' brings {', '.join(given[first])}, and '{name}' brings "
                    f"{', '.join(splits)}. What none of them brings is split off `train`."
                )
        missing = {name: missing_value(part) for name, part in self._parts.items()}
        joined: dict[SplitName, Samples] = {}
        for where in given[first]:
            parts = {name: splits[where] for name, splits in given.items()}
            samples = JoinedSamples(parts, missing, where)
            joined[where], self._ranges[where] = samples, samples.ranges
        return joined

    def check_targets(self, name: SplitName, targets: Targets, index_N: Tensor) -> None:
        """Refuse targets that are not those of the tasks, or that break a rule of theirs."""
        named = self._named_targets(name, targets)
        for task, part in self.tasks.items():
            own, index = named[task], index_N
            if self._owners():
                rows = self._ranges[name][task]
                mine_N = (index_N >= rows.start) & (index_N < rows.stop)
                own, index = own[mine_N], index_N[mine_N] - rows.start
            else:
                part = self._parts[task]
            try:
                refuse_nan_as_label(name, part, own)
                part.check_targets(name, own, index)
            except DataError as error:
                raise DataError(f"task '{task}': {error}") from None

    def _named_targets(self, name: SplitName, targets: Targets) -> dict[str, Tensor]:
        listed = ", ".join(f"'{task}'" for task in self.tasks)
        if not isinstance(targets, dict):
            raise DataError(
                f"`{name}` must have a target for each task ({listed}), by name, and has one "
                "without a name. Give (x, {'name': y, ...}), or dicts with "
                f"target_key=({listed})."
            )
        for task in targets:
            if task not in self.tasks:
                raise DataError(
                    f"`{name}` has targets for '{task}', which is no task. "
                    f"{nearest(task, self.tasks)}"
                )
        for task in self.tasks:
            if task not in targets:
                raise DataError(
                    f"`{name}` has no targets for the task '{task}'. {nearest(task, targets)} "
                    "Labels that are not known are -1 (classes, labels) or NaN (values)."
                )
        return targets

    def strata(self, targets: Targets) -> Tensor | None:
        """Return the labels of the first task that has classes (-1 where missing), or None."""
        named = self._named_targets("train", targets)
        found = (part.strata(named[name]) for name, part in self._parts.items())
        return next((labels for labels in found if labels is not None), None)

    def describe_targets(
        self, targets: Mapping[SplitName, Targets], *, complete: bool
    ) -> list[Fact]:
        """Return what each task says of its targets, under its name."""
        named = {name: self._named_targets(name, values) for name, values in targets.items()}
        facts: list[Fact] = []
        for task, part in self._parts.items():
            own = {name: values[task] for name, values in named.items()}
            for name, values in own.items():
                if complete and not bool(known(part, values).any()):
                    raise DataError(
                        f"task '{task}': `{name}` has no labelled sample. Every split needs some "
                        "of each task: give more, or pass `val` and `test` yourself."
                    )
            try:
                found = part.describe_targets(own, complete=complete)
            except DataError as error:
                raise DataError(f"task '{task}': {error}") from None
            facts += [fact.model_copy(update={"name": f"{task}_{fact.name}"}) for fact in found]
        return facts

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Return the sum of the losses of the tasks."""
        return torch.stack(list(self.losses(outputs, targets).values())).sum()

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return the mean loss of each task over the samples labelled for it; 0 without any."""
        return {
            name: part.loss(by_name(outputs)[name], by_name(targets)[name])
            for name, part in self._parts.items()
        }

    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        """Return the number to choose by, then every metric of every task under its name."""
        found = {
            name: part.metrics(by_name(outputs)[name], by_name(targets)[name])
            for name, part in self._parts.items()
        }
        chosen = [
            self._sign(part) * found[name][part.selection_metric]
            for name, part in self._parts.items()
        ]
        values = {self.selection_metric: sum(chosen) / len(chosen)}
        for name, metrics in found.items():
            values |= {f"{name}_{metric}": value for metric, value in metrics.items()}
        return values

    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        """Return the mean score of each sample over the tasks, `[N]`.

        None if a label is missing, or the metric of a task is not a mean over samples.
        """
        found: list[Tensor] = []
        for name, part in self._parts.items():
            own = by_name(targets)[name]
            scores = part.sample_scores(by_name(outputs)[name], own)
            if scores is None or not bool(known(part, own, every=True).all()):
                return None
            found.append(self._sign(part) * scores)
        return torch.stack(found).mean(0)

    def problem_with(self, outputs: Outputs, batch: Batch) -> str | None:
        """Return what is wrong with the names or shapes of the outputs, or None."""
        listed = ", ".join(self.tasks)
        if not isinstance(outputs, dict):
            return (
                f"the model gives one output, and the task has several parts ({listed}), each of "
                "which needs one by its name: put AddHeads first"
            )
        if outputs.keys() != self.tasks.keys():
            return f"the model gives outputs named {', '.join(outputs)}, and the task has {listed}"
        for name, part in self._sized_parts().items():
            own = replace(batch, targets=by_name(batch.targets)[name])
            problem = part.problem_with(outputs[name], own)
            if problem is not None:
                # A head of one part is not replaced alone.
                return f"task '{name}': {problem.removesuffix(': put ReplaceHead first')}"
        return None

    def _sized_parts(self) -> dict[str, SingleTask]:
        """Return the tasks, with the classes counted of those that do not say how many."""
        parts = dict(self._parts)
        for name, part in parts.items():
            if isinstance(part, Classification) and not (part.classes or part.class_names):
                classes = self.output_sizes(self.prepare())[name]
                parts[name] = part.model_copy(update={"classes": classes})
        return parts

    def predictions(self, outputs: Outputs) -> dict[str, Any]:
        """Return what each task reads off its outputs."""
        return {
            name: part.predictions(by_name(outputs)[name]) for name, part in self._parts.items()
        }


def _refuse_as_a_whole(what: str) -> NoReturn:
    raise SpecError(
        f"a multi_task has no one {what}: each of its `parts` has its own. For the heads use "
        "AddHeads instead of ReplaceHead."
    )
