"""`CrossLayerEqualization`: channels of two layers get ranges that are alike."""

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from overhaul.quantization._rescaling import Channels, Rescaling


class CrossLayerEqualization(Rescaling):
    r"""Make the ranges of a channel alike in the layer that makes it and in those that read it.

    .. math:: s = \sqrt{r_1 / r_2}, \qquad W_1 \leftarrow \operatorname{diag}(s)^{-1} W_1,
              \quad b_1 \leftarrow b_1 / s, \quad W_2 \leftarrow W_2 \operatorname{diag}(s)

    with :math:`r_1, r_2` the largest magnitudes of each channel in either weight. It holds through
    ReLU and its kin, pooling and reshaping, for linear layers and convolutions, depthwise ones too.
    It is meant for weights with one scale for all (`granularity="tensor"`). A pair whose error on
    training samples would grow is left; errors and reasons are facts.

    Args:
        rows: Rows of inputs drawn from each batch. Default 256.

    Example:
        >>> CrossLayerEqualization()
        CrossLayerEqualization()

    Paper: Nagel et al., ICCV 2019, section 4.1.  Differs: a pair is taken only where its error
    gets less, three rounds at most; biases are not absorbed and ReLU6 is not replaced by ReLU.
    """

    after_norms: ClassVar[bool] = False
    rounds: ClassVar[int] = 3

    def candidates(self, channels: Channels) -> Iterator[Tensor]:
        """Yield the s that makes both ranges equal, and a milder one."""
        s = (channels.made_by / channels.weights).sqrt()
        yield s
        yield s.sqrt()
