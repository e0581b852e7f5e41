"""Charts: points, bars and cells are where, and as dark as, the numbers say."""

from __future__ import annotations

import math
import re

import pytest

from recurra.reporting import charts
from recurra.reporting.charts import Curve, bar_chart, heat_map, line_chart
from recurra.reporting.markup import number


def points(picture):
    path = re.search(r'<polyline class="curve [^"]*" points="([^"]+)"', picture).group(1)
    return [tuple(map(float, pair.split(","))) for pair in path.split()]


def test_lines_go_where_the_numbers_are():
    options = {"x": "x", "y": "y", "label": "what"}
    straight = points(line_chart([Curve("c", [(0, 0), (5, 5), (10, 10)], "")], **options))
    assert straight[1][0] == pytest.approx((straight[0][0] + straight[2][0]) / 2, abs=0.11)
    assert straight[1][1] == pytest.approx((straight[0][1] + straight[2][1]) / 2, abs=0.11)
    assert straight[0][1] > straight[2][1]  # up is less
    powers = points(line_chart([Curve("c", [(0, 0.01), (1, 0), (5, 1), (10, 100)], "")], log=True, **options))
    assert powers == straight


def test_a_chart_without_points_is_none_and_one_point_is_drawn():
    options = {"x": "x", "y": "y", "label": "what"}
    assert line_chart([Curve("c", [(1, -1)], "")], log=True, **options) == ""
    assert line_chart([], **options) == ""
    single = line_chart([Curve("c", [(1, 3)], "")], **options)
    assert len(points(single)) == 1
    assert single.count('class="mark"') == 1  # a line of one point is nothing to be seen


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345678901, "12,345,678,901"),
        (0.0, "0"),
        (0.123456, "0.1235"),
        (1234.56, "1,234.6"),
        (523801.04, "523,801"),
        (9_999_999.0, "9,999,999"),
        (2.7e43, "2.7e43"),
        (12_345_678.0, "1.235e7"),
        (-0.00000051234, "-5.123e-7"),
        (math.inf, "∞"),
        (math.nan, "–"),
        (None, "–"),
        (True, "yes"),
        ([1], "[1]"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_an_axis_of_one_number_has_it_inside():
    for value in (0.0, 3.0, -2.0, 1e-9):
        axis = charts._Axis([value, value], 0, 100, log=False)
        assert 0 <= axis.place(value) <= 100
        assert len(axis.ticks()) > 1


@pytest.mark.parametrize(("low", "high", "log"), [(0, 1, False), (3.2, 3.9, False), (1, 5, True), (1e-9, 1e9, True)])
def test_ticks_are_a_few_round_numbers_within_the_axis(low, high, log):
    ticks = charts._Axis([low, high], 0, 100, log=log).ticks()
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)
    assert all(len(f"{tick:.3g}") < 8 for tick in ticks)


def test_bars_grow_with_the_logarithm():
    picture = bar_chart([("a", 10.0), ("<b>", 100.0), ("c", None), ("d", 1.0)], x="x", y="y", label="l")
    widths = [float(width) for width in re.findall(r'class="bar".* width="([^"]+)"', picture)]
    assert widths[0] == pytest.approx(widths[1] / 2, abs=0.1)
    assert widths[2] == widths[1]
    assert widths[3] == 0
    assert "<b>" not in picture
    assert "∞" in picture


def test_cells_are_as_dark_as_their_numbers():
    picture = heat_map([[0, 0.5], [1, 2]], ["r", "s"], ["a", "<b>"], low=0, high=1, label="l", what="gate")
    cells = re.findall(r'fill-opacity="([^"]+)"><title>(.*?)</title>', picture, re.DOTALL)
    assert [float(share) for share, _ in cells] == [0, 0.5, 1, 1]
    assert cells[1][1].split() == ["r", "at", "&lt;b&gt;:", "0.5"]
