"""The plot of cost relative to the original."""

from collections.abc import Sequence

from overhaul.report._numbers import ratio
from overhaul.report._plot import INK, LABEL_WIDTH, MEASURED, NOMINAL, WIDTH, Plot, to_svg
from overhaul.report._ratios import cost_ratio
from overhaul.report._row import Row
from overhaul.report._rows import TITLES

_NOMINAL, _MEASURED = "nominal", "measured"
_KINDS = {
    "macs": _NOMINAL,
    "size_bytes": _MEASURED,
    "compressed_bytes": _MEASURED,
    "latency_ms": _MEASURED,
}
_MOST_SUBJECTS = 8


def cost_plot(rows: Sequence[Row], original: Row | None) -> Plot | None:
    """Return cost as ratio bars, nominal and measured apart; None without data.

    Of a long recipe it shows the last subjects, the final model and the artifact among them.
    """
    shown = [row for row in rows if row.subject not in ("original", "control")]
    ratios = [
        (key, row.subject, value)
        for key in _KINDS
        for row in shown[-_MOST_SUBJECTS:]
        if original is not None
        and (value := cost_ratio(getattr(row, key), getattr(original, key))) is not None
    ]
    if not ratios:
        return None
    import altair as alt

    limit = max(1.0, *(value for _, _, value in ratios))
    charts = []
    for key in dict.fromkeys(key for key, _, _ in ratios):
        bars = [
            {"subject": subject, "ratio": value, "text": ratio(value)}
            for other, subject, value in ratios
            if other == key
        ]
        base = alt.Chart(alt.InlineData(values=bars)).encode(
            x=alt.X("ratio:Q", title=None, axis=None).scale(domain=[0, limit * 1.25], nice=False),
            y=alt.Y("subject:N", sort=None, title=None).axis(
                minExtent=LABEL_WIDTH,
                maxExtent=LABEL_WIDTH,
                labelLimit=LABEL_WIDTH - 24,
                ticks=False,
                domain=False,
                labelPadding=5,
            ),
        )
        colour = NOMINAL if _KINDS[key] == _NOMINAL else MEASURED
        one = alt.Chart(alt.InlineData(values=[{"one": 1}]))
        chart = alt.layer(
            base.mark_bar(color=colour, height=11),
            base.mark_text(align="left", dx=4, color=INK, fontSize=11).encode(text="text:N"),
            one.mark_rule(color=INK, strokeDash=[4, 3]).encode(x="one:Q"),
        ).properties(
            width=WIDTH - LABEL_WIDTH - 24,
            height=alt.Step(18),
            title=alt.TitleParams(
                f"{TITLES[key]} ({_KINDS[key]})",
                anchor="start",
                fontSize=12,
                fontWeight="bold",
                color=INK,
                offset=2,
            ),
        )
        charts.append(chart)
    words = "; ".join(f"{subject} {TITLES[key]} {ratio(value)}" for key, subject, value in ratios)
    return Plot(
        title="Cost relative to the original",
        caption="Shorter is cheaper. The dashed line is the original.",
        description=f"Cost relative to the original: {words}.",
        svg=to_svg(alt.vconcat(*charts, spacing=12)),
    )
