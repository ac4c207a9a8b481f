"""`align_config_`: the config of a Hugging Face model says what the pruned model is."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from overhaul.core import Edit, evaluating
from overhaul.graph._tensors_in import tensors_in


class ConfigSizes(Edit):
    """Integers of a Hugging Face `model.config` are set to the sizes that the model now has.

    Args:
        sizes: The new values by their names, `text_config.hidden_size` for one inside another.

    Example:
        >>> ConfigSizes(sizes={"intermediate_size": 48})
        ConfigSizes(sizes={'intermediate_size': 48})
    """

    sizes: dict[str, int]

    def apply(self, model: nn.Module) -> nn.Module:
        """Set them, in a config of the model's own."""
        model.config = copy.deepcopy(model.config)
        for name, value in self.sizes.items():
            _set(model.config, tuple(name.split(".")), value)
        return model


def config_sizes(model: nn.Module) -> dict[str, int]:
    """Return the integers of `model.config` by their names; nothing if it has none."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "save_pretrained"):
        return {}
    return {".".join(place): _get(config, place) for place in _integers(config)}


def align_config_(
    model: nn.Module,
    inputs: Sequence[Any] = (),
    named_inputs: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Set sizes in `model.config` so that the class builds the pruned model, where it can.

    Every integer of the config is a candidate. A new value is kept if fewer tensors and attributes
    differ between the model and one that its class builds from the config, without memory. At the
    end every shape has to agree, and a model that is built and given the weights has to compute the
    same; else the config stays as it was. Then `save_pretrained` and `from_pretrained` work.

    Args:
        model: A model with a `config`, as of Hugging Face; of another nothing is done.
        inputs: Positional inputs of a forward pass.
        named_inputs: Named inputs.

    Returns:
        The tensors whose shapes no config gives, empty if the config is aligned; `("the outputs",)`
        if all shapes agree and the outputs do not.

    Example:
        >>> align_config_(nn.Linear(2, 2))
        ()
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "save_pretrained"):
        return ()
    wanted, built = _facts(model), _built(model, config)
    if built is None:
        return ("its class cannot be built without memory",)
    best, wrong = copy.deepcopy(config), _differing(wanted, built)
    improved = bool(wrong)
    while improved:
        improved = False
        for place in _integers(best):
            for new in _candidates(_get(best, place), wanted, built, wrong):
                changed = copy.deepcopy(best)
                _set(changed, place, new)
                other = _built(model, changed)
                now = wrong if other is None else _differing(wanted, other)
                if other is not None and len(now) < len(wrong):
                    best, built, wrong, improved = changed, other, now, True
                    break
    shapes = tuple(sorted(name for name in wrong if not isinstance(wanted.get(name), int | float)))
    if shapes:
        return shapes
    if not _computes_the_same(model, best, inputs, named_inputs or {}):
        return ("the outputs",)
    for place in _integers(config):
        if _get(config, place) != _get(best, place):
            _set(config, place, _get(best, place))
    return ()


Facts = dict[str, tuple[int, ...] | int | float]
Place = tuple[str, ...]


def _facts(model: nn.Module) -> Facts:
    """Return the shape of every tensor, and every number that a module has as an attribute."""
    found: Facts = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{path}.{name}"] = value
    return found


def _built(model: nn.Module, config: Any) -> Facts | None:
    try:
        with torch.device("meta"):
            return _facts(type(model)(copy.deepcopy(config)))
    except Exception:  # sizes that do not fit each other: whatever the class says to that
        return None


def _differing(wanted: Facts, built: Facts) -> set[str]:
    return {name for name in wanted.keys() | built.keys() if wanted.get(name) != built.get(name)}


def _candidates(old: int, wanted: Facts, built: Facts, wrong: set[str]) -> list[int]:
    """Return what an integer may have become, if it changed as the sizes did that differ."""
    found: set[int] = set()
    for name in wrong:
        before, after = built.get(name), wanted.get(name)
        pairs = [(before, after)]
        if isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
            pairs = list(zip(before, after, strict=True))
        for one, other in pairs:
            if isinstance(one, int) and isinstance(other, int) and one != other and one > 0:
                new, rest = divmod(old * other, one)
                if not rest and new > 0:
                    found.add(new)
    return sorted(found)


def _integers(config: Any, above: Place = ()) -> list[Place]:
    found: list[Place] = []
    for name, value in vars(config).items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            found.append((*above, name))
        elif hasattr(value, "to_dict"):
            found += _integers(value, (*above, name))
    return found


def _get(config: Any, place: Place) -> int:
    for name in place:
        config = getattr(config, name)
    return int(config)


def _set(config: Any, place: Place, value: int) -> None:
    for name in place[:-1]:
        config = getattr(config, name)
    setattr(config, place[-1], value)


def _computes_the_same(
    model: nn.Module, config: Any, inputs: Sequence[Any], named_inputs: Mapping[str, Any]
) -> bool:
    first = next(model.parameters())
    other = type(model)(copy.deepcopy(config)).to(first.device, first.dtype)
    other.load_state_dict(model.state_dict())
    with evaluating(model), evaluating(other):
        pairs = zip(
            tensors_in(model(*inputs, **named_inputs)),
            tensors_in(other(*inputs, **named_inputs)),
            strict=True,
        )
        return all(
            a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs
        )
