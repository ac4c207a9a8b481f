"""The plots: what they show, and that they are left out without data."""

import re
from collections.abc import Sequence

import pytest

from overhaul.core import Fact
from overhaul.report import Row, read_rows
from overhaul.report._cost_plot import cost_plot
from overhaul.report._plot import ON_DARK, SERIES, WIDTH, Plot
from overhaul.report._quality_plot import quality_plot
from overhaul.report._training_plot import training_plot
from tests.report.sample_run import latency, sample_facts


def _draw(facts: Sequence[Fact]) -> list[Plot]:
    rows = read_rows(facts)
    original = next((row for row in rows if row.subject == "original"), None)
    drawn = (
        quality_plot(rows, "accuracy"),
        cost_plot(rows, original),
        training_plot(facts, "accuracy"),
    )
    return [plot for plot in drawn if plot is not None]


@pytest.fixture(scope="module")
def plots() -> list[Plot]:
    return _draw(sample_facts())


def test_three_plots_that_fit_a_phone(plots: list[Plot]) -> None:
    widths = [re.search(r'<svg[^>]* width="([\d.]+)"', plot.svg) for plot in plots]
    assert len(plots) == 3
    assert all(width is not None and float(width[1]) <= WIDTH + 8 for width in widths)


def test_every_colour_has_one_for_a_dark_ground(plots: list[Plot]) -> None:
    used = {colour for plot in plots for colour in re.findall(r'"(#[0-9a-f]{3,6})"', plot.svg)}
    assert used <= set(ON_DARK)
    assert set(SERIES[:3]) <= used


def test_colours_can_be_told_from_the_ground() -> None:
    text = [colour for colour in ON_DARK if colour != "#d7dbe0"]
    assert min(_contrast(colour, "#ffffff") for colour in text) >= 4.5
    assert min(_contrast(ON_DARK[colour], "#14171b") for colour in text) >= 4.5


def test_the_contrast_of_black_on_white_is_21() -> None:
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    assert _contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_a_model_at_chance_does_not_squeeze_the_others(plots: list[Plot]) -> None:
    assert "Off the scale: 2 swap_model." in plots[0].caption
    assert "10.28 %" in plots[0].svg
    assert "2 swap_model 10.28 %" in plots[0].description


def test_values_that_are_far_apart_without_a_majority_are_all_on_the_scale() -> None:
    rows = [_quality("original", 0.1), _quality("final", 0.9)]
    plot = quality_plot(rows, "accuracy")
    assert plot is not None
    assert "Off the scale" not in plot.caption


def test_an_error_is_better_when_it_is_lower() -> None:
    rows = [_quality("original", 3.0, "mae"), _quality("final", 2.5, "mae")]
    plot = quality_plot(rows, "mae")
    assert plot is not None
    assert plot.caption.startswith("Lower is better.")


def test_equal_values_are_drawn() -> None:
    plot = quality_plot([_quality("original", 0.5), _quality("final", 0.5)], "accuracy")
    assert plot is not None
    assert "NaN" not in plot.svg


def test_costs_are_ratios_and_say_which_is_measured(plots: list[Plot]) -> None:
    assert "final MACs 0.33 x" in plots[1].description
    assert "artifact latency 0.14 x" in plots[1].description
    assert all(word in plots[1].svg for word in ("MACs (nominal)", "bytes (measured)"))


def test_a_latency_that_cannot_be_compared_has_no_bar() -> None:
    rows = [
        Row("original", latency_ms=latency("original", 1.0)),
        Row("final", latency_ms=latency("final", 1.0, batch_size=8)),
    ]
    assert cost_plot(rows, rows[0]) is None


def test_of_a_long_recipe_the_last_costs_are_shown() -> None:
    rows = [Row(f"{index} x", macs=Fact(name="macs", value=index + 1)) for index in range(12)]
    plot = cost_plot(rows, Row("original", macs=Fact(name="macs", value=4)))
    assert plot is not None
    assert "4 x MACs 1.25 x" in plot.description
    assert "3 x MACs 1.00 x" not in plot.description


def test_curves_start_and_end_where_training_did(plots: list[Plot]) -> None:
    assert "1 train 0.35 to 0.1144" in plots[2].description


def test_the_curves_have_one_legend(plots: list[Plot]) -> None:
    labels = re.findall(r"<text[^>]*>([^<]*train)</text>", plots[2].svg)
    assert [label for label in labels if label != "loss on train"] == [
        "1 train",
        "3 train",
        "control/0 train",
    ]


def test_one_epoch_is_a_point() -> None:
    fact = Fact(name="train_loss", value=0.5, subject="0 train", detail={"epoch": 0})
    plot = training_plot([fact], "accuracy")
    assert plot is not None
    assert "NaN" not in plot.svg


def test_no_data_no_plot() -> None:
    assert _draw([]) == []
    assert _draw([Fact(name="macs", value=5, subject="original")]) == []


def test_names_are_escaped_in_pictures() -> None:
    subject = "0 <script>alert(1)</script>"
    facts = [
        Fact(name="accuracy", value=0.5, subject="original", split="val"),
        Fact(name="accuracy", value=0.6, subject=subject, split="val"),
        Fact(name="macs", value=5, subject="original"),
        Fact(name="macs", value=5, subject=subject),
        Fact(name="train_loss", value=0.5, subject=subject, detail={"epoch": 0}),
    ]
    drawn = _draw(facts)
    assert len(drawn) == 3
    assert not any("<script" in plot.svg for plot in drawn)


def _quality(subject: str, value: float, metric: str = "accuracy") -> Row:
    return Row(subject, val=Fact(name=metric, value=value, subject=subject, split="val"))


def _contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
