"""Figures are SVG that a page can hold: one line a head, one bar a drafting head or a kind, no date."""

import re
import xml.etree.ElementTree as ET

from bytelm.figures import Line, acceptance_bars, byte_bars, curves, kind_bars, length_bars, panels
from bytelm.palette import head_colour

LINES = [
    Line(points=[(0.0, 9.0), (50.0, 3.0), (100.0, 2.0)], label="0", colour="#123456", width=2.0),
    Line(points=[(0.0, 9.0), (100.0, 4.0)], label="<1>", colour="#654321", dots=False),
    Line(points=[(100.0, 3.0)], colour="#abcdef"),
]


def test_curves_have_one_line_each_in_its_colour_and_a_legend_of_those_with_a_name() -> None:
    svg = curves(LINES, across="bytes", up="bits per byte", legend="head")
    ET.fromstring(svg)
    assert all(line.colour in svg for line in LINES)
    assert all(f">{text}<" in svg for text in ("bytes", "bits per byte", "head", "0", "&lt;1&gt;"))


def test_the_beginning_of_curves_does_not_decide_their_height() -> None:
    labels = re.findall(r">(\d+(?:\.\d+)?)</text>", curves(LINES, across="x", up="y"))
    assert "9" not in labels
    assert max(float(label) for label in labels if float(label) < 10) <= 4.5


def test_a_line_of_one_point_and_lines_of_none_are_drawn() -> None:
    ET.fromstring(curves([Line(points=[(1.0, 1.0)], label="a", colour="#000000")], across="x", up="y", percent=True))
    ET.fromstring(curves([], across="x", up="y"))


def test_panels_stand_side_by_side_with_their_titles() -> None:
    svg = panels([("rate", [(0.0, 1.0), (2e6, 2.0)]), ("norm", [(0.0, 0.0), (2e6, 0.0)])], across="MB", divisor=1e6)
    ET.fromstring(svg)
    assert svg.count(">MB<") == 2
    assert all(f">{title}<" in svg for title in ("rate", "norm"))


def test_a_scaled_line_has_another_unit() -> None:
    assert LINES[0].scaled(10.0).points == [(0.0, 9.0), (5.0, 3.0), (10.0, 2.0)]


def test_the_bars_leave_out_head_0_and_say_each_share() -> None:
    svg = acceptance_bars([1.0, 0.61, None])
    ET.fromstring(svg)
    assert ">61%<" in svg
    assert ">0%<" in svg
    assert head_colour(0, 3) not in svg


def test_kinds_are_coloured_by_group_and_each_group_is_named_once() -> None:
    svg = kind_bars([("c", "code", 600), ("python", "code", 300), ("pe<1>", "binary", 100)])
    ET.fromstring(svg)
    assert ">code<" in svg
    assert svg.count(">binary<") == 1
    assert all(f">{name}<" in svg for name in ("c", "python", "pe&lt;1&gt;"))
    assert ">60.0%<" in svg.replace("> ", ">")
    assert head_colour(1, 5) in svg
    assert head_colour(0, 5) in svg


def test_lengths_are_marked_where_asked() -> None:
    svg = length_bars([(1, 4), (2, 0), (4, 9)], {"half": 5})
    ET.fromstring(svg)
    assert ">half<" in svg


def test_bytes_may_all_be_the_same() -> None:
    ET.fromstring(byte_bars([7] + [0] * 255))
    svg = byte_bars([1 << 40] * 256)
    ET.fromstring(svg)
    assert ">ff<" in svg


def test_letters_ink_and_grid_follow_the_theme_of_the_page() -> None:
    line = Line(points=[(0.0, 1.0), (1.0, 2.0)], label="a", colour="#16191d")
    svg = curves([line], across="x", up="y") + length_bars([(1, 4), (2, 3)], {"half": 2})
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    assert not fixed & {"#000000", "#16191d", "#e6e8eb"}
    assert "stroke: currentColor" in svg
    assert "var(--line, #e6e8eb)" in svg
    assert all("viewBox" in tag for tag in re.findall(r"<svg [^>]*>", svg))  # it scales


def test_the_same_data_give_the_same_figure() -> None:
    assert curves(LINES, across="x", up="y") == curves(LINES, across="x", up="y")
