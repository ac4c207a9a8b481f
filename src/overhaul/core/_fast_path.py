"""`without_fast_path`: transformer layers run by their parts, so that these can be watched."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Have `nn.TransformerEncoder` and its layers call their parts, as they do in training.

    In evaluation they go by a kernel of their own, and with a padding mask hand on nested tensors,
    which have no shape.

    Example:
        >>> with without_fast_path():
        ...     torch.backends.mha.get_fastpath_enabled()
        False
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
