"""Memory, measured in a process of its own."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Batch, dequantize, quantize, tensor_hash
from overhaul.evaluation import measure_peak_memory

MEGABYTE = 2**20


def test_weights_are_measured_and_the_model_is_left_as_it_was() -> None:
    model = nn.Linear(4096, 4096).train()
    batch = Batch((torch.zeros(1, 4096),), torch.zeros(1), torch.arange(1))
    names, before = set(vars(model)), tensor_hash(model.state_dict())
    found = measure_peak_memory(model, batch)
    assert found.reason is None
    assert found.bytes is not None
    assert 64 * MEGABYTE <= found.bytes < 90 * MEGABYTE
    assert model.training
    assert set(vars(model)) == names
    assert tensor_hash(model.state_dict()) == before


def test_activations_are_measured_and_named_inputs_are_given() -> None:
    class Wide(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.repeat(1, 64).exp().sum(dim=1)

    batch = Batch({"pixels": torch.zeros(64, 4096)}, torch.zeros(64), torch.arange(64))
    found = measure_peak_memory(Wide(), batch)
    assert found.bytes is not None
    assert 120 * MEGABYTE <= found.bytes < 170 * MEGABYTE


@dataclass
class _Answer:
    logits: Tensor


def test_outputs_may_be_of_a_class_of_the_users(images: Batch) -> None:
    class Answering(nn.Module):
        def forward(self, pixels: Tensor) -> _Answer:
            return _Answer(logits=pixels.flatten(1))

    assert measure_peak_memory(Answering(), images).reason is None


class _Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_exported_is_not_measured_and_says_why(images: Batch) -> None:
    found = measure_peak_memory(_Undecided(), images)
    assert found.bytes is None
    assert found.reason is not None
    assert found.reason.startswith("torch.export cannot export this model: ")


def test_a_process_that_takes_too_long_is_ended(network: nn.Sequential, images: Batch) -> None:
    found = measure_peak_memory(network, images, timeout_s=0.01)
    assert (found.bytes, found.reason) == (None, "the process did not end within 0.01 s")


def test_a_process_that_fails_says_why(
    network: nn.Sequential, images: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overhaul.evaluation._peak_memory_process.__file__", "/no/such/file.py")
    found = measure_peak_memory(network, images)
    assert found.bytes is None
    assert "the process ended with code 2" in str(found.reason)


class _Integers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = torch.tensor(0.1), torch.tensor(128).byte()
        return dequantize(quantize(x, scale, zero_point), scale, zero_point)


def test_a_model_with_integers_is_measured(images: Batch) -> None:
    assert measure_peak_memory(_Integers(), images).reason is None
