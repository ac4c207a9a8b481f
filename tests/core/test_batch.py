"""Batches of every shape that users' data has, and outputs of every kind that models return."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Batch, ModelError, unwrap_outputs

LOGITS = torch.ones(2, 3)


@dataclass
class WithLogits:
    logits: Tensor
    loss: Tensor | None = None


Pair = namedtuple("Pair", ["out", "aux"])


@pytest.mark.parametrize(
    "outputs",
    [
        LOGITS,
        WithLogits(LOGITS),
        {"logits": LOGITS, "loss": torch.zeros(())},
        (LOGITS, torch.zeros(1)),
        [LOGITS],
        Pair(LOGITS, None),
        (WithLogits(LOGITS), 3),
    ],
    ids=["tensor", "object", "mapping", "tuple", "list", "named tuple", "tuple of object"],
)
def test_the_logits_are_found(outputs: Any) -> None:
    assert unwrap_outputs(outputs) is LOGITS


def test_tensors_by_task_name_stay_together() -> None:
    outputs = OrderedDict(age=LOGITS, sex=torch.zeros(2))
    unwrapped = unwrap_outputs(outputs)
    assert isinstance(unwrapped, dict)
    assert list(unwrapped) == ["age", "sex"]
    assert unwrapped["age"] is LOGITS


@pytest.mark.parametrize("outputs", [None, 3, "text", {}, (), {"a": 3}, {"a": LOGITS, "b": 3}])
def test_anything_else_is_refused(outputs: Any) -> None:
    with pytest.raises(ModelError, match=r"must return a tensor.* got \w+\. Wrap the model"):
        unwrap_outputs(outputs)


class Scale(nn.Module):
    def forward(self, x: Tensor, factor: float | Tensor = 1.0) -> Tensor:
        return x * factor


@pytest.mark.parametrize("inputs", [(torch.ones(2), 3.0), {"x": torch.ones(2), "factor": 3.0}])
def test_inputs_are_positional_or_named(inputs: Any) -> None:
    batch = Batch(inputs, torch.zeros(2), torch.arange(2))
    outputs = batch.forward(Scale())
    assert isinstance(outputs, Tensor)
    assert torch.equal(outputs, torch.full((2,), 3.0))
    assert len(batch) == 2


def named_batch() -> Batch:
    """Return a batch with tensors in every place."""
    inputs = {"a": torch.ones(2), "b": (torch.ones(1), "text")}
    return Batch(inputs, {"t": torch.ones(2)}, torch.arange(2))


def tensors_of(batch: Batch) -> dict[str, Any]:
    """Return what `named_batch` holds, by place."""
    assert isinstance(batch.inputs, dict)
    assert isinstance(batch.targets, dict)
    one, (two, text) = batch.inputs["a"], batch.inputs["b"]
    return {"a": one, "b": two, "text": text, "t": batch.targets["t"], "indices": batch.indices}


def test_a_function_reaches_every_tensor_and_leaves_the_batch_alone() -> None:
    batch = named_batch()
    doubled = tensors_of(batch.map_tensors(lambda tensor: tensor * 2))
    assert [float(doubled[name][0]) for name in ("a", "b", "t")] == [2, 2, 2]
    assert doubled["text"] == "text"
    assert torch.equal(doubled["indices"], torch.arange(2))
    doubled = tensors_of(batch.map_inputs(lambda tensor: tensor * 2))
    assert [float(doubled[name][0]) for name in ("a", "b", "t")] == [2, 2, 1]
    assert [float(tensors_of(batch)[name][0]) for name in ("a", "b", "t")] == [1, 1, 1]


def test_a_batch_moves_as_a_whole() -> None:
    moved = tensors_of(named_batch().to("meta"))
    assert [moved[name].device.type for name in ("a", "b", "t")] == ["meta"] * 3
