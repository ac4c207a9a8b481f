from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overhaul.core import Batch, DataError, SpecError
from overhaul.tasks import Normalize


@given(mean=st.floats(-3, 3), std=st.floats(0.1, 3), channels=st.integers(1, 4))
def test_one_number_is_the_same_number_for_each_channel(
    mean: float, std: float, channels: int
) -> None:
    images = torch.rand(2, channels, 3, 3)
    each = Normalize(mean=(mean,) * channels, std=(std,) * channels)
    assert torch.equal(Normalize(mean=mean, std=std)(images), each(images))


def test_data_gets_mean_zero_and_deviation_one() -> None:
    images = torch.rand(50, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    mean = tuple(images.mean((0, 2, 3)).tolist())
    std = tuple(images.std((0, 2, 3), correction=0).tolist())
    normalized = Normalize(mean=mean, std=std)(images)
    assert torch.allclose(normalized.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normalized.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)


def test_token_ids_and_targets_stay() -> None:
    batch = Batch(
        {"ids": torch.tensor([[1, 2]]), "x": torch.tensor([[4.0]])},
        torch.tensor([7.0]),
        torch.tensor([0]),
    )
    changed = Normalize(mean=1.0, std=2.0).apply(batch)
    assert isinstance(changed.inputs, dict)
    assert changed.inputs["ids"].tolist() == [[1, 2]]
    assert changed.inputs["x"].item() == 1.5
    assert torch.equal(torch.as_tensor(changed.targets), torch.tensor([7.0]))


def test_pixels_are_divided_by_255_first() -> None:
    pixels = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert Normalize(mean=0.5, std=0.5)(pixels).tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("std", [0, -1.0, (0.2, 0.0), ()])
def test_a_deviation_of_zero_is_refused(std: Any) -> None:
    with pytest.raises(SpecError, match="`std` must be above 0"):
        Normalize(std=std)


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(DataError, match=r"`std` of normalize has 2 numbers.*\[B, 3, 8, 8\]"):
        Normalize(std=(1.0, 2.0))(torch.rand(1, 3, 8, 8))
