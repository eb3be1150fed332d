"""Charts: every value at its place, axes with round numbers, and looks that differ without colour."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from bllpipe.tools.analysis.html_page import dash, element, escape, legend, marker
from bllpipe.tools.analysis.svg_charts import (
    Curve,
    Point,
    bar_chart,
    curve_chart,
    dot_chart,
    is_drawable,
    nice_ticks,
    percent,
    plain,
    rounded_axis,
    snug_axis,
)


def exact(x: float, value: float) -> Point:
    return Point(x, value, value, value)


def drawn(svg: str, look: str) -> list[ElementTree.Element]:
    """The elements of a chart that have the class ``look``; parsing fails unless all tags are closed."""
    return [node for node in ElementTree.fromstring(svg).iter() if look in node.get("class", "").split()]


def places(path: ElementTree.Element) -> list[tuple[float, float]]:
    """The corners of a path."""
    pairs = re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d", ""))
    return [(float(x), float(y)) for x, y in pairs]


def words(svg: str) -> dict[str, tuple[float, float]]:
    """Every text of a chart and where it stands."""
    texts = [node for node in ElementTree.fromstring(svg).iter() if node.tag == "text"]
    return {node.text or "": (float(node.get("x", "nan")), float(node.get("y", "nan"))) for node in texts}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.31, 0.97, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3.0, 7.0, [-4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0]),
        (0.0, 132.0, [0.0, 50.0, 100.0, 150.0]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 1.0, -5.0, 1e-30, 1e90, 0.1 + 0.2])
def test_a_single_value_has_an_axis_too(value: float) -> None:
    axis = rounded_axis("loss", [value])
    assert axis.low < axis.high
    assert axis.low <= value <= axis.high


def test_ticks_are_written_with_the_digits_they_need() -> None:
    assert [plain(value, 0.05) for value in (0.9, 0.95, 0.0, -0.05)] == ["0.90", "0.95", "0", "\N{MINUS SIGN}0.05"]
    assert plain(1500, 500) == "1,500"
    assert [percent(value, 0.005) for value in (0.965, 1.0)] == ["96.5 %", "100.0 %"]


def test_an_axis_along_the_page_ends_with_the_values() -> None:
    axis = snug_axis("steps", [0.0, 132.0])
    assert (axis.low, axis.high) == (0.0, 132.0)
    assert max(axis.ticks) <= 132.0
    assert axis.place(66.0, 100.0, 300.0) == 200.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, None, "1", True])
def test_what_has_no_place_on_an_axis(value: object) -> None:
    assert not is_drawable(value)


def test_a_curve_goes_through_its_means_at_the_places_of_the_axes() -> None:
    svg = curve_chart("Loss", [Curve("bll", [exact(0, 0.0), exact(5, 1.0), exact(10, 0.5)])], "steps", "nats")
    (line,) = drawn(svg, "line")
    (left, bottom), (middle, top), (right, half) = places(line)
    at = words(svg)
    assert (left, middle, right) == pytest.approx((at["0"][0], (at["0"][0] + at["10"][0]) / 2, at["10"][0]), abs=0.06)
    assert top == pytest.approx(at["1.0"][1] - 4, abs=0.06)
    assert half == pytest.approx((bottom + top) / 2, abs=0.06)
    assert bottom > top, "up the page is more"
    assert {"steps", "nats"} <= at.keys()


def test_a_band_reaches_from_the_smallest_to_the_largest() -> None:
    curve = Curve("bll", [Point(0, 1.0, 0.0, 2.0, n=3), Point(1, 1.5, 1.0, 2.0, n=3)])
    svg = curve_chart("Loss", [curve], "steps", "nats")
    (band,), (line,) = drawn(svg, "band"), drawn(svg, "line")
    high_0, high_1, low_1, low_0 = (y for _, y in places(band))
    mean_0, mean_1 = (y for _, y in places(line))
    assert high_0 == high_1 < low_1 < low_0
    assert mean_0 == pytest.approx((high_0 + low_0) / 2, abs=0.06)
    assert mean_1 == pytest.approx((high_1 + low_1) / 2, abs=0.06)


def test_one_run_has_no_band() -> None:
    assert drawn(curve_chart("Loss", [Curve("bll", [exact(0, 1.0), exact(1, 2.0)])], "steps", "nats"), "band") == []


def test_a_curve_without_points_leaves_the_looks_of_the_others_alone() -> None:
    svg = curve_chart("Loss", [Curve("bll", []), Curve("bp", [exact(0, 1.0)])], "steps", "nats")
    (line,) = drawn(svg, "line")
    assert line.get("class") == "line c1"
    assert "bp" in legend({1: "bp"})
    assert "c1" in legend({1: "bp"})


def test_many_points_get_few_markers_and_the_last_one_always() -> None:
    svg = curve_chart("Loss", [Curve("bll", [exact(x, x % 7) for x in range(1001)])], "steps", "nats")
    marks = drawn(svg, "mark")
    assert 10 < len(marks) <= 20
    assert max(float(mark.get("cx", "nan")) for mark in marks) == places(drawn(svg, "line")[0])[-1][0]


def test_dots_stand_over_their_places() -> None:
    curve = Curve("bll", [Point(0, 0.5, 0.25, 1.0, n=2), exact(1, 0.5)])
    svg = dot_chart("Blocks", ["block 0", "block 1"], [curve], "block", "accuracy (%)", share=True)
    at, dots = words(svg), drawn(svg, "mark")
    assert [float(dot.get("cx", "nan")) for dot in dots] == [at["block 0"][0], at["block 1"][0]]
    assert dots[0].get("cy") == dots[1].get("cy")
    (bar,) = drawn(svg, "line")
    (_, low), (_, high) = places(bar)
    assert low - float(dots[0].get("cy", "nan")) == pytest.approx((low - high) / 3, abs=0.1)


def test_dots_of_several_curves_stand_side_by_side() -> None:
    curves = [Curve(name, [exact(0, 0.5)]) for name in ("a", "b", "c")]
    dots = drawn(dot_chart("Blocks", ["block 0"], curves, "block", "accuracy"), "mark")
    assert [dot.tag for dot in dots] == ["circle", "rect", "path"]
    assert float(dots[0].get("cx", "nan")) < float(dots[1].get("x", "nan"))


def test_pieces_of_a_bar_are_as_long_as_their_shares() -> None:
    svg = bar_chart("Time", {"0 block 0": {"busy": 0.5, "waiting": 0.25}}, ["busy", "waiting"], "rank", "share (%)")
    busy, waiting = drawn(svg, "piece")
    at = words(svg)
    whole = at["100 %"][0] - at["0 %"][0]
    assert float(busy.get("width", "nan")) == pytest.approx(0.5 * whole, abs=0.1)
    assert float(waiting.get("width", "nan")) == pytest.approx(0.25 * whole, abs=0.1)
    assert float(waiting.get("x", "nan")) == pytest.approx(float(busy.get("x", "nan")) + 0.5 * whole, abs=0.1)
    assert "50 + 25 %" in at, "also as figures"


def test_a_bar_of_nothing_is_an_empty_row() -> None:
    assert drawn(bar_chart("Time", {"4 feedback": {"busy": 0.0}}, ["busy"], "rank", "share (%)"), "piece") == []


def test_looks_differ_without_colour() -> None:
    shapes = {re.sub(r" class=\S+ \S+", "", marker(index, 0.0, 0.0)) for index in range(5)}
    assert len(shapes) == 5
    assert len({(dash(index), marker(index, 0.0, 0.0)) for index in range(30)}) == 30


def test_text_from_anywhere_is_only_text() -> None:
    assert escape('<b a="1">&\x00\udcff') == "&lt;b a=&quot;1&quot;&gt;&amp;\ufffd\ufffd"
    assert element("text", x=1.25, class_="a<b") == '<text x="1.2" class="a&lt;b"/>'
    ElementTree.fromstring(curve_chart("<i>", [Curve('"<b>', [exact(0, 1.0)])], "<u>", "&"))
