"""`RiseTest`: has a mean risen by more than is tolerated, told from as few values as possible."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

# The most of the capital that one value may lose. All of it would end the test at one outlier.
_LARGEST_LOSS = 0.75

Verdict: TypeAlias = Literal["below", "above"]
"""On which side of the limit the mean is."""


class RiseTest:
    r"""Tell whether the mean of a finite set is above a limit, and stop as soon as it is clear.

    The :math:`N` values :math:`x_i`, clipped to :math:`[-c, c]`, come in random order, without
    replacement. If their mean is :math:`\tau`, the next value has the mean
    :math:`m_i = (N\tau - \sum_{j<i} x_j) / (N - i + 1)`. A bet against "the mean is at least
    :math:`\tau`" and one against "it is at most :math:`\tau`" each start with the capital 1,

    .. math:: K^-_i = K^-_{i-1}\,\bigl(1 + \lambda^-_i (m_i - x_i)\bigr), \qquad
              K^+_i = K^+_{i-1}\,\bigl(1 + \lambda^+_i (x_i - m_i)\bigr)

    If what a bet is against is true, its capital is a nonnegative supermartingale, so it reaches
    :math:`1/\delta` at any time with a probability of at most :math:`\delta` (Ville). With
    :math:`\hat\mu, \hat\sigma^2` of the values before, :math:`\lambda_i = |m_i - \hat\mu| /
    (\hat\sigma^2 + (m_i - \hat\mu)^2)` towards the side of :math:`\hat\mu`, as far as the capital
    keeps a quarter of itself whatever comes. When all values have come, their plain mean decides.

    Args:
        limit: :math:`\tau`.
        clip: :math:`c`; positive.
        size: :math:`N`.
        confidence: :math:`1 - \delta`, of each of the two verdicts.

    Example:
        >>> test = RiseTest(limit=0.1, clip=1.0, size=1000, confidence=0.95)
        >>> test.update(torch.full((20,), 0.9))
        'above'

    Paper: Waudby-Smith and Ramdas, JRSS B 2024, sections 4 and 5 (bets, without replacement).
    Differs: before the first value the guess of the mean is 0.
    """

    def __init__(self, *, limit: float, clip: float, size: int, confidence: float) -> None:
        """Start with the capital 1 on both sides."""
        self.limit, self.clip, self.size = limit, clip, size
        self.enough = -math.log1p(-confidence)
        self.seen = 0
        self.verdict: Verdict | None = None
        self._plain_sum = 0.0
        self._sum = self._square_sum = self._log_below = self._log_above = 0.0

    def update(self, values: Tensor) -> Verdict | None:
        """Take the next values, `[B]`, and return the side of the mean, or None if it is open.

        A verdict stays, unless the last value shows that it was wrong.
        """
        values = values.double()
        if not bool(values.isfinite().all()):
            self.verdict = "above"
            return self.verdict
        x = values.clamp(-self.clip, self.clip)
        seen = self.seen + torch.arange(len(x), dtype=torch.float64)
        # What is known before each value: a bet may not know the value that it is on.
        sums = self._sum + x.cumsum(0) - x
        square_sums = self._square_sum + x.square().cumsum(0) - x.square()
        expected = (self.size * self.limit - sums) / (self.size - seen)
        mean = sums / (seen + 1)
        variance = (square_sums / (seen + 1) - mean.square()).clamp_min(0)
        below = self._log_capital(expected - x, expected - mean, variance, self.clip - expected)
        above = self._log_capital(x - expected, mean - expected, variance, self.clip + expected)
        log_below, log_above = self._log_below + below, self._log_above + above
        self.seen += len(x)
        self._plain_sum += float(values.sum())
        self._sum += float(x.sum())
        self._square_sum += float(x.square().sum())
        self._log_below, self._log_above = float(log_below[-1]), float(log_above[-1])
        if self.seen == self.size:
            self.verdict = "above" if self._plain_sum > self.size * self.limit else "below"
        elif self.verdict is None and float(log_above.max()) >= self.enough:
            self.verdict = "above"
        elif self.verdict is None and float(log_below.max()) >= self.enough:
            self.verdict = "below"
        return self.verdict

    def _log_capital(self, won: Tensor, gap: Tensor, variance: Tensor, worst: Tensor) -> Tensor:
        """Return the logarithm of what the capital is multiplied by, after each value."""
        tiny = 1e-12 * self.clip
        gap = gap.clamp_min(0)
        bet = gap / (variance + gap.square()).clamp_min(tiny**2)
        return (bet.minimum(_LARGEST_LOSS / worst.clamp_min(tiny)) * won).log1p().cumsum(0)
