"""`Network`: a network as data, by the factory that builds it and the file with its weights."""

import inspect
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from overhaul.core._errors import ModelError, SpecError
from overhaul.core._spec import Factory, InputFile, Spec
from overhaul.runtime import CorruptedFileError, OverhaulError


class Network(Spec):
    """A network as data: what builds it, and which weights it gets.

    Args:
        factory: A function or class that returns an `nn.Module`, or its import path
            (`package.module:name`).
        arguments: Keyword arguments for the factory.
        weights: A `.safetensors` file, or a `.pt`/`.pth` state dict, which is read without running
            code from it. None keeps what the factory initializes.

    Example:
        >>> network = Network(factory="torch.nn:Flatten")
        >>> network
        Network(factory='torch.nn:Flatten')
        >>> network.build()
        Flatten(start_dim=1, end_dim=-1)
    """

    factory: Factory
    arguments: dict[str, Any] = Field(default={}, description="Keyword arguments of the factory.")
    weights: InputFile | None = Field(default=None, description="A .safetensors, .pt or .pth file.")

    def build(self) -> nn.Module:
        """Return the network with its weights.

        Raises:
            SpecError: the factory refuses its arguments, or returns something else.
            ModelError: the factory fails, or the weights do not belong to this network.
            CorruptedFileError: the weights file is not readable as what its name says.
        """
        try:
            inspect.signature(self.factory).bind(**self.arguments)
        except TypeError as error:
            raise SpecError(f"the factory {self.factory!r} cannot be called so: {error}.") from None
        try:
            model: object = self.factory(**self.arguments)
        except OverhaulError:
            raise
        except Exception as error:  # a factory of a user may raise anything
            raise ModelError(
                f"the factory {self.factory!r} fails with the arguments {self.arguments}: "
                f"{type(error).__name__}: {error}{_where(error)}. Give the arguments that it takes."
            ) from error
        if not isinstance(model, nn.Module):
            raise SpecError(
                f"the factory {self.factory!r} must return a torch.nn.Module, got "
                f"{type(model).__name__}."
            )
        if self.weights is not None:
            load_weights_(model, Path(self.weights))
        return model


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def load_weights_(model: nn.Module, path: Path) -> None:
    """Load a state dict file into the model, every key exactly.

    Raises:
        ModelError: keys or shapes differ.
        CorruptedFileError: the file cannot be read.
    """
    if not path.is_file():
        raise ModelError(f"there is no weights file '{path}' (looked from '{Path.cwd()}').")
    state = _read_state_dict(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"the weights in '{path}' do not belong to this {type(model).__name__}: "
            f"{_differences(model, state) or ' '.join(str(error).split())}. {_what_to_do(path)}"
        ) from None


def _differences(model: nn.Module, state: Mapping[str, Any]) -> str:
    """Say in which tensors a state dict and a model differ: the first ones, and how many."""
    own = model.state_dict()
    found = [f"{name} is missing" for name in own if name not in state]
    found += [f"{name} is not in the model" for name in state if name not in own]
    for name, value in state.items():
        shapes = [list(getattr(each, "shape", ())) for each in (value, own.get(name, value))]
        if shapes[0] != shapes[1]:
            found.append(f"{name} is {shapes[0]} and the model's {shapes[1]}")
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


_SHOWN = 3


def _what_to_do(path: Path) -> str:
    if (path.parent / "manifest.json").is_file() and (path.parent / "steps").is_dir():
        return (
            "They are what a run ended with, and its recipe may have changed the structure. "
            f"`overhaul.load_model('{path.parent}', original)` makes the network again from the "
            "model that the run was given."
        )
    return "Give the factory, with its arguments, of the network that they were saved from."


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: object = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise CorruptedFileError(
            f"'{path}' cannot be read as weights: {error}. Get the file again, or save the state "
            "dict anew with safetensors."
        ) from error
    except Exception as error:  # torch.load raises pickle's own error for what is not plain data
        raise ModelError(
            f"'{path}' holds more than plain weights{_pickled_class(error)}, and Overhaul runs no "
            "code from files. Save `model.state_dict()` instead of the whole model."
        ) from error
    if not isinstance(state, Mapping):
        raise ModelError(f"'{path}' holds {type(state).__name__}, not a state dict.")
    inner = state.get("state_dict", state)
    return inner if isinstance(inner, Mapping) else state


def _pickled_class(error: Exception) -> str:
    """Return what torch refused to unpickle, which its long text says in the middle."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""
