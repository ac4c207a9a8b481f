"""Which samples make which batch, and which process computes which part of it."""

import torch
from torch import Tensor


def epoch_batches(size: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Return the positions of each batch of one epoch in random order.

    A last batch of a single sample joins the one before it: BatchNorm cannot train on one sample.

    Example:
        >>> [len(b) for b in epoch_batches(9, 4, torch.Generator())]
        [4, 5]
    """
    batches = list(torch.split(torch.randperm(size, generator=generator), batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def parts_of(
    batches: list[Tensor], accumulate: int, rank: int, processes: int
) -> tuple[list[Tensor], list[float]]:
    r"""Cut each batch into the parts that one process computes one after the other.

    The gradient of a batch is the mean over its samples. With :math:`n_i` of :math:`n` samples in
    part :math:`i` and an average over :math:`P` processes, the loss of a part is weighted by
    :math:`P\,n_i / n`; so the step is the same however the batch is cut.

    Args:
        batches: Positions of each batch.
        accumulate: Parts of a batch that one process computes in turn.
        rank: Which process.
        processes: How many there are.

    Returns:
        The positions of each part, `accumulate` for each batch, and the weight of each. A batch
        with fewer samples than parts has empty parts: one sample with the weight 0.

    Example:
        >>> parts_of([torch.arange(6)], accumulate=1, rank=1, processes=2)
        ([tensor([3, 4, 5])], [1.0])
    """
    parts: list[Tensor] = []
    weights: list[float] = []
    for batch in batches:
        cut = torch.tensor_split(batch, accumulate * processes)
        for index in range(accumulate):
            part = cut[index * processes + rank]
            weights.append(processes * len(part) / len(batch))
            parts.append(part if len(part) else batch[:1])
    return parts, weights
