"""`DataTask`: a task with data, which it reads, checks and splits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema
from torch import Tensor

from overhaul.core import (
    DataError,
    Fact,
    SpecError,
    SplitName,
    Splits,
    Targets,
    Task,
    concrete_subclasses,
)
from overhaul.tasks._as_samples import as_samples
from overhaul.tasks._data_source import DataSource
from overhaul.tasks._normalize import Normalize
from overhaul.tasks._prepare import SplitPlan, prepare_splits
from overhaul.tasks._samples import Samples
from overhaul.tasks._sealed import SealedData


def _source(value: Any) -> Any:
    """Turn the name of built-in data into the data source; `fashion_mnist` is `fashion-mnist`."""
    if value is None or isinstance(value, DataSource):
        return value
    return DataSource.from_data(_with_hyphens(value))


def _with_hyphens(value: Any) -> Any:
    if isinstance(value, str) and ":" not in value:
        return value.replace("_", "-")
    if isinstance(value, Mapping) and len(value) == 1:
        return {_with_hyphens(key): fields for key, fields in value.items()}
    return value


_RuntimeData = Annotated[Any, SkipJsonSchema()]


class DataTask(Task, ABC):
    """A task with data, which it reads, checks and splits.

    Data comes as `train` (with `val` and `test`, if there are any) in any form that `as_samples`
    takes, or as the name of built-in `data`. What is missing is split off `train` at random,
    stratified by class where there are classes, and samples with equal inputs stay on one side.
    Floats of 64 bits are read as 32 bits. Pixels (uint8) need a `preprocess`.

    Args:
        train: What training may see.
        val: What choices are made on.
        test: What the verdict is given on. The task seals it: reading `task.test` raises.
        data: Built-in data, by name or as a `DataSource`, in place of `train`, `val` and `test`.
        val_fraction: Part of all of `train` that becomes `val` where there is none. Default 0.1.
        test_fraction: The same for `test`. Default 0.2.
        seed: Of the splits. Default 0.
        train_limit: Train on so many samples only, stratified. None: on all.
        allow_overlap: Largest fraction of the smaller of two splits whose inputs may be, byte for
            byte, in the other too. Default 0. For data that repeats itself by nature.
        preprocess: What is done to each batch of inputs.
        target_key: Where samples are dicts, the key of the targets; several keys give named
            targets.
        scan: Whether the checks read `full` data, or a `sample` of 1,000 evenly spaced samples of
            each split, for data that takes long to read.
    """

    train: _RuntimeData = None
    val: _RuntimeData = None
    test: _RuntimeData = None
    data: Annotated[DataSource | str | None, BeforeValidator(_source)] = Field(
        default=None, description="Built-in data, by name."
    )
    val_fraction: float = Field(default=0.1, gt=0, lt=1, description="Part of train for val.")
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="Part of train for test.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the splits.")
    train_limit: int | None = Field(
        default=None, ge=1, description="Train on so many samples only."
    )
    allow_overlap: float = Field(
        default=0.0, ge=0, lt=1, description="Fraction of a split that may repeat another's inputs."
    )
    preprocess: Normalize | None = None
    target_key: str | tuple[str, ...] = Field(
        default="labels", description="The key of the targets where samples are dicts."
    )
    scan: Literal["full", "sample"] = "full"

    _prepared: Splits | None = PrivateAttr(default=None)

    @field_validator("test", mode="before")
    @classmethod
    def _seal(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, SealedData) else SealedData(value)

    @model_validator(mode="after")
    def _check_data_fields(self) -> Self:
        raw = {"train": self.train, "val": self.val}
        if self.test is not None:
            raw["test"] = self.test._unsealed()
        given = {name: value for name, value in raw.items() if value is not None}
        if self.data is not None and given:
            raise SpecError(
                f"give built-in `data` or data of your own, not both: got `data` and "
                f"{', '.join(f'`{name}`' for name in given)}."
            )
        if given and "train" not in given:
            raise SpecError("`val` and `test` need `train` beside them.")
        for name in given:
            for other in given:
                if name < other and given[name] is given[other]:
                    raise SpecError(
                        f"`{name}` and `{other}` are the same object. Leave out what you do not "
                        "have: it is split off `train`."
                    )
        if self.val_fraction + self.test_fraction >= 1:
            raise SpecError(
                "`val_fraction` and `test_fraction` together must be below 1, got "
                f"{self.val_fraction} + {self.test_fraction}."
            )
        return self

    def prepare(self) -> Splits:
        """Read the data, check it, split what is missing off `train`; once for each task object.

        Raises:
            DataError: there is no data, or it breaks a rule; the message names index and field.
        """
        if self._prepared is None:
            self._prepared = prepare_splits(self.read_data(), self.split_plan(), self)
        return self._prepared

    def read_data(self) -> dict[SplitName, Samples]:
        """Return the samples of each split that there is.

        Raises:
            DataError: there is no data, or it is of a form that cannot be read.
        """
        raw = self.raw_data()
        return {name: as_samples(value, name, self.target_key) for name, value in raw.items()}

    def raw_data(self) -> dict[SplitName, Any]:
        """Return what the user gave of each split, or what the built-in data has.

        Raises:
            DataError: there is no data.
        """
        raw: dict[SplitName, Any] = {}
        if self.source is not None:
            raw.update(self.source.load())
        elif self.train is not None:
            raw["train"] = self.train
            if self.val is not None:
                raw["val"] = self.val
            if self.test is not None:
                raw["test"] = self.test._unsealed()
        else:
            sources: type[DataSource] = DataSource  # type: ignore[type-abstract]
            names = sorted(source.spec_name() for source in concrete_subclasses(sources))
            raise DataError(
                f"this {self.spec_name()} has no data. Pass train=(x, y), a Dataset or a "
                f"DataLoader, or the name of built-in data: data='...' ({', '.join(names)})."
            )
        return raw

    @property
    def source(self) -> DataSource | None:
        """The built-in data, if it is that."""
        return self.data if isinstance(self.data, DataSource) else None

    def split_plan(self) -> SplitPlan:
        """Return how splits are made and checked."""
        return SplitPlan(
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
            train_limit=self.train_limit,
            allow_overlap=self.allow_overlap,
            preprocess=self.preprocess,
            every_sample=self.scan == "full",
        )

    @abstractmethod
    def check_targets(self, name: SplitName, targets: Targets, index_N: Tensor) -> None:
        """Refuse targets of a wrong shape, type or value; see `TargetRules`."""

    @abstractmethod
    def strata(self, targets: Targets) -> Tensor | None:
        """Return whole numbers `[N]` whose shares each split should keep, or None."""

    @abstractmethod
    def describe_targets(
        self, targets: Mapping[SplitName, Targets], *, complete: bool
    ) -> list[Fact]:
        """Return what is worth knowing about the targets; see `TargetRules`."""
