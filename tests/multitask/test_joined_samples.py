import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from overhaul.core import DataError
from overhaul.multitask import JoinedSamples
from overhaul.tasks import Samples, as_samples


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Samples whose input and target tell which sample it is."""

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index >= self.size:
            raise IndexError(index)
        return torch.full((2,), float(self.first + index)), torch.tensor(self.first + index)


def joined(*sizes: int) -> JoinedSamples:
    firsts = [sum(sizes[:number]) for number in range(len(sizes))]
    names = "abcd"[: len(sizes)]
    parts = {
        name: as_samples(Rows(first, size), "train")
        for name, first, size in zip(names, firsts, sizes, strict=True)
    }
    return JoinedSamples(parts, dict.fromkeys(names, -1), "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_every_sample_is_where_it_should_be(workers: int) -> None:
    samples = joined(5, 3, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    chunks = list(torch.split(order, 5))
    for index_B, (inputs, targets) in zip(chunks, samples.batches(chunks, workers), strict=True):
        assert isinstance(targets, dict)
        assert inputs[0][:, 0].long().tolist() == index_B.tolist()
        merged = torch.stack(list(targets.values())).max(0).values
        assert merged.tolist() == index_B.tolist()
        assert int((torch.stack(list(targets.values())) == -1).sum()) == 2 * len(index_B)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    wanted=st.lists(st.integers(0, 99), min_size=1, max_size=9),
)
def test_any_positions_in_any_order(sizes: list[int], wanted: list[int]) -> None:
    samples = joined(*sizes)
    index_B = torch.tensor(wanted) % len(samples)
    inputs, targets = next(samples.batches([index_B]))
    assert isinstance(targets, dict)
    assert inputs[0][:, 0].long().tolist() == index_B.tolist()
    for name, rows in samples.ranges.items():
        own = (index_B >= rows.start) & (index_B < rows.stop)
        assert torch.equal(targets[name] >= 0, own)


def test_known_targets_are_those_that_are_read() -> None:
    parts: dict[str, Samples] = {
        "a": as_samples((torch.zeros(3, 2), torch.tensor([4, 5, 6])), "train"),
        "b": as_samples((torch.ones(2, 2), torch.tensor([[7, 8], [9, 0]])), "train"),
    }
    samples = JoinedSamples(parts, {"a": -1, "b": torch.nan}, "train")
    known = samples.known_targets()
    _, read = next(samples.batches([torch.arange(5)]))
    assert known is not None
    assert isinstance(read, dict)
    assert known["a"].tolist() == read["a"].tolist() == [4, 5, 6, -1, -1]
    assert torch.equal(known["b"].nan_to_num(-1), read["b"].nan_to_num(-1))
    assert known["b"].dtype == torch.float32
    assert joined(2, 2).known_targets() is None


def test_notes_say_where_the_samples_of_a_task_begin() -> None:
    notes = {note.name: (note.value, note.detail["first"]) for note in joined(5, 3).notes}
    assert notes == {"a_samples": (5, 0), "b_samples": (3, 5)}


def test_named_inputs_are_joined() -> None:
    parts = {
        name: as_samples({"ids": torch.full((2, 3), value), "labels": torch.zeros(2)}, "val")
        for name, value in (("a", 1), ("b", 2))
    }
    inputs, _ = next(
        JoinedSamples(parts, {"a": -1, "b": -1}, "val").batches([torch.tensor([3, 0])])
    )
    assert isinstance(inputs, dict)
    assert inputs["ids"][:, 0].tolist() == [2, 1]


def test_inputs_of_another_type_are_refused() -> None:
    parts = {
        "a": as_samples((torch.zeros(2, 3), torch.zeros(2)), "train"),
        "b": as_samples((torch.zeros(2, 3, dtype=torch.long), torch.zeros(2)), "train"),
    }
    with pytest.raises(DataError, match=r"'a' has input 0 \[3\] float32, and 'b' .* \[3\] int64"):
        JoinedSamples(parts, {"a": -1, "b": -1}, "train")


def test_empty_data_and_named_targets_of_a_task_are_refused() -> None:
    good = as_samples((torch.zeros(2, 3), torch.zeros(2)), "train")
    empty = as_samples((torch.zeros(0, 3), torch.zeros(0)), "train")
    with pytest.raises(DataError, match=r"`train` of task 'b' is empty"):
        JoinedSamples({"a": good, "b": empty}, {"a": -1, "b": -1}, "train")
    named = as_samples((torch.zeros(2, 3), {"x": torch.zeros(2)}), "train")
    with pytest.raises(DataError, match=r"task 'b' has several targets by name \(x\)"):
        JoinedSamples({"a": good, "b": named}, {"a": -1, "b": -1}, "train")


def test_samples_that_do_not_fit_into_one_batch_are_refused() -> None:
    class Growing(Rows):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return torch.zeros(2 + index), torch.tensor(index)

    parts = {
        "a": as_samples(Rows(0, 3), "train"),
        "b": as_samples(Growing(0, 3), "train"),
    }
    samples = JoinedSamples(parts, {"a": -1, "b": -1}, "train")
    with pytest.raises(DataError, match=r"samples of two tasks of `train` do not fit into one"):
        next(samples.batches([torch.tensor([0, 4])]))
