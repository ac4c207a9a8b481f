"""`pair_layers`: which layer of a student learns from which layer of its teacher."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.core import Batch, ModelError, evaluating, nearest
from overhaul.distillation._seen import watching

_MOST_PAIRS = 4
_ONE_DIMENSIONAL = (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d)


@dataclass(frozen=True)
class Layer:
    """A module of a network and the shape of what it returns.

    Attributes:
        path: Of the module.
        channels: Size of the dimension of the features.
        places: Sizes of the others, besides the samples: height and width, or the length.
        channels_last: Whether the features are the last dimension, as in a transformer.
    """

    path: str
    channels: int
    places: tuple[int, ...]
    channels_last: bool

    def __str__(self) -> str:
        """Return the path and the sizes, for people."""
        places = " x ".join(map(str, self.places))
        return f"{self.path} ({self.channels} channels{f', {places}' if places else ''})"

    def by_place(self, feature: Tensor) -> Tensor:
        """Return what the layer gave as `[B, channels, places]`."""
        if self.channels_last and feature.ndim > 2:
            feature = feature.movedim(-1, 1)
        return feature.flatten(2) if feature.ndim > 2 else feature.unsqueeze(2)


@dataclass(frozen=True)
class Pair:
    """A layer of the student and the layer of the teacher that it learns from."""

    student: Layer
    teacher: Layer

    def check_places(self, match: str) -> None:
        """See that the two can be compared place by place.

        Args:
            match: Whose name is in the error.

        Raises:
            ModelError: they are not images, and of two lengths.
        """
        own, theirs = self.student.places, self.teacher.places
        if own != theirs and not (len(own) == len(theirs) == 2) and math.prod(own + theirs) > 1:
            raise ModelError(
                f"{match}: two layers must have one length to be compared place by place, got "
                f"{self.student} of the student and {self.teacher} of the teacher. Pair others "
                "with `layers`."
            )

    def at_one_size(self, student_BCP: Tensor, teacher_BCP: Tensor) -> tuple[Tensor, Tensor]:
        """Return both features at the smaller height and width, to which the larger is averaged."""
        own, theirs = self.student.places, self.teacher.places
        if own == theirs or not len(own) == len(theirs) == 2:
            return student_BCP, teacher_BCP
        size = min(own[0], theirs[0]), min(own[1], theirs[1])
        return _averaged(student_BCP, own, size), _averaged(teacher_BCP, theirs, size)


def pair_layers(
    student: nn.Module, teacher: nn.Module, batch: Batch, layers: Sequence[tuple[str, str]] = ()
) -> tuple[Pair, ...]:
    """Pair layers by path, or by depth and shape.

    Without `layers`: where both networks make images (or sequences) smaller step by step, the last
    modules at each size that both have are paired. Else the blocks (modules with parts of their own
    in the longest `nn.Sequential` or `nn.ModuleList`), or without blocks the modules with weights
    but for the last, are paired by relative depth, at most four.

    Args:
        student: In evaluation mode.
        teacher: In evaluation mode.
        batch: Some samples to see shapes with.
        layers: Pairs of module paths, of the student and of the teacher.

    Raises:
        ModelError: a path is not a module, is not called exactly once, or returns no features; or
            nothing pairs.

    Example:
        >>> import torch
        >>> from overhaul.testing import tiny_cnn
        >>> batch = Batch((torch.ones(2, 1, 8, 8),), torch.zeros(2), torch.arange(2))
        >>> [(p.student.path, p.teacher.path) for p in pair_layers(tiny_cnn(2), tiny_cnn(4), batch)]
        [('conv', 'conv'), ('bn', 'bn')]
    """
    own, theirs = layers_of(student, batch), layers_of(teacher, batch)
    if layers:
        return tuple(
            Pair(_named(one, own, student, "student"), _named(two, theirs, teacher, "teacher"))
            for one, two in layers
        )
    pairs = _by_size(own, theirs) or _by_depth(
        _blocks(student, own) or _weighted(student, own),
        _blocks(teacher, theirs) or _weighted(teacher, theirs),
    )
    if not pairs:
        raise ModelError(
            "no layer of the student goes with one of the teacher by depth and shape. Name pairs "
            "of module paths: layers=[('student.path', 'teacher.path')]."
        )
    return tuple(pairs)


def layers_of(network: nn.Module, batch: Batch) -> dict[str, Layer]:
    """Return the modules that are called once and return features, in the order of their ends."""
    paths = [path for path, _ in network.named_modules() if path]
    with evaluating(network), watching(network, paths) as found:
        batch.forward(network)
    return {
        path: _layer(path, tensors[0], network)
        for path, tensors in found.items()
        if len(tensors) == 1 and _is_feature(tensors[0], len(batch))
    }


def _is_feature(tensor: Tensor, samples: int) -> bool:
    return tensor.is_floating_point() and 2 <= tensor.ndim <= 5 and len(tensor) == samples


def _layer(path: str, tensor: Tensor, network: nn.Module) -> Layer:
    inside = network.get_submodule(path).modules()
    last = tensor.ndim == 3 and not any(isinstance(each, _ONE_DIMENSIONAL) for each in inside)
    shape = tuple(tensor.shape)
    return Layer(path, shape[-1 if last else 1], shape[1:-1] if last else shape[2:], last)


def _named(path: str, layers: dict[str, Layer], network: nn.Module, whose: str) -> Layer:
    if path in layers:
        return layers[path]
    known = [name for name, _ in network.named_modules() if name]
    if path not in known:
        raise ModelError(f"the {whose} has no layer '{path}'. {nearest(path, known)}")
    raise ModelError(
        f"the layer '{path}' of the {whose} must be called once, return features of each "
        f"sample, and not be changed in place afterwards. {nearest(path, layers)}"
    )


def _averaged(feature_BCP: Tensor, places: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    if places == size:
        return feature_BCP
    return F.adaptive_avg_pool2d(feature_BCP.unflatten(2, places), size).flatten(2)


def _by_size(own: dict[str, Layer], theirs: dict[str, Layer]) -> list[Pair]:
    """Pair the last layers at each size that both networks have, if there are several sizes."""
    last_own, last_theirs = _last_by_size(own), _last_by_size(theirs)
    common = [places for places in last_own if places in last_theirs and places]
    several = min(len([p for p in last if p]) for last in (last_own, last_theirs)) > 1
    if not common or not several:
        return []
    return [Pair(last_own[places], last_theirs[places]) for places in common[-_MOST_PAIRS:]]


def _last_by_size(layers: dict[str, Layer]) -> dict[tuple[int, ...], Layer]:
    """Return the last layer at each size, in the order of these layers."""
    last: dict[tuple[int, ...], Layer] = {}
    for layer in layers.values():
        last.pop(layer.places, None)  # or it would keep the place of the first at this size
        last[layer.places] = layer
    return last


def _blocks(network: nn.Module, layers: dict[str, Layer]) -> list[Layer]:
    found: list[Layer] = []
    for path, module in network.named_modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            continue
        prefix = f"{path}." if path else ""
        inner = [
            layers[prefix + name]
            for name, child in module.named_children()
            if prefix + name in layers and any(True for _ in child.children())
        ]
        if len(inner) > len(found):
            found = inner
    return found


def _weighted(network: nn.Module, layers: dict[str, Layer]) -> list[Layer]:
    """Return the layers with weights of their own, but for the last, which gives the outputs."""
    own = [
        layer
        for path, layer in layers.items()
        if any(True for _ in network.get_submodule(path).parameters(recurse=False))
    ]
    return own[:-1]


def _by_depth(own: list[Layer], theirs: list[Layer]) -> list[Pair]:
    count = min(len(own), len(theirs), _MOST_PAIRS)
    ends = [(n + 1) / count for n in range(count)]
    return [
        Pair(own[round(end * len(own)) - 1], theirs[round(end * len(theirs)) - 1]) for end in ends
    ]
