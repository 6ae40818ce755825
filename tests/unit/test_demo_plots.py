"""The report's smaller pictures say what they were given, and the report holds them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.demo.small_plots import BINS, HEIGHT, WIDTH, histogram, loss_svg, scores_svg, seed_rank_svg, ticks

SCORES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60)


def parsed(svg: str) -> ET.Element:
    """The picture as XML; every point, bar and text of it lies inside."""
    root = ET.fromstring(svg)  # noqa: S314 - our own
    for element in root.iter():
        for pair in re.findall(r"(\S+),(\S+)", element.get("points", "")):
            assert -0.1 <= float(pair[0]) <= WIDTH + 0.1
            assert -0.1 <= float(pair[1]) <= HEIGHT + 0.1
        assert 0 <= float(element.get("x", 0)) <= WIDTH
        assert 0 <= float(element.get("y", 0)) <= HEIGHT
    return root


def test_a_bar_for_each_rank() -> None:
    bars = parsed(seed_rank_svg([6, 3, 0, 1])).findall("rect")
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights == pytest.approx([heights[0], heights[0] / 2, 0, heights[0] / 6], abs=0.1)
    assert [bar.attrib["class"] for bar in bars] == ["before", "after", "after", "after"]
    assert "best: 60%" in "".join(parsed(seed_rank_svg([6, 3, 0, 1])).itertext())


def test_the_curve_goes_through_every_point() -> None:
    (line,) = parsed(loss_svg([(1, 4.0), (5, 2.0), (9, 3.0)])).findall("polyline")
    (x1, y1), (x2, y2), (x3, y3) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert y2 - y1 == pytest.approx(2 * (y2 - y3), abs=0.2)


@given(positives=SCORES, negatives=SCORES)
def test_any_scores_can_be_drawn(positives: list[float], negatives: list[float]) -> None:
    polygons = parsed(scores_svg("QL", "nats", positives, negatives)).findall("polygon")
    assert [polygon.attrib["class"] for polygon in polygons] == ["before", "after"]


@given(SCORES)
def test_every_value_is_in_one_bin(values: list[float]) -> None:
    shares = histogram(values, -100, 100)
    assert len(shares) == BINS
    assert sum(shares) == pytest.approx(1)


def test_nothing_is_drawn_of_nothing() -> None:
    assert loss_svg([]) == loss_svg([(1, 2.0)]) == seed_rank_svg([]) == seed_rank_svg([0]) == ""
    assert scores_svg("QL", "nats", [], []) == ""


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    found = list(ticks(low, low + width))
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 <= value <= low + width + 1e-6 for value in found)
