"""Numbers for people: units, signs, intervals, ratios."""

import math

from overhaul.core import Fact

_PREFIXES = ("", "k", "M", "G", "T", "P")
_FRACTIONS = ("accuracy", "f1", "auroc", "precision", "recall", "jaccard", "iou", "dice")
_LOWER_IS_BETTER = ("loss", "mae", "mse", "rmse", "error", "perplexity")


def number(fact: Fact | None) -> float | None:
    """Return the value of a fact if it is a finite number."""
    if fact is None or isinstance(fact.value, bool | str) or fact.value is None:
        return None
    return float(fact.value) if math.isfinite(fact.value) else None


def is_fraction(metric: str) -> bool:
    """Tell whether a metric lies in [0, 1] and is read in per cent: accuracy and its like.

    Example:
        >>> is_fraction("digit.balanced_accuracy"), is_fraction("mae")
        (True, False)
    """
    name = metric.lower()
    return any(word in name for word in _FRACTIONS) and higher_is_better(name)


def higher_is_better(metric: str) -> bool:
    """Tell the direction of a metric from its name.

    Example:
        >>> higher_is_better("accuracy"), higher_is_better("val_loss")
        (True, False)
    """
    return not any(metric.lower().endswith(word) for word in _LOWER_IS_BETTER)


def count(value: float) -> str:
    """Write a count with three digits and a prefix.

    Example:
        >>> count(950), count(61_706), count(40_812_544)
        ('950', '61.7 k', '40.8 M')
    """
    scaled, prefix = float(value), 0
    while abs(scaled) >= 999.5 and prefix < len(_PREFIXES) - 1:
        scaled, prefix = scaled / 1000, prefix + 1
    if prefix == 0:
        return plain(scaled)
    return f"{_three_digits(scaled)} {_PREFIXES[prefix]}"


def size(value: float) -> str:
    """Write a number of bytes; 1 kB is 1000 B.

    Example:
        >>> size(512), size(4_500), size(272_474_112)
        ('512 B', '4.50 kB', '272 MB')
    """
    text = count(value)
    return f"{text}B" if " " in text else f"{text} B"


def duration(milliseconds: float) -> str:
    """Write a time given in milliseconds.

    Example:
        >>> duration(0.8312), duration(12), duration(2500)
        ('0.831 ms', '12.0 ms', '2.50 s')
    """
    if abs(milliseconds) >= 999.5:
        return f"{_three_digits(milliseconds / 1000)} s"
    return f"{_three_digits(milliseconds)} ms"


def quality(value: float, metric: str) -> str:
    """Write the value of a metric, in per cent where it is a fraction.

    Example:
        >>> quality(0.9722, "accuracy"), quality(3.14159, "mae")
        ('97.22 %', '3.142')
    """
    return f"{100 * value:.2f} %" if is_fraction(metric) else plain(value)


def change(value: float, metric: str) -> str:
    """Write the difference of two values of a metric, with its sign.

    Example:
        >>> change(-0.0028, "accuracy"), change(0.5, "mae"), change(0.0, "accuracy")
        ('-0.28 points', '+0.5', '0.00 points')
    """
    if is_fraction(metric):
        return f"{_signed(round(100 * value, 2), '.2f')} points"
    return _signed(float(f"{value:.4g}"), ".4g")


def change_interval(interval: tuple[float, float], metric: str) -> str:
    """Write the interval of a difference.

    Example:
        >>> change_interval((-0.011, 0.004), "accuracy")
        '-1.10 to +0.40'
    """
    low, high = (change(bound, metric).removesuffix(" points") for bound in interval)
    return f"{low} to {high}"


def ratio(value: float) -> str:
    """Write a ratio to the original.

    Example:
        >>> ratio(0.4812), ratio(0.0123), ratio(14.2)
        ('0.48 x', '0.012 x', '14 x')
    """
    if value >= 9.95:
        return f"{value:,.0f} x"
    return f"{value:.2f} x" if value >= 0.0995 or value == 0 else f"{value:.2g} x"


def p_value(value: float) -> str:
    """Write a p-value.

    Example:
        >>> p_value(0.2384), p_value(1e-9)
        ('0.238', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: float) -> str:
    """Write a number without a unit: whole numbers as they are, others with four digits.

    Example:
        >>> plain(1797.0), plain(0.123456)
        ('1,797', '0.1235')
    """
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def figure(value: float, name: str, unit: str = "") -> str:
    """Write the value of any fact, the way its unit and name ask for.

    Example:
        >>> figure(4500, "size_bytes", "B"), figure(0.97, "accuracy"), figure(61706, "parameters")
        ('4.50 kB', '97.00 %', '61.7 k')
    """
    if unit == "B":
        return size(value)
    if unit == "ms":
        return duration(value)
    if name in ("parameters", "nonzero_parameters", "macs"):
        return count(value)
    if name in ("difference", "max_drop"):
        return plain(value)
    text = quality(value, name)
    return f"{text} {unit}" if unit else text


def interval(fact: Fact) -> str:
    """Write the 95 % interval of a fact, or nothing if it has none.

    Example:
        >>> interval(Fact(name="accuracy", value=0.97, interval=(0.95, 0.984)))
        '95.00 to 98.40 %'
    """
    if fact.interval is None:
        return ""
    low, high = (figure(bound, fact.name, fact.unit) for bound in fact.interval)
    shared = high.rpartition(" ")[2]
    return f"{low.removesuffix(' ' + shared)} to {high}"


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _signed(value: float, form: str) -> str:
    return f"{value:+{form}}" if value else f"{0.0:{form}}"
