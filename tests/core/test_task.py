"""One forward pass shows whether a model fits its data."""

import pytest
import torch
from torch import nn

from overhaul.core import Batch, check_model_fits, part_of
from overhaul.testing import tiny_cnn, tiny_task


def batch(**changes: tuple[int, ...]) -> Batch:
    """Return a batch of images, of another shape on request."""
    images = torch.zeros(changes.get("images", (2, 1, 8, 8)))
    return Batch((images,), torch.zeros(2, dtype=torch.long), torch.arange(2))


def test_a_model_that_fits_has_no_problem_and_keeps_its_flags() -> None:
    model = tiny_cnn()
    model.bn.eval()
    assert check_model_fits(tiny_task(), model, batch()) is None
    assert (model.training, model.bn.training) == (True, False)


@pytest.mark.parametrize("images", [(2, 3, 8, 8), (2, 1, 9, 99), (2, 64)])
def test_a_model_that_fails_is_shown_with_the_shapes(images: tuple[int, ...]) -> None:
    problem = check_model_fits(tiny_task(), tiny_cnn(), batch(images=images))
    assert problem is not None
    assert f"the model fails on inputs of {list(images)} float32: " in problem


def test_outputs_of_another_shape_are_the_tasks_to_judge() -> None:
    problem = check_model_fits(tiny_task(), nn.Identity(), batch())
    assert problem == tiny_task().problem_with(torch.zeros(2, 1, 8, 8), batch())
    assert problem is not None


def test_the_part_of_a_single_task_is_the_whole() -> None:
    whole, parts = torch.zeros(1), {"age": torch.ones(1)}
    assert part_of(whole, "anything") is whole
    assert part_of(parts, "age") is parts["age"]


def test_each_sample_is_a_row_unless_a_task_says_otherwise() -> None:
    outputs, targets = torch.arange(6.0).reshape(3, 2), torch.tensor([0, -1, 1])
    assert tiny_task().rows(outputs, targets) is outputs
    assert float(tiny_task().mean_over_rows(outputs[:, 0], targets)) == 2.0


class Raising(nn.Module):
    """Fails as a user's own check does."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize("error", [AssertionError("48 rows"), KeyError("48 rows")])
def test_whatever_a_forward_pass_raises_is_shown(error: Exception) -> None:
    problem = check_model_fits(tiny_task(), Raising(error), batch())
    assert problem is not None
    assert f"float32: {type(error).__name__}: " in problem
    assert "48 rows" in problem
    assert problem.endswith("or a model that takes this shape")


def test_numbers_of_another_type_are_named() -> None:
    problem = check_model_fits(tiny_task(), tiny_cnn().double(), batch())
    assert problem is not None
    assert "The model has numbers of float64 and the data of float32" in problem


class Complex(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.fft.fft(x.flatten(1))[:, :3]
        return out


def test_complex_outputs_do_not_fit() -> None:
    problem = check_model_fits(tiny_task(), Complex(), batch())
    assert problem is not None
    assert "the model gives complex numbers" in problem


def test_what_is_returned_is_no_matter_of_shapes() -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> None:
            return None

    problem = check_model_fits(tiny_task(), Nothing(), batch())
    assert problem is not None
    assert problem.endswith("Wrap the model in a module that returns its logits")
