"""`Plot`: a picture and the same in words; how pictures become inline SVG."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import altair as alt

INK, FAINT, NOMINAL, MEASURED = "#1b1f24", "#d7dbe0", "#8f6400", "#0b66b0"
SERIES = ("#0b66b0", "#b34700", "#007a5a", "#8c4799", "#8f6400", "#5b6570")
"""Colours that hold apart for any kind of colour blindness (after Okabe and Ito), darkened to a
contrast of 4.5 on white."""
ON_DARK = {
    INK: "#e6e9ed",
    FAINT: "#3a424c",
    "#0b66b0": "#5ab0f2",
    "#b34700": "#f08a4b",
    "#007a5a": "#3fc79a",
    "#8c4799": "#cf95dc",
    "#8f6400": "#e0b040",
    "#5b6570": "#a3adb8",
}
"""What the page's style sheet turns each colour into on a dark ground."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3])

WIDTH = 340
"""Pixels, so that a plot fits a phone without being scaled down."""
LABEL_WIDTH = 116
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        title: What it shows.
        caption: How to read it.
        description: The same in words and figures, for who cannot see it.
        svg: The picture.
    """

    title: str
    caption: str
    description: str
    svg: str


def to_svg(chart: "alt.TopLevelMixin") -> str:
    """Return an Altair chart as SVG in the look of the report."""
    styled = (
        chart.configure(font=_FONT, background="transparent", padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK,
            titleColor=INK,
            labelFontSize=11,
            titleFontSize=11,
            titleFontWeight="normal",
            gridColor=FAINT,
            domainColor=FAINT,
            tickColor=FAINT,
            labelFlush=False,
        )
        .configure_legend(
            labelColor=INK,
            labelFontSize=11,
            labelLimit=WIDTH - 60,
            orient="bottom",
            direction="vertical",
            columns=1,
            symbolType="stroke",
            symbolSize=400,
            title=None,
        )
    )
    buffer = io.StringIO()
    styled.save(buffer, format="svg")
    return buffer.getvalue()
