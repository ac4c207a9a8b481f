"""`Calibration`: from the values of an activation to the range that its integers cover."""

from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from overhaul.core import Spec

Range: TypeAlias = tuple[float, float]
Symmetric: TypeAlias = bool | Literal["auto"]
_BINS = 2048
_LEVELS = 255
_CANDIDATES = 100
_EVEN = 0.75
_NOTHING = 1e-30
"""A narrower range has no scale that is a number of single precision."""


class Calibration(Spec, ABC):
    """How the range of an activation is chosen from what was seen of it.

    A new way is a subclass in a file of its own: it sees each batch and says a range in the end.
    """

    def histogram_wanted(self) -> bool:
        """Return whether `search` reads the histogram, and not the extremes alone."""
        return True

    def range_of(self, seen: "Seen") -> Range:
        """Return the lowest and the highest value that integers are to tell apart."""
        return self.search(seen) if seen.high > seen.low else (seen.low, seen.high)

    @abstractmethod
    def search(self, seen: "Seen") -> Range:
        """Return the range, where not all values are the same."""


class Seen:
    """What was seen of one activation.

    Attributes:
        lows: The smallest value of each batch.
        highs: The largest.
        counts: `[2048]`, how many values fell between the overall extremes, `float64`.
        low: The smallest of all; the lower edge of the first bin.
        high: The largest; the upper edge of the last bin.
    """

    def __init__(self, *, histogram: bool) -> None:
        """Begin with nothing seen."""
        self.lows: list[float] = []
        self.highs: list[float] = []
        self.low, self.high = 0.0, 0.0
        self.counts = torch.zeros(_BINS, dtype=torch.float64) if histogram else None

    def see_(self, x: Tensor) -> None:
        """Add the values of one batch."""
        values = x.detach().flatten().float()
        if not values.numel():
            return
        low, high = (float(each) for each in values.aminmax())
        self.lows.append(low)
        self.highs.append(high)
        if self.counts is None:
            self.low, self.high = min(self.lows), max(self.highs)
            return
        self._widen_(min(low, self.low), max(high, self.high))
        if self.high > self.low:
            self.counts += torch.histc(values, _BINS, self.low, self.high).double()

    def centers(self) -> Tensor:
        """Return the value in the middle of each bin, `[2048]`, `float64`."""
        width = (self.high - self.low) / _BINS
        return self.low + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)

    def _widen_(self, low: float, high: float) -> None:
        """Make the bins reach from `low` to `high`; what was counted goes to the nearest bin."""
        assert self.counts is not None
        if (low, high) == (self.low, self.high):
            return
        if self.high > self.low and float(self.counts.sum()):
            old, counts = self.centers(), self.counts
            places = ((old - low) / (high - low) * _BINS).long().clamp(0, _BINS - 1)
            self.counts = torch.zeros_like(counts).index_add_(0, places, counts)
        self.low, self.high = low, high


class MinMax(Calibration):
    """The range from the smallest to the largest value of all: nothing is cut off.

    A single outlier makes all other values coarse.

    Example:
        >>> MinMax()
        MinMax()
    """

    def histogram_wanted(self) -> bool:
        """Return that extremes are enough."""
        return False

    def search(self, seen: Seen) -> Range:
        """Return the extremes."""
        return seen.low, seen.high


class MovingAverage(Calibration):
    r"""A moving average of the extremes of each batch.

    .. math:: h \leftarrow (1 - a) h + a \max x

    Args:
        rate: How much the last batch counts, in (0, 1]. Default 0.1.

    Example:
        >>> MovingAverage(rate=0.05)
        MovingAverage(rate=0.05)

    Paper: Jacob et al., CVPR 2018, section 3.1.
    """

    rate: float = Field(default=0.1, gt=0, le=1, description="How much the last batch counts.")

    def histogram_wanted(self) -> bool:
        """Return that extremes are enough."""
        return False

    def search(self, seen: Seen) -> Range:
        """Return the averages."""
        return self._average(seen.lows), self._average(seen.highs)

    def _average(self, values: list[float]) -> float:
        average = values[0]
        for value in values[1:]:
            average += self.rate * (value - average)
        return average


class Percentile(Calibration):
    """The range that holds a part of the values; as many are cut off on either side.

    Args:
        part: In (0.5, 1]. Default 0.9999.

    Example:
        >>> Percentile(part=0.999)
        Percentile(part=0.999)

    Paper: Wu et al., arXiv 2004.09602, section 3.3.
    """

    part: float = Field(
        default=0.9999, gt=0.5, le=1, description="It is the part of the values in the range."
    )

    def search(self, seen: Seen) -> Range:
        """Return the edges of the range."""
        assert seen.counts is not None
        rising = seen.counts.cumsum(0) / seen.counts.sum()
        edges = torch.linspace(seen.low, seen.high, _BINS + 1, dtype=torch.float64)
        tail = (1 - self.part) / 2
        first = int((rising > tail).nonzero()[0])
        last = int((rising >= 1 - tail - 1e-12).nonzero()[0])
        return float(edges[first]), float(edges[last + 1])


class SquaredError(Calibration):
    r"""The range with the least squared error of all values, those that are cut off included.

    .. math:: \min_{l, h} \sum_x (x - \hat x_{l,h})^2

    over ranges that are shrunken by the same part on both sides of zero.

    Example:
        >>> SquaredError()
        SquaredError()

    Paper: Sung et al., arXiv 1511.06488; Banner et al., NeurIPS 2019 (clipping).  Differs: the
    range is searched for on the histogram, and no distribution is assumed.
    """

    def search(self, seen: Seen) -> Range:
        """Return the best of a hundred ranges."""
        assert seen.counts is not None
        x, counts = seen.centers(), seen.counts
        parts = torch.linspace(1, _CANDIDATES, _CANDIDATES, dtype=torch.float64) / _CANDIDATES
        low, high = min(seen.low, 0.0) * parts[:, None], max(seen.high, 0.0) * parts[:, None]
        step = (high - low) / _LEVELS
        inside = x.clamp(low, high)
        # Within a bin values are anywhere, so rounding them costs its mean, a twelfth of a step.
        error = ((x - inside).square() * counts).sum(1) + step[:, 0].square() / 12 * counts.sum()
        best = float(parts[int(error.argmin())])
        return min(seen.low, 0.0) * best, max(seen.high, 0.0) * best


class Entropy(Calibration):
    r"""The range that keeps the distribution of the values most alike.

    .. math:: \min_h \mathrm{KL}(P_h \,\|\, Q_h)

    where :math:`P_h` are the values cut off at :math:`h`, those beyond it counted at the edge, and
    :math:`Q_h` the same in as many bins as there are integers. Values near zero, of which a ReLU
    makes many, are counted like their neighbours: they are exact at any scale.

    Example:
        >>> Entropy()
        Entropy()

    Paper: Migacz, 8-bit Inference with TensorRT, GTC 2017.  Differs: both sides of zero are
    shrunken by the same part.
    """

    def search(self, seen: Seen) -> Range:
        """Return the best of the ranges from a sixteenth of the extremes on."""
        assert seen.counts is not None
        x, counts = seen.centers(), seen.counts.clone()
        zero = int(x.abs().argmin())
        beside = counts[[max(zero - 1, 0), min(zero + 1, _BINS - 1)]]
        counts[zero] = torch.minimum(counts[zero], beside.max())
        best, least = 1.0, float("inf")
        for part in torch.linspace(1, 1 / 16, _CANDIDATES, dtype=torch.float64).tolist():
            low, high = min(seen.low, 0.0) * part, max(seen.high, 0.0) * part
            inside = ((x >= low) & (x <= high)).nonzero()[:, 0]
            if len(inside) < _LEVELS or high <= low:
                continue
            first, last = int(inside[0]), int(inside[-1]) + 1
            kept = counts[first:last]
            p = kept.clone()
            p[0] += counts[:first].sum()
            p[-1] += counts[last:].sum()
            levels = (torch.arange(last - first) * _LEVELS // (last - first)).long()
            used = (kept > 0).double()
            sums, members = (
                torch.zeros(_LEVELS, dtype=torch.float64).index_add_(0, levels, each)
                for each in (kept, used)
            )
            q = (sums / members.clamp(min=1))[levels] * used
            q = torch.where((q == 0) & (p > 0), 1e-9 * float(p.sum()), q)
            p, q = p / p.sum(), q / q.sum()
            some = p > 0
            divergence = float((p[some] * (p[some] / q[some]).log()).sum())
            if divergence < least:
                best, least = part, divergence
        return min(seen.low, 0.0) * best, max(seen.high, 0.0) * best


def scale_and_zero(found: Range, *, symmetric: Symmetric) -> tuple[float, int]:
    r"""Return scale and zero point of a `uint8` for a range; zero itself is always exact.

    .. math:: s = (h - l) / 255, \qquad z = \mathrm{round}(-l / s)

    Args:
        found: The range; it is widened to hold zero.
        symmetric: Whether a range with negative values is made as wide below zero as above it;
            `auto`: where its narrower side is at least three quarters of the other, so that the
            scale grows by a seventh at most.

    Example:
        >>> scale_and_zero((0.0, 510.0), symmetric=True)
        (2.0, 0)
        >>> scale_and_zero((-1.0, 0.8), symmetric="auto")[1]
        128
        >>> scale_and_zero((-1.0, 0.2), symmetric="auto")[1]
        213
    """
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    if high - low < _NOTHING:
        return 1.0, 0
    even = min(-low, high) >= _EVEN * max(-low, high) if symmetric == "auto" else symmetric
    if even and low < 0:
        return max(-low / 128, high / 127), 128
    scale = (high - low) / _LEVELS
    return scale, round(-low / scale)
