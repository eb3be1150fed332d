"""Charts: every value at its place, axes with round numbers, and looks that differ without colour."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise

import pytest

from bllpipe.tools.analysis.charts import (
    ALL,
    SERIES,
    Curve,
    bar_chart,
    clean,
    curve_chart,
    dot_chart,
    look,
    piece_key,
    series_key,
)
from bllpipe.tools.analysis.report_data import Point, finite
from tests.support.drawings import Drawing


def exact(x: float, value: float) -> Point:
    return Point(x, value, value, value)


def loss(*curves: Curve) -> Drawing:
    return Drawing(curve_chart("Loss", curves, "steps", "nats"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ((0.31, 0.97), [0.2, 0.4, 0.6, 0.8, 1.0]),
        ((-3.0, 7.0), [-4, -2, 0, 2, 4, 6, 8]),
        ((0.0, 132.0), [0, 50, 100, 150]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values: Sequence[float], expected: list[float]) -> None:
    svg = curve_chart("", [Curve("a", [exact(x, value) for x, value in enumerate(values)])], "epochs", "")
    ticks = [str(tick).replace("-", "\N{MINUS SIGN}") for tick in expected]
    assert [text for text in Drawing(svg).texts if text in ticks][-len(ticks) :] == ticks


@pytest.mark.parametrize("value", [0.0, 1.0, -5.0, 1e-30, 1e90, 0.1 + 0.2])
def test_a_single_value_has_a_chart_too(value: float) -> None:
    found = loss(Curve("bll", [exact(0, value)]))
    assert found.notes("mark") == [f"bll, steps 0: {value:.4g}"]
    assert not {"nan", "inf"} & set(" ".join(found.texts).split())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, None, "1", True])
def test_what_has_no_place_on_an_axis(value: object) -> None:
    assert finite(value) is None


def test_a_curve_goes_through_its_means_at_the_places_of_the_axes() -> None:
    found = loss(Curve("bll", [exact(0, 0.0), exact(5, 1.0), exact(10, 0.5)]))
    ((left, bottom), (middle, top), (right, half)) = found.corners("line")[0]
    at = found.places
    assert (left, middle, right) == pytest.approx((at["0"][0], (at["0"][0] + at["10"][0]) / 2, at["10"][0]), abs=0.1)
    assert bottom - top == pytest.approx(at["0.0"][1] - at["1.0"][1], abs=0.1), "up the page is more"
    assert half == pytest.approx((bottom + top) / 2, abs=0.1)
    assert {"steps", "nats"} <= set(found.texts) and found.title == "Loss"


def test_a_band_reaches_from_the_smallest_to_the_largest() -> None:
    curve = Curve("bll", [Point(0, 1.0, 0.0, 2.0, n=3), Point(1, 1.5, 1.0, 2.0, n=3)])
    found = loss(curve)
    (line,) = found.corners("line")
    heights = sorted({y for _, y in found.corners("band")[0]})
    (_, mean_0), (_, mean_1) = line
    unit = 2 * (mean_0 - mean_1)
    assert heights == pytest.approx([mean_0 - unit, mean_0, mean_0 + unit], abs=0.2)
    assert found.notes("mark") == ["bll, steps 0: 1 (0 to 2, n = 3)", "bll, steps 1: 1.5 (1 to 2, n = 3)"]


def test_one_run_has_no_band() -> None:
    assert loss(Curve("bll", [exact(0, 1.0), exact(1, 2.0)])).count("band") == 0


def test_a_curve_without_points_leaves_the_looks_of_the_others_alone() -> None:
    found = loss(Curve("bll", []), Curve("bp", [exact(0, 1.0), exact(1, 2.0)]))
    assert found.count("line") == 1
    assert SERIES[1].light in found.text and SERIES[0].light not in found.text
    assert SERIES[1].light in series_key(1, line=True)


def test_many_points_get_few_markers_and_the_last_one_always() -> None:
    found = loss(Curve("bll", [exact(x, x % 7) for x in range(1001)]))
    assert len(found.corners("line")[0]) == 1001
    assert 10 < found.count("mark") <= 20
    assert found.notes("mark")[-1] == "bll, steps 1000: 6"


def test_dots_stand_over_their_places() -> None:
    curve = Curve("bll", [Point(0, 0.5, 0.25, 1.0, n=2), exact(1, 0.5)])
    found = Drawing(dot_chart("Blocks", ["block 0", "block 1"], [curve], "block", "accuracy (%)", share=True))
    (x_0, y_0), (x_1, y_1) = found.uses("mark")
    assert (x_0, x_1) == pytest.approx((found.places["block 0"][0], found.places["block 1"][0]), abs=0.1)
    assert y_0 == y_1
    assert found.notes("mark") == ["bll, block 0: 50.00 % (25.00 % to 100.00 %, n = 2)", "bll, block 1: 50.00 %"]


def test_dots_of_several_curves_stand_side_by_side() -> None:
    curves = [Curve(name, [exact(0, 0.5)]) for name in ("a", "b", "c")]
    xs = [x for x, _ in Drawing(dot_chart("Blocks", ["block 0"], curves, "block", "accuracy")).uses("mark")]
    assert xs[0] < xs[1] < xs[2]


def test_names_of_many_places_do_not_touch() -> None:
    places = [f"block {k}" for k in range(24)]
    curve = Curve("bll", [exact(k, 0.5) for k in range(24)])
    found = Drawing(dot_chart("Blocks", places, [curve], "block", "accuracy"))
    xs = [found.places[place][0] for place in places if place in found.places]
    assert found.count("mark") == 24 and 3 < len(xs) < 10
    assert all(right - left > 50 for left, right in pairwise(xs))


def test_pieces_of_a_bar_are_as_long_as_their_shares() -> None:
    rows = {"0 block 0": {"busy": 0.5, "waiting": 0.25}}
    found = Drawing(bar_chart("Time", rows, ["busy", "waiting"], "rank", "share (%)"))
    busy, waiting = ([x for x, _ in corners] for corners in found.corners("piece"))
    whole = found.places["100 %"][0] - found.places["0 %"][0]
    assert max(busy) - min(busy) == pytest.approx(0.5 * whole, abs=0.1)
    assert max(waiting) - min(waiting) == pytest.approx(0.25 * whole, abs=0.1)
    assert min(waiting) == pytest.approx(max(busy), abs=0.1)
    assert "50 + 25 %" in found.texts, "also as figures"
    assert found.notes("piece") == ["0 block 0, busy: 50.0 %", "0 block 0, waiting: 25.0 %"]


def test_a_bar_of_nothing_is_an_empty_row() -> None:
    found = Drawing(bar_chart("Time", {"4 feedback": {"busy": 0.0}}, ["busy"], "rank", "share (%)"))
    assert found.count("piece") == 0 and "0 %" in found.texts


def test_looks_differ_without_colour() -> None:
    assert len({(str(look(index)["linestyle"]), look(index)["marker"]) for index in range(5)}) == 5
    assert len({json.dumps(look(index)) for index in range(30)}) == 30
    assert len({series_key(index, line=True) for index in range(30)}) == 30
    assert piece_key(0) != piece_key(1)


def test_every_colour_has_one_for_the_dark() -> None:
    assert len({colour.light for colour in ALL}) == len(ALL), "a rule of CSS replaces each of them"


def test_text_from_anywhere_is_only_text() -> None:
    assert clean("<b>\x00\udcff") == "<b>\ufffd\ufffd"
    found = loss(Curve('"<b> $x_1$ \x07', [exact(0, 1.0)]))
    assert found.notes("mark") == ['"<b> $x_1$ \ufffd, steps 0: 1']
    found = Drawing(curve_chart("<i>", [Curve("a", [exact(0, 1.0)])], "<u> $a$", "&"))
    assert {"<u> $a$", "&"} <= set(found.texts) and found.title == "<i>"


def test_the_same_chart_is_the_same_text() -> None:
    curves = [Curve("bll", [Point(0, 1.0, 0.0, 2.0, n=3), Point(1, 1.5, 1.0, 2.0, n=3)])]
    assert curve_chart("Loss", curves, "steps", "nats") == curve_chart("Loss", curves, "steps", "nats")
