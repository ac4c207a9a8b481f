import torch
from hypothesis import given
from hypothesis import strategies as st

from overhaul.training._batching import epoch_batches, parts_of


@given(size=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 9))
def test_an_epoch_has_every_sample_once(size: int, batch_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = epoch_batches(size, batch_size, generator)
    assert sorted(torch.cat(batches).tolist()) == list(range(size))
    if batch_size > 1 and size > 1:
        assert all(len(batch) > 1 for batch in batches)


@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    accumulate=st.integers(1, 4),
    processes=st.integers(1, 4),
)
def test_parts_give_the_mean_over_the_batch(
    size: int, batch_size: int, accumulate: int, processes: int
) -> None:
    batches = epoch_batches(size, batch_size, torch.Generator().manual_seed(0))
    values = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    by_rank = [parts_of(batches, accumulate, rank, processes) for rank in range(processes)]
    for number, batch in enumerate(batches):
        mean = sum(
            weights[k] * values[parts[k]].mean() / processes
            for parts, weights in by_rank
            for k in range(number * accumulate, (number + 1) * accumulate)
        )
        torch.testing.assert_close(torch.as_tensor(mean), values[batch].mean())
    assert all(len(part) > 0 for parts, _ in by_rank for part in parts)
