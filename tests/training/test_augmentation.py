import torch
from torch import Tensor

from overhaul.core import Batch
from overhaul.training import Augmentation, Flip, Shift


def augmented(augmentation: Augmentation, images: Tensor, seed: int = 0) -> Tensor:
    batch = Batch((images,), torch.zeros(len(images)), torch.arange(len(images)))
    result = augmentation.apply(batch, torch.Generator().manual_seed(seed)).inputs
    assert isinstance(result, tuple)
    only: Tensor = result[0]
    return only


def test_flip_mirrors_some_and_only_some() -> None:
    images = torch.arange(400.0).view(100, 1, 2, 2)
    flipped = augmented(Flip(), images)
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 30 < int(same.sum()) < 70


def test_flip_never_and_always() -> None:
    images = torch.rand(5, 3, 4, 4)
    never = augmented(Flip(probability=0.0), images)
    always = augmented(Flip(probability=1.0), images)
    assert torch.equal(never, images)
    assert torch.equal(always, images.flip(-1))


def test_shift_moves_by_at_most_its_pixels() -> None:
    images = torch.zeros(200, 2, 9, 9)
    images[:, :, 4, 4] = 1.0
    moved = augmented(Shift(pixels=2), images)
    assert moved.shape == images.shape
    places = moved[:, 0].flatten(1).argmax(1)
    rows, columns = places // 9, places % 9
    assert (int(rows.min()), int(rows.max())) == (2, 6)
    assert (int(columns.min()), int(columns.max())) == (2, 6)
    assert torch.equal(moved[:, 0], moved[:, 1])


def test_other_inputs_stay_as_they_are() -> None:
    rows = torch.rand(4, 7)
    assert torch.equal(augmented(Flip(), rows), rows)
    assert torch.equal(augmented(Shift(), rows), rows)


def test_the_same_generator_draws_the_same() -> None:
    images = torch.rand(8, 1, 6, 6)
    one = augmented(Shift(), images, seed=3)
    two = augmented(Shift(), images, seed=3)
    other = augmented(Shift(), images, seed=4)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
