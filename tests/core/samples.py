"""Specs, steps and networks that the tests of `core` share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Carried, Context, Edit, Factory, Spec, Step, Trait, Traits


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Fruit(Spec, ABC):
    """A kind of thing."""

    @abstractmethod
    def taste(self) -> str:
        """Say it."""


class Apple(Fruit):
    """An apple, with nothing that must be said.

    More about apples.
    """

    weight_g: float = Field(default=150.0, gt=0, description="A small one has 100 g.")
    colour: Colour = Colour.RED

    def taste(self) -> str:
        return "sour"


class Basket(Fruit):
    """A basket, which holds fruit: baskets too."""

    fruits: tuple[Fruit, ...] = Field(description="What is in it.")
    labels: frozenset[str] = frozenset()
    limit: int | Literal[False] = False
    options: dict[str, Any] = {}
    folder: Path = Path("here")

    bare_field: ClassVar[str | None] = "fruits"

    def taste(self) -> str:
        return "mixed"


class FruitSalad(Fruit):
    """What holds what a file cannot hold."""

    main: Fruit | nn.Module | None = None
    knife: Callable[..., Any] | None = None
    recipe: Factory | None = None
    numbers: Tensor | None = None
    exact: Apple = Apple()

    def taste(self) -> str:
        return "sweet"


class Sequence(Step):
    """Steps in order."""

    needs: ClassVar[Traits] = frozenset()
    bare_field: ClassVar[str | None] = "steps"

    steps: tuple[Step, ...] = ()

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        for step in self.steps:
            model = step.apply(model, ctx)
        return model


class PackUp(Step):
    """Take the model out of reach."""

    gives: ClassVar[Traits] = frozenset({Trait.DEPLOYED})
    takes: ClassVar[Traits] = frozenset({Trait.EDITABLE, Trait.TRAINABLE})

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        return model


class Ship(Step):
    """Needs what `PackUp` gives."""

    needs: ClassVar[Traits] = frozenset({Trait.DEPLOYED})

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        return model


class RenameLayer(Edit):
    """Put the module `old` under the name `new`, or drop it."""

    old: str
    new: str | None = None

    def apply(self, model: nn.Module) -> nn.Module:
        module = model.get_submodule(self.old)
        delattr(model, self.old)
        if self.new is not None:
            setattr(model, self.new, module)
        return model

    def rename(self, name: str) -> str | None:
        head, dot, tail = name.partition(".")
        if head != self.old:
            return name
        return None if self.new is None else f"{self.new}{dot}{tail}"


class AddRandomLayer(Edit):
    """Append a linear layer, whose weights are drawn at random."""

    name: str

    def apply(self, model: nn.Module) -> nn.Module:
        setattr(model, self.name, nn.Linear(2, 2))
        return model


class KeepNames(Carried):
    """Names that are to be kept."""

    names: tuple[str, ...]

    def renamed(self, rename: Callable[[str], str | None]) -> Self | None:
        names = tuple(new for name in self.names if (new := rename(name)) is not None)
        return self.model_copy(update={"names": names}) if names else None


class Net(nn.Module):
    """A network with a buffer that a state dict leaves out."""

    scale: Tensor

    def __init__(self, scale: float = 2.0, *, power: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)
        self.power = power
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.norm(self.first(x)))) * self.scale
        return out**self.power


class TiedNet(nn.Module):
    """A network two of whose layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.last = nn.Linear(3, 3)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x)))
        return out
