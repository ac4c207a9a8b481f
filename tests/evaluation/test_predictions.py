"""What a model says about every sample of a split."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Batch, DataError, ModelError, evaluating, tensor_hash
from overhaul.evaluation import Predictions, predict
from tests.evaluation.tiny_task import TinySplit


@pytest.fixture
def split(images: Batch) -> TinySplit:
    return TinySplit(images.inputs, images.targets)


def test_every_sample_is_predicted_in_order(network: nn.Sequential, split: TinySplit) -> None:
    found = predict(network, split, batch_size=2)
    with evaluating(network):
        expected = network(split.inputs[0])
    assert isinstance(found.outputs, Tensor)
    torch.testing.assert_close(found.outputs, expected)
    assert isinstance(found.targets, Tensor)
    assert isinstance(split.targets, Tensor)
    assert torch.equal(found.targets, split.targets)
    assert len(found) == 5


def test_the_batch_size_does_not_matter(network: nn.Sequential, split: TinySplit) -> None:
    one, all_at_once = (predict(network, split, batch_size=size).outputs for size in (1, 100))
    torch.testing.assert_close(one, all_at_once)


def test_the_model_is_left_as_it_was(network: nn.Sequential, split: TinySplit) -> None:
    network[1].eval()
    flags = [module.training for module in network.modules()]
    before = tensor_hash(network.state_dict())
    predict(network, split)
    assert [module.training for module in network.modules()] == flags
    assert tensor_hash(network.state_dict()) == before


def test_outputs_are_float32_and_without_gradient(split: TinySplit) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    doubles = TinySplit((split.inputs[0].double(),), split.targets)
    outputs = predict(model, doubles).outputs
    assert isinstance(outputs, Tensor)
    assert outputs.dtype is torch.float32
    assert not outputs.requires_grad


class _Named(nn.Module):
    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        flat = pixels.flatten(1)
        return {"first": flat[:, :2], "second": flat[:, :3]}


def test_named_inputs_outputs_and_targets(images: Batch) -> None:
    pixels = first_input(images)
    targets = {"first": torch.arange(5), "second": torch.arange(5)}
    found = predict(_Named(), TinySplit({"pixels": pixels}, targets), batch_size=2)
    assert isinstance(found.outputs, dict)
    assert isinstance(found.targets, dict)
    assert torch.equal(found.outputs["second"], pixels.flatten(1)[:, :3])
    assert torch.equal(found.targets["first"], targets["first"])
    taken = found.take(torch.tensor([4, 4]))
    assert isinstance(taken.targets, dict)
    assert taken.targets["second"].tolist() == [4, 4]


def test_a_deployed_model_is_called_like_a_model(split: TinySplit) -> None:
    found = predict(lambda pixels: pixels.flatten(1)[:, :2], split, batch_size=2)
    assert torch.equal(torch.as_tensor(found.outputs), split.inputs[0].flatten(1)[:, :2])


def test_nan_names_the_first_bad_sample(images: Batch) -> None:
    pixels = first_input(images).clone()
    pixels[3, 0, 2, 2] = torch.nan
    split = TinySplit((pixels,), images.targets, "test")
    with pytest.raises(ModelError, match="sample 3 of 'test' is NaN"):
        predict(nn.Flatten(), split, batch_size=2)


@pytest.mark.parametrize("wrong", [lambda x: x.sum(), lambda x: x[:1]])
def test_one_output_for_each_sample(split: TinySplit, wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ModelError, match="one output for each sample, got"):
        predict(wrong, split)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="the split 'val' is empty"):
        predict(nn.Flatten(), TinySplit((torch.zeros(0, 1),), torch.zeros(0)))


def test_minus_infinity_is_a_logit(images: Batch) -> None:
    found = predict(
        lambda x: torch.full((len(x), 2), -torch.inf), TinySplit(images.inputs, images.targets)
    )
    assert isinstance(found, Predictions)
    assert len(found) == 5


def first_input(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, tuple)
    tensor: Tensor = batch.inputs[0]
    return tensor
