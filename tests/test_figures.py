"""Figures are SVG that a page can hold: one line a head, one bar a drafting head or a kind, no date."""

import xml.etree.ElementTree as ET

from bytelm.figures import acceptance_bars, bits_per_byte_curves, byte_bars, kind_bars, length_bars
from bytelm.palette import head_colour

VALIDATIONS = [
    {"bytes_seen": seen, "bits_per_byte_by_head": [4.0 - seen / 1e6, 5.0 - seen / 1e6, 6.0]} for seen in (10**5, 10**6)
]


def test_the_curves_have_one_line_a_head_in_its_colour() -> None:
    svg = bits_per_byte_curves(VALIDATIONS)
    ET.fromstring(svg)
    assert all(head_colour(head, 3) in svg for head in (1, 2))
    assert ">bits per byte, held out<" in svg


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


def test_the_same_data_give_the_same_figure() -> None:
    assert bits_per_byte_curves(VALIDATIONS) == bits_per_byte_curves(VALIDATIONS)
