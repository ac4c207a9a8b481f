"""Why nominal and measured differ: each sentence holds the figures, and is left out when wrong."""

import pytest

from overhaul.core import Fact
from overhaul.report import Row
from overhaul.report._reasons import (
    bytes_per_parameter,
    derived_reasons,
    latency_against_macs,
    zeros_multiplied,
    zeros_stored_densely,
)
from tests.report.sample_run import latency


def _row(
    subject: str,
    parameters: int = 100_000,
    nonzero: int | None = None,
    macs: int = 1_000_000,
    size: int = 400_000,
    compressed: int = 370_000,
    latency_ms: Fact | None = None,
) -> Row:
    return Row(
        subject=subject,
        parameters=Fact(name="parameters", value=parameters),
        nonzero_parameters=Fact(
            name="nonzero_parameters", value=parameters if nonzero is None else nonzero
        ),
        macs=Fact(name="macs", value=macs),
        size_bytes=Fact(name="size_bytes", value=size, unit="B"),
        compressed_bytes=Fact(name="compressed_bytes", value=compressed, unit="B"),
        latency_ms=latency_ms,
    )


ORIGINAL = _row("original", latency_ms=latency("original", 2.0))


def test_zeros_that_are_stored_like_other_numbers() -> None:
    pruned = _row("final", nonzero=30_000, compressed=140_000)
    assert zeros_stored_densely(pruned, ORIGINAL) == (
        "70.0 k of 100 k parameters are zero (70%), but the file takes 400 kB (original 400 kB): "
        "a zero is stored like any other number. Deflated, the file takes 140 kB."
    )


@pytest.mark.parametrize(
    "row",
    [
        _row("few zeros", nonzero=95_000),
        _row("stored sparse", nonzero=30_000, size=150_000),
        _row("smaller and dense", parameters=30_000, size=120_000),
    ],
    ids=lambda row: str(row.subject),
)
def test_no_word_of_dense_zeros_where_there_are_none(row: Row) -> None:
    assert zeros_stored_densely(row, ORIGINAL) is None


def test_zeros_in_a_smaller_network_are_seen_too() -> None:
    row = _row("final", parameters=50_000, nonzero=10_000, size=200_000)
    found = zeros_stored_densely(row, ORIGINAL)
    assert found is not None
    assert found.startswith("40.0 k of 50.0 k parameters are zero (80%), but the file takes 200 kB")


def test_an_original_that_was_pruned_before_is_no_news() -> None:
    pruned = _row("original", nonzero=30_000)
    assert zeros_stored_densely(_row("final", nonzero=30_000), pruned) is None


def test_zeros_that_are_multiplied() -> None:
    assert zeros_multiplied(_row("final", nonzero=30_000), ORIGINAL) == (
        "70.0 k of 100 k parameters are zero (70%), but MACs stay at 1.00 M (1.00 x): a dense "
        "kernel multiplies by zero too."
    )
    assert zeros_multiplied(_row("final", nonzero=30_000, macs=500_000), ORIGINAL) is None


def test_a_file_that_shrinks_by_another_factor_than_the_parameters() -> None:
    assert bytes_per_parameter(_row("final", size=110_000), ORIGINAL) == (
        "Parameters are 1.00 x of the original, bytes 0.28 x (1.1 B for each parameter, original "
        "4 B): each number is stored in fewer bytes."
    )
    grown = bytes_per_parameter(_row("final", parameters=10_000, size=60_000), ORIGINAL)
    assert grown is not None
    assert "the file also holds what is no parameter" in grown
    assert bytes_per_parameter(_row("final", parameters=50_000, size=205_000), ORIGINAL) is None


def test_latency_that_does_not_follow_macs() -> None:
    row = _row("final", macs=500_000, latency_ms=latency("final", 1.5))
    found = latency_against_macs(row, ORIGINAL)
    assert found is not None
    assert found.startswith(
        "MACs are 0.50 x of the original, latency 0.75 x (95 % 0.72 to 0.78): time also depends"
    )


def test_latency_that_follows_macs_within_its_interval() -> None:
    row = _row("final", macs=500_000, latency_ms=latency("final", 1.01))
    assert latency_against_macs(row, ORIGINAL) is None


def test_another_engine_is_named_and_noise_too() -> None:
    fast = latency("artifact", 0.4, "onnxruntime", noisy=True)
    found = latency_against_macs(_row("artifact", latency_ms=fast), ORIGINAL)
    assert found is not None
    assert found.endswith(
        "it ran in onnxruntime, the original in torch. The machine was noisy while this was timed."
    )


def test_pytorch_is_slow_with_stored_integers_and_that_is_said() -> None:
    slow = latency("quantize", 6.0)
    found = latency_against_macs(_row("quantize", size=110_000, latency_ms=slow), ORIGINAL)
    assert found is not None
    assert "PyTorch makes real numbers of the stored integers or halves at each call" in found
    as_large = latency_against_macs(_row("quantize", latency_ms=slow), ORIGINAL)
    assert as_large is not None
    assert "integers" not in as_large


def test_other_settings_are_named_and_not_compared() -> None:
    row = _row("final", latency_ms=latency("final", 30.0, batch_size=64))
    assert latency_against_macs(row, ORIGINAL) == (
        "Latency is not compared with the original's: batch size 64 here, 1 there."
    )


def test_nothing_is_said_of_an_equal_model_or_of_nothing() -> None:
    assert derived_reasons(_row("final", latency_ms=latency("final", 2.0)), ORIGINAL) == ()
    assert derived_reasons(Row("final"), Row("original")) == ()
