"""Bytes on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from overhaul.evaluation import stored_size


def test_it_is_the_size_of_the_file(network: nn.Sequential, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), path)
    assert stored_size(network).size_bytes == path.stat().st_size


def test_a_shared_tensor_is_stored_once() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    apart = stored_size(model).size_bytes
    model[1].weight = model[0].weight
    assert apart - stored_size(model).size_bytes == pytest.approx(64 * 64 * 4, abs=100)


def test_zeros_shrink_the_compressed_size_only() -> None:
    # Trap: weights pruned to zero and stored dense save nothing.
    model = nn.Linear(256, 256)
    before = stored_size(model)
    with torch.no_grad():
        model.weight[:128] = 0
    after = stored_size(model)
    assert after.size_bytes == before.size_bytes
    assert after.compressed_bytes < 0.6 * before.compressed_bytes


def test_slices_of_one_weight_are_stored_as_they_are() -> None:
    model = nn.Module()
    whole = torch.randn(8, 8)
    model.register_buffer("left", whole[:, :6])
    model.register_buffer("right", whole[:, 2:])
    assert stored_size(model).size_bytes > 2 * 8 * 6 * 4


def test_what_safetensors_cannot_hold_is_refused() -> None:
    model = nn.Module()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="safetensors cannot hold the state"):
        stored_size(model)
