"""The plot of training, epoch by epoch."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from overhaul.core import Fact
from overhaul.report._cells import spoken
from overhaul.report._numbers import figure, is_fraction, number
from overhaul.report._plot import DASHES, SERIES, WIDTH, Plot, to_svg

if TYPE_CHECKING:
    import altair as alt

_AXIS_WIDTH = 62
_MOST_DOTS = 50
_Curve: TypeAlias = list[tuple[str, int, float]]


def training_plot(facts: Sequence[Fact], metric: str | None) -> Plot | None:
    """Return the curves of the training loss and of the metric on val; None without data.

    Of many steps that train it shows the last six.
    """
    names = ["train_loss", *([f"val_{metric}"] if metric is not None else [])]
    curves = {name: curve for name in names if (curve := _curve(facts, name))}
    subjects = list(dict.fromkeys(point[0] for curve in curves.values() for point in curve))
    subjects = subjects[-len(SERIES) :]
    if not subjects:
        return None
    import altair as alt

    charts = [_chart(name, curve, subjects) for name, curve in curves.items()]
    words = [f"{_label(name)}: {_ends(curve, name)}" for name, curve in curves.items()]
    return Plot(
        title="Training, epoch by epoch",
        caption="One line for each step that trains.",
        description=f"From the first to the last epoch. {'. '.join(words)}.",
        svg=to_svg(alt.vconcat(*charts, spacing=14)),
    )


def _curve(facts: Sequence[Fact], name: str) -> _Curve:
    return [
        (fact.subject, epoch, value)
        for fact in facts
        if fact.name == name
        and isinstance(epoch := fact.detail.get("epoch"), int)
        and (value := number(fact)) is not None
    ]


def _chart(name: str, curve: _Curve, subjects: Sequence[str]) -> "alt.LayerChart":
    import altair as alt

    factor = 100.0 if is_fraction(name) else 1.0
    points = [
        {"subject": subject, "epoch": epoch, "value": factor * value}
        for subject, epoch, value in curve
        if subject in subjects
    ]
    lengths = Counter(point["subject"] for point in points)
    short = [point for point in points if lengths[point["subject"]] <= _MOST_DOTS]
    x = alt.X("epoch:Q", title="epoch").axis(tickMinStep=1, format="d", grid=False, tickCount=6)
    y = (
        alt.Y("value:Q", title=_label(name) + (", %" if factor > 1 else ""))
        .scale(zero=False)
        .axis(tickCount=5, minExtent=36, maxExtent=36)
    )
    colours, dashes = list(SERIES[: len(subjects)]), list(DASHES[: len(subjects)])
    colour = alt.Color("subject:N").scale(domain=list(subjects), range=colours)
    dash = alt.StrokeDash("subject:N").scale(domain=list(subjects), range=dashes)
    lines = alt.Chart(alt.InlineData(values=points)).mark_line(strokeWidth=2)
    dots = alt.Chart(alt.InlineData(values=short)).mark_circle(size=26, opacity=1)
    layers = (
        lines.encode(x=x, y=y, color=colour, strokeDash=dash),
        dots.encode(x=x, y=y, color=colour),
    )
    return alt.LayerChart(layer=layers, width=WIDTH - _AXIS_WIDTH - 14, height=120)


def _label(name: str) -> str:
    if name == "train_loss":
        return "loss on train"
    return f"{spoken(name.removeprefix('val_'))} on val"


def _ends(curve: _Curve, name: str) -> str:
    words = []
    for subject in dict.fromkeys(subject for subject, _, _ in curve):
        values = [value for other, _, value in curve if other == subject]
        words.append(f"{subject} {figure(values[0], name)} to {figure(values[-1], name)}")
    return "; ".join(words)
