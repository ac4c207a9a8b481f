"""The plot of quality after each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from overhaul.report._cells import spoken
from overhaul.report._numbers import higher_is_better, is_fraction, number, quality
from overhaul.report._plot import INK, LABEL_WIDTH, MEASURED, WIDTH, Plot, to_svg
from overhaul.report._row import Row

_FIGURE_WIDTH = 56
_FAR = 0.25


@dataclass(frozen=True)
class _Point:
    subject: str
    value: float
    low: float
    high: float


def quality_plot(rows: Sequence[Row], metric: str | None) -> Plot | None:
    """Return quality on val of each row as dots, the original as a line; None without data."""
    points = _points(rows)
    if len(points) < 2 or metric is None:
        return None
    import altair as alt

    factor = 100.0 if is_fraction(metric) else 1.0
    low, high = _domain(points, metric)
    data = [
        {
            "subject": point.subject,
            "value": factor * point.value,
            "low": factor * point.low,
            "high": factor * point.high,
            "text": quality(point.value, metric),
            "shape": _shape(point, low, high),
        }
        for point in points
    ]
    label = f"{spoken(metric)} on val{', %' if factor > 1 else ''}"
    width = WIDTH - LABEL_WIDTH - _FIGURE_WIDTH - 16
    scale = alt.Scale(domain=[factor * low, factor * high], clamp=True, nice=True, zero=False)
    base = alt.Chart(alt.InlineData(values=data)).encode(
        y=alt.Y("subject:N", sort=None, title=None).axis(
            minExtent=LABEL_WIDTH,
            maxExtent=LABEL_WIDTH,
            labelLimit=LABEL_WIDTH - 24,
            labelPadding=9,
            ticks=False,
        )
    )
    layers = [
        base.mark_rule(color=MEASURED, strokeWidth=2).encode(
            x=alt.X("low:Q", title=label, scale=scale).axis(tickCount=3), x2="high:Q"
        ),
        base.mark_point(color=MEASURED, filled=True, size=70, opacity=1).encode(
            x="value:Q", shape=alt.Shape("shape:N", scale=None)
        ),
        base.mark_text(align="left", color=INK, fontSize=11).encode(
            x=alt.value(width + 8), text="text:N"
        ),
    ]
    original = next((point.value for point in points if point.subject == "original"), None)
    has_line = original is not None and low <= original <= high
    if has_line and original is not None:
        line = alt.Chart(alt.InlineData(values=[{"value": factor * original}]))
        layers.insert(0, line.mark_rule(color=INK, strokeDash=[4, 3]).encode(x="value:Q"))
    off_scale = [point.subject for point in points if not low <= point.value <= high]
    words = "; ".join(f"{point.subject} {quality(point.value, metric)}" for point in points)
    return Plot(
        title=f"{spoken(metric).capitalize()} on val after each step",
        caption=_caption(points, metric, off_scale, has_line=has_line),
        description=f"{label}: {words}.",
        svg=to_svg(alt.layer(*layers).properties(width=width, height=alt.Step(26))),
    )


def _points(rows: Sequence[Row]) -> list[_Point]:
    found = []
    for row in rows:
        value = number(row.val)
        if row.val is not None and value is not None:
            low, high = row.val.interval or (value, value)
            found.append(_Point(row.subject, value, low, high))
    return found


def _domain(points: Sequence[_Point], metric: str) -> tuple[float, float]:
    """Return the range to draw; a model at chance level must not squeeze the others together."""
    centre = median(point.value for point in points)
    near = [point for point in points if abs(point.value - centre) <= _FAR]
    if len(near) < 2 or not is_fraction(metric):
        near = list(points)
    low, high = min(point.low for point in near), max(point.high for point in near)
    margin = 0.05 * (high - low) or 0.01
    return low - margin, high + margin


def _shape(point: _Point, low: float, high: float) -> str:
    if point.value < low:
        return "triangle-left"
    return "triangle-right" if point.value > high else "circle"


def _caption(
    points: Sequence[_Point], metric: str, off_scale: Sequence[str], *, has_line: bool
) -> str:
    parts = [f"{'Higher' if higher_is_better(metric) else 'Lower'} is better."]
    if any(point.low < point.high for point in points):
        parts.append("The bars are 95 % intervals.")
    if has_line:
        parts.append("The dashed line is the original.")
    if off_scale:
        parts.append(f"Off the scale: {', '.join(off_scale)}.")
    return " ".join(parts)
