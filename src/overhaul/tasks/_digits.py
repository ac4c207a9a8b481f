"""`Digits`: scikit-learn's handwritten digits, which need no download."""

from collections.abc import Mapping
from typing import Any

import torch

from overhaul.core import SplitName
from overhaul.tasks._data_source import DataSource


class Digits(DataSource):
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; they come with the package.

    There is one set; `val` and `test` are split off it.

    Shapes: `[N, 1, 8, 8]` of float32 in [0, 1]; 10 classes.

    Example:
        >>> Digits()
        Digits()
        >>> images, labels = Digits().load()["train"]
        >>> images.shape, images.dtype, float(images.max())
        (torch.Size([1797, 1, 8, 8]), torch.float32, 1.0)

    Paper: Alpaydin and Kaynak, UCI Machine Learning Repository, 1998 (the test part of it).
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """The digits."""
        return tuple("0123456789")

    def load(self) -> Mapping[SplitName, Any]:
        """Return the one set, as `train`."""
        from sklearn.datasets import load_digits

        data = load_digits()
        images_NCHW = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 16
        return {"train": (images_NCHW, torch.as_tensor(data.target, dtype=torch.long))}
