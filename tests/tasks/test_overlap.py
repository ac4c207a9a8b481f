import pytest
import torch

from overhaul.core import DataError
from overhaul.tasks import ArraySamples
from overhaul.tasks._overlap import check_overlap
from overhaul.tasks._scan import Scan, scan


def scans(shared: int, *, size: int = 20) -> list[Scan]:
    train = torch.arange(100.0).reshape(50, 2)
    val = torch.arange(1000.0, 1000.0 + 2 * size).reshape(size, 2)
    val[size - shared :] = train[7 : 7 + shared]
    return [
        scan("train", ArraySamples((train,), torch.arange(50) % 2)),
        scan("val", ArraySamples((val,), torch.arange(size) % 2)),
    ]


def test_nothing_shared_is_recorded() -> None:
    (fact,) = check_overlap(scans(0), 0.0)
    assert (fact.name, fact.value, fact.split, fact.n) == ("overlap", 0, "val", 20)
    assert fact.detail["with"] == "train"


def test_shared_samples_are_refused_with_both_positions() -> None:
    with pytest.raises(
        DataError,
        match=r"`val` and `train` must not share samples: 1 of 20 .*: val\[19\] = train\[7\]\. "
        r".*allow_overlap=0\.05 ",
    ):
        check_overlap(scans(1), 0.0)


def test_only_the_first_are_shown() -> None:
    with pytest.raises(DataError, match=r"5 of 20 .*val\[17\] = train\[9\] and so on"):
        check_overlap(scans(5), 0.0)


def test_what_the_error_proposes_is_enough() -> None:
    (fact,) = check_overlap(scans(1), 0.05)
    assert fact.value == 1


def test_the_same_data_is_never_allowed() -> None:
    with pytest.raises(DataError, match="They are the same data: leave `val` out"):
        check_overlap(scans(20), 0.99)


def test_targets_take_no_part() -> None:
    left = scan("train", ArraySamples((torch.arange(6.0),), torch.zeros(6)))
    right = scan("test", ArraySamples((torch.arange(3.0, 9.0),), torch.ones(6)))
    with pytest.raises(DataError, match=r"3 of 6 .*train\[3\] = test\[0\]|test\[0\] = train\[3\]"):
        check_overlap([left, right], 0.0)
