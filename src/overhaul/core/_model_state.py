"""What a model is made of: its tensors, its modes, and how it is rebuilt from them."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from overhaul.core._edit import Edit
from overhaul.core._errors import ModelError
from overhaul.core._names import import_path


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients for a block, then restore every flag."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, each shared tensor once under its first name.

    Unlike a state dict this has the non-persistent buffers too, so that a model that is
    loaded again computes the same, bit for bit.
    """
    return {
        name: tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


@torch.no_grad()
def load_tensors_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into the model.

    Raises:
        ModelError: names, shapes or dtypes differ from the model's.
    """
    own = model_tensors(model)
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is not in the model" for name in tensors if name not in own]
    problems += [
        f"{name} is {_form(tensor)} and the model's {_form(own[name])}"
        for name, tensor in tensors.items()
        if name in own and _form(own[name]) != _form(tensor)
    ]
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise ModelError(
            f"these weights do not belong to this {type(model).__name__}: {shown}. "
            "Use the factory that the weights were made with."
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def _form(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def trainable_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that require a gradient."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def rebuild(
    original: nn.Module,
    edits: Iterable[Edit],
    tensors: Mapping[str, Tensor],
    trainable: Iterable[str],
) -> nn.Module:
    """Return a copy of the original with the edits applied and the tensors loaded."""
    model = _copied(original)
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        for edit in edits:
            model = edit.apply(model)
    load_tensors_(model, tensors)
    names = set(trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy, of a model too that keeps results which gradients would flow through.

    Masked weights (`torch.nn.utils.prune`) are such, and activations of the last pass; torch copies
    none of them, and each forward pass makes them anew.
    """
    results = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return deepcopy(model, results)


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of the names, types, shapes and bytes of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Return a hash of all that decides what the model computes.

    That is its tensors, which of them are trainable, its modules and their plain settings (strides,
    eps, dropout rates), and the source code of every class in it that is not torch's.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(tensor_hash(model_tensors(model)).encode())
    digest.update(repr(model).encode())
    digest.update(" ".join(trainable_names(model)).encode())
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__qualname__} {_plain_settings(module)}".encode())
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    for cls in sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)):
        if cls.__module__.partition(".")[0] not in ("torch", "builtins"):
            digest.update(_source(cls).encode())
    return digest.hexdigest()


def _plain_settings(module: nn.Module) -> dict[str, str]:
    """Return the attributes that a forward pass may read and that print the same everywhere."""
    return {
        name: text
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training"
        if (text := _plain_text(value)) is not None
    }


def _plain_text(value: object) -> str | None:
    if value is None or isinstance(value, str | bool | int | float | torch.dtype):
        return repr(value)
    if isinstance(value, tuple | list):
        texts = [_plain_text(item) for item in value]
        return None if None in texts else f"({', '.join(filter(None, texts))})"
    return import_path(value) if callable(value) else None


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return cls.__qualname__
