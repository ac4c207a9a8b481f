from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from overhaul.core import DataError
from overhaul.tasks import ArraySamples, LazySamples, Samples, as_samples

X = torch.arange(24.0).reshape(6, 4)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Pairs(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], int(Y[index])


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(X[i], int(Y[i])) for i in range(6)])


class LoaderLike:
    dataset = Pairs()


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = [torch.tensor(row["ids"]) for row in rows]
    return {
        "ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


RAGGED = [{"ids": list(range(1, n + 2)), "label": n % 2} for n in range(6)]


def first_input(samples: Samples, positions: list[int]) -> Tensor:
    inputs, _ = next(samples.batches([torch.tensor(positions)]))
    return inputs["x"] if isinstance(inputs, dict) else inputs[0]


def all_targets(samples: Samples) -> Any:
    return next(samples.batches([torch.arange(len(samples))]))[1]


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ((X, Y), ArraySamples),
        ((X.double().numpy(), Y.int().numpy()), ArraySamples),
        ((X.tolist(), Y.tolist()), ArraySamples),
        ({"x": X, "labels": Y}, ArraySamples),
        (TensorDataset(X, Y), ArraySamples),
        (DataLoader(TensorDataset(X, Y), shuffle=True), ArraySamples),
        (Subset(TensorDataset(X, Y), range(6)), ArraySamples),
        (Subset(Pairs(), range(6)), LazySamples),
        (Pairs(), LazySamples),
        (DataLoader(Pairs(), batch_size=4), LazySamples),
        (LoaderLike(), LazySamples),
        ([(X[i], int(Y[i])) for i in range(6)], LazySamples),
        ([{"x": X[i].tolist(), "labels": int(Y[i])} for i in range(6)], LazySamples),
        (datasets.Dataset.from_dict({"x": X.tolist(), "labels": Y.tolist()}), LazySamples),
        (Stream(), ArraySamples),
        (DataLoader(Stream(), batch_size=4), ArraySamples),
        (DataLoader(TensorDataset(X[None], Y[None]), batch_size=None), ArraySamples),
        (((x, y) for x, y in ((X[:4], Y[:4]), (X[4:], Y[4:]))), ArraySamples),
        (({"x": x, "labels": y} for x, y in ((X[:4], Y[:4]), (X[4:], Y[4:]))), ArraySamples),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_form_reads_the_same_samples(raw: Any, kind: type[Samples]) -> None:
    samples = as_samples(raw, "train")
    assert type(samples) is kind
    assert len(samples) == 6
    x, y = first_input(samples, [4, 0]), all_targets(samples)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, X[[4, 0]])
    assert torch.equal(y, Y)


def test_several_inputs_and_the_target_last() -> None:
    inputs, targets = next(as_samples((X, X + 1, Y), "train").batches([torch.tensor([1])]))
    assert isinstance(inputs, tuple)
    assert torch.equal(inputs[1], X[[1]] + 1)
    assert torch.equal(torch.as_tensor(targets), Y[[1]])


@pytest.mark.parametrize(
    "raw",
    [
        (({"x": X}, Y)),
        ([({"x": X[i]}, int(Y[i])) for i in range(6)]),
    ],
    ids=["arrays", "samples"],
)
def test_named_inputs_beside_the_target(raw: Any) -> None:
    inputs, _ = next(as_samples(raw, "train").batches([torch.tensor([3, 2])]))
    assert isinstance(inputs, dict)
    assert torch.equal(inputs["x"], X[[3, 2]])


def test_a_tuple_of_inputs_inside_a_sample() -> None:
    raw = [((X[i], X[i] + 1), int(Y[i])) for i in range(6)]
    inputs, _ = next(as_samples(raw, "train").batches([torch.tensor([3, 2])]))
    assert isinstance(inputs, tuple)
    assert torch.equal(inputs[1], X[[3, 2]] + 1)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ((X, {"digit": Y, "parity": Y % 2}), "labels"),
        ([(X[i], {"digit": int(Y[i]), "parity": int(Y[i]) % 2}) for i in range(6)], "labels"),
        ({"x": X, "digit": Y, "parity": Y % 2}, ("digit", "parity")),
        ({"x": X, "labels": {"digit": Y, "parity": Y % 2}}, "labels"),
        (iter([(X, {"digit": Y, "parity": Y % 2})]), "labels"),
        (
            datasets.Dataset.from_dict(
                {"x": X.tolist(), "digit": Y.tolist(), "parity": (Y % 2).tolist()}
            ),
            ("digit", "parity"),
        ),
    ],
    ids=["arrays", "samples", "keys", "nested", "batches", "table"],
)
def test_named_targets(raw: Any, key: str | tuple[str, ...]) -> None:
    targets = all_targets(as_samples(raw, "train", key))
    assert isinstance(targets, dict)
    assert torch.equal(targets["digit"], Y)
    assert torch.equal(targets["parity"], Y % 2)


def test_collate_function_of_a_loader_is_used() -> None:
    loader: DataLoader[Any] = DataLoader(RAGGED, collate_fn=padded)  # type: ignore[arg-type]
    samples = as_samples(loader, "train")
    inputs, targets = next(samples.batches([torch.tensor([0, 2])]))
    assert isinstance(inputs, dict)
    assert inputs["ids"].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert torch.as_tensor(targets).tolist() == [0, 0]


def test_a_users_own_format_of_a_table_stays() -> None:
    table = datasets.Dataset.from_dict({"x": X.tolist(), "labels": Y.tolist()})
    doubled = table.with_transform(
        lambda batch: {"x": 2 * torch.tensor(batch["x"]), "labels": batch["labels"]}
    )
    assert torch.equal(first_input(as_samples(doubled, "train"), [1]), 2 * X[[1]])


def test_workers_read_the_same() -> None:
    samples = as_samples(Pairs(), "train")
    index_batches = [torch.tensor([5, 1]), torch.tensor([0, 2, 3])]
    alone = list(samples.batches(index_batches))
    ahead = list(samples.batches(index_batches, workers=1))
    for (x, y), (x_ahead, y_ahead) in zip(alone, ahead, strict=True):
        assert torch.equal(x[0], x_ahead[0])  # type: ignore[index]
        assert torch.equal(torch.as_tensor(y), torch.as_tensor(y_ahead))


def test_a_sampler_that_is_not_used_is_noted() -> None:
    loader = DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * 6, 6))
    assert [note.value for note in as_samples(loader, "train").notes] == ["WeightedRandomSampler"]
    assert as_samples(DataLoader(Pairs(), shuffle=True), "train").notes == ()


def test_batches_are_copies() -> None:
    x = X.clone()
    inputs, _ = next(as_samples((x, Y), "train").batches([torch.arange(6)]))
    inputs[0].zero_()  # type: ignore[index]
    assert torch.equal(x, X)


def test_read_only_and_reversed_arrays_are_read() -> None:
    x = X.numpy()[::-1]
    x.flags.writeable = False
    assert torch.equal(first_input(as_samples((x, Y.numpy()), "train"), [0]), X[[5]])


class Broken(Pairs):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 3:
            raise OSError("no such image")
        return super().__getitem__(index)


class Pictures(Pairs):
    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return Image.new("RGB", (2, 2)), 0


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ((X, Y[:5]), r"same number of samples: input 0 has 6, target has 5"),
        ((X, torch.tensor(1)), "target of `train` is a single number"),
        (X, r"`train` is Tensor without targets\. Give \(x, y\)"),
        (X.numpy(), r"`train` is ndarray without targets"),
        ("digits", r"Built-in data is given as data='digits'"),
        (3, r"`train` is int, which cannot be read"),
        ((X,), r"must give inputs with targets, as \(x, y\).*got tuple"),
        ((X, np.array(["cat"] * 6)), r"target of `train` is a NumPy array of type <U3"),
        ((X, ["cat"] * 6), r"target of `train` is not numbers of one shape: list \['cat'"),
        (([[1.0], [1.0, 2.0]], [0, 1]), r"input 0 of `train` is not numbers of one shape"),
        ({"x": X, "label": Y}, r"no key 'labels'.*Did you mean 'label'.*`target_key`"),
        ({"labels": Y}, r"has targets and no inputs"),
        (iter([]), r"gave no batches\. An iterator can be read only once"),
        (iter([(X, Y), (X[:, :2], Y)]), r"the batches of `train` do not fit together"),
        (iter([(X, Y), {"x": X, "labels": Y}]), r"the batches of `train` do not fit together"),
        (datasets.DatasetDict(train=datasets.Dataset.from_dict({})), r"train=data\['\.\.\.'\]"),
    ],
)
def test_what_cannot_be_read_is_refused(raw: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_samples(raw, "train")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (Broken(), r"sample 3 of `train` could not be read: OSError: no such image"),
        (Pictures(), r"hold PIL images.*ToTensor"),
        (RAGGED, r"samples 0 to 5 of `train` do not fit into one batch.*collate_fn"),
        (
            datasets.Dataset.from_dict({"text": ["a"] * 6, "labels": [0] * 6}),
            r"input 'text' of `train` is not numbers",
        ),
    ],
    ids=["broken", "pictures", "ragged", "text"],
)
def test_samples_that_cannot_be_read_are_named(raw: Any, message: str) -> None:
    samples = as_samples(raw, "train")
    with pytest.raises(DataError, match=message):
        next(samples.batches([torch.arange(6)]))


@pytest.mark.parametrize(
    "raw",
    [X, X.numpy(), (X,), {"x": X}, list(X), TensorDataset(X), iter([X[:4], X[4:]])],
    ids=["tensor", "array", "tuple", "dict", "list", "data set", "batches"],
)
def test_inputs_may_stand_alone_where_there_are_no_targets(raw: Any) -> None:
    samples = as_samples(raw, "train", None)
    assert torch.equal(first_input(samples, [4, 1]), X[[4, 1]])
    assert all_targets(samples).shape == (6, 0)


def test_no_inputs_at_all_are_refused() -> None:
    with pytest.raises(DataError, match=r"`train` has no inputs"):
        as_samples({}, "train", None)
