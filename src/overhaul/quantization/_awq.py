"""`Awq`: weights that meet large activations are rounded more finely."""

from collections.abc import Iterator

from pydantic import Field
from torch import Tensor

from overhaul.quantization._rescaling import Channels, Rescaling


class Awq(Rescaling):
    r"""Scale up the weights of the channels that matter, by how large their values are.

    .. math:: s_j = \operatorname{rms}(x_j)^{\alpha}, \qquad
              \alpha^* = \arg\min_\alpha \lVert W x - Q(W \operatorname{diag}(s))
              \operatorname{diag}(s)^{-1} x \rVert^2

    over a grid of :math:`\alpha` from 0 to 1. The norm or layer before is divided by s; all layers
    that read it get one s. Errors, and reasons why layers are left, are facts.

    Args:
        grid: How many values of :math:`\alpha` are tried. Default 20.
        rows: Rows of inputs drawn from each batch. Default 256.

    Example:
        >>> Awq(grid=10)
        Awq(grid=10)

    Paper: Lin et al., MLSys 2024.  Differs: the root of the mean square instead of the mean
    magnitude; the error is summed over all layers concerned, the one that takes the scale included;
    clipping is what `search` of `Quantize` does.
    """

    grid: int = Field(default=20, ge=1, description="How many values are tried.")

    def candidates(self, channels: Channels) -> Iterator[Tensor]:
        """Yield s for each alpha but 0, which leaves all as it is."""
        size = channels.root_mean_square
        for step in range(1, self.grid + 1):
            s = size ** (step / self.grid)
            some = s[s > 0]
            if len(some):
                yield s / (some.max() * some.min()).sqrt()
