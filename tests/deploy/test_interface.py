from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import ArtifactError, Batch, ModelError
from overhaul.deploy import TensorInfo
from overhaul.deploy._interface import Interface, real_batch
from tests.deploy.networks import Features, network, normal, task_of
from tests.deploy.row_task import Rows


class Ragged(Rows):
    """Pads each batch to a length of its own."""

    def read(self, indices: Tensor) -> Batch:
        batch = super().read(indices)
        return batch.map_inputs(lambda x: x[:, : 2 + len(indices)])


class Listed(Rows):
    """Has an input that is not a tensor."""

    def read(self, indices: Tensor) -> Batch:
        batch = super().read(indices)
        return replace(batch, inputs=(*batch.inputs, ["a"] * len(indices)))


class Anything(nn.Module):
    def forward(self, *inputs: Any) -> Tensor:
        out: Tensor = inputs[0].sum(1, keepdim=True)
        return out


def test_names_types_and_what_changes_with_the_batch_are_found() -> None:
    found = Interface.of(network("keywords").eval(), task_of("keywords").prepare().val)
    assert [str(info) for info in (*found.inputs, *found.outputs)] == [
        "input_ids int64 [batch, 5]",
        "attention_mask int64 [batch, 5]",
        "output float32 [batch, 3]",
    ]
    assert (found.named_inputs, found.named_outputs) == (True, False)


def test_a_dimension_of_the_size_of_the_batch_stays_fixed() -> None:
    rows = Rows("val", (normal(20, 5, 3),), torch.zeros(20))
    found = Interface.of(Anything(), rows)
    assert found.inputs == (TensorInfo(name="input_0", dtype="float32", shape=("batch", 5, 3)),)


def test_samples_of_different_shape_are_refused() -> None:
    rows = Ragged("val", (normal(20, 9),), torch.zeros(20))
    with pytest.raises(ArtifactError, match=r"dimension 1 of input `input_0` is 7 .* 5 .* Pad or"):
        Interface.of(Anything(), rows)


def test_inputs_that_are_not_tensors_are_refused() -> None:
    rows = Listed("val", (normal(20, 9),), torch.zeros(20))
    with pytest.raises(ArtifactError, match="must be a tensor, and input `1` is list"):
        Interface.of(Anything(), rows)


def test_batches_go_round_at_the_end_of_a_small_split() -> None:
    rows = Rows("val", (torch.arange(3.0),), torch.zeros(3))
    assert real_batch(rows, 5, start=2).inputs[0].tolist() == [2, 0, 1, 2, 0]  # type: ignore[index]


def test_the_training_mode_of_normalization_counts_as_a_change_in_place() -> None:
    with pytest.raises(ArtifactError, match=r"changes `norm\.num_batches_tracked` in place"):
        Interface.of(network("images").train(), task_of("images").prepare().val)
    assert Interface.of(Features().eval(), task_of("features").prepare().val).outputs


def test_outputs_that_nobody_can_read_are_not_blamed_on_the_batch_size() -> None:
    model = Features(lambda m, x, y: y.tolist())
    with pytest.raises(ModelError, match="must return a tensor"):
        Interface.of(model.eval(), task_of("features").prepare().val)


class Centred(nn.Module):
    """Takes the mean of the call away."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Calls(nn.Module):
    """Answers otherwise each time, which is left to the comparison of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("model", [Centred(), nn.BatchNorm1d(9, track_running_stats=False)])
def test_a_model_that_mixes_the_samples_of_a_call_is_refused(model: nn.Module) -> None:
    rows = Rows("val", (normal(20, 9),), torch.zeros(20))
    with pytest.raises(ArtifactError, match="compute each sample by itself, and `output` of"):
        Interface.of(model.eval(), rows)


def test_a_model_that_answers_otherwise_each_time_is_no_case_of_mixing() -> None:
    assert Interface.of(Calls(), Rows("val", (normal(20, 9),), torch.zeros(20))).outputs
