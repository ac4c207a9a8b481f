"""Counting parameters."""

import torch
from torch import nn

from overhaul.evaluation import count_nonzero_parameters, count_parameters


def test_a_shared_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16
    assert count_nonzero_parameters(model) == 16


def test_zeros_are_parameters_but_not_nonzero_ones() -> None:
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight[:3] = 0
    assert (count_parameters(model), count_nonzero_parameters(model)) == (16, 4)


def test_buffers_are_no_parameters() -> None:
    assert count_parameters(nn.BatchNorm1d(3, affine=False)) == 0
