"""The norm of all that belongs to a unit."""

from collections.abc import Mapping

import torch
from torch import Tensor

from overhaul.graph import Group


def squared_norms(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the squares of all that belongs to each unit, `[units]`.

    Gradients flow. A weight that a unit has in two places (a square matrix whose rows and columns
    go together) counts in each.

    Args:
        group: The units.
        tensors: What counts, by name; the rest of the group's places does not.
    """
    sums = []
    for place in group.places:
        if place.tensor in tensors:
            squares = tensors[place.tensor].square().movedim(place.dim, 0)
            by_position = squares.reshape(len(squares), -1).sum(1)
            positions = torch.from_numpy(place.positions).to(by_position.device)
            sums.append(by_position[positions].sum(1))
    return torch.stack(sums).sum(0)


def unit_size(group: Group, tensors: Mapping[str, Tensor]) -> int:
    """Return how many numbers of these tensors each unit has, counted as in `squared_norms`."""
    return sum(
        place.positions.shape[1] * (tensor.numel() // tensor.shape[place.dim])
        for place in group.places
        if (tensor := tensors.get(place.tensor)) is not None
    )
