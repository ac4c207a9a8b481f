import torch

from overhaul.core import Batch
from overhaul.training import Flip, Shift


def batch_of(images: torch.Tensor) -> Batch:
    return Batch((images,), torch.zeros(len(images)), torch.arange(len(images)))


def test_flip_mirrors_some_and_only_some() -> None:
    images = torch.arange(400.0).view(100, 1, 2, 2)
    (flipped,) = Flip().apply(batch_of(images), torch.Generator().manual_seed(0)).inputs
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 30 < int(same.sum()) < 70


def test_flip_never_and_always() -> None:
    images = torch.rand(5, 3, 4, 4)
    never = Flip(probability=0.0).apply(batch_of(images), torch.Generator())
    always = Flip(probability=1.0).apply(batch_of(images), torch.Generator())
    assert torch.equal(never.inputs[0], images)
    assert torch.equal(always.inputs[0], images.flip(-1))


def test_shift_moves_by_at_most_its_pixels() -> None:
    images = torch.zeros(200, 2, 9, 9)
    images[:, :, 4, 4] = 1.0
    (moved,) = Shift(pixels=2).apply(batch_of(images), torch.Generator().manual_seed(0)).inputs
    assert moved.shape == images.shape
    places = moved[:, 0].flatten(1).argmax(1)
    rows, columns = places // 9, places % 9
    assert int(rows.min()) == 2 and int(rows.max()) == 6
    assert int(columns.min()) == 2 and int(columns.max()) == 6
    assert torch.equal(moved[:, 0], moved[:, 1])


def test_other_inputs_stay_as_they_are() -> None:
    rows = torch.rand(4, 7)
    assert torch.equal(Flip().apply(batch_of(rows), torch.Generator()).inputs[0], rows)
    assert torch.equal(Shift().apply(batch_of(rows), torch.Generator()).inputs[0], rows)


def test_the_same_generator_draws_the_same() -> None:
    images = torch.rand(8, 1, 6, 6)
    one = Shift().apply(batch_of(images), torch.Generator().manual_seed(3))
    two = Shift().apply(batch_of(images), torch.Generator().manual_seed(3))
    other = Shift().apply(batch_of(images), torch.Generator().manual_seed(4))
    assert torch.equal(one.inputs[0], two.inputs[0])
    assert not torch.equal(one.inputs[0], other.inputs[0])
