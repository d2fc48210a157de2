"""Counting in constant memory gives what counting everything would."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.data.measures import ByteCounts, Lengths, is_utf8

LENGTHS = st.lists(st.integers(1, 1 << 40), min_size=1, max_size=60)


def counted(*parts: list[int]) -> Lengths:
    lengths = Lengths()
    for part in parts:
        lengths.add(np.array(part, np.int64))
    return lengths


@given(LENGTHS, st.floats(0, 1))
def test_a_quantile_is_the_true_one_or_at_most_a_64th_above(lengths: list[int], share: float) -> None:
    true = sorted(lengths)[max(1, math.ceil(share * len(lengths))) - 1]
    assert true <= counted(lengths).quantile(share) <= true * (1 + 1 / 64)


@given(LENGTHS)
def test_the_ends_the_sum_and_the_doublings_are_exact(lengths: list[int]) -> None:
    found = counted(lengths)
    assert (found.least, found.most, found.raw_bytes, found.pieces) == (
        min(lengths),
        max(lengths),
        sum(lengths),
        len(lengths),
    )
    doublings = found.doublings()
    assert doublings[0][1] > 0
    assert doublings[-1][1] > 0
    naive = [(least, sum(least <= length < 2 * least for length in lengths)) for least, _ in doublings]
    assert doublings == naive
    assert sum(pieces for _, pieces in doublings) == len(lengths)


@given(LENGTHS, st.integers(0, 60))
def test_lengths_may_come_in_any_parts(lengths: list[int], cut: int) -> None:
    whole, parts = counted(lengths), counted(lengths[:cut], lengths[cut:])
    assert [whole.quantile(share / 10) for share in range(11)] == [parts.quantile(share / 10) for share in range(11)]
    assert (whole.least, whole.most, whole.doublings()) == (parts.least, parts.most, parts.doublings())


@given(LENGTHS)
def test_no_quantile_exceeds_the_longest(lengths: list[int]) -> None:
    assert counted(lengths).quantile(1.0) == max(lengths)


def test_short_lengths_are_exact() -> None:
    for length in range(1, 128):
        assert counted([length, 1 << 30]).quantile(0.5) == length


def test_nothing_counted_has_no_doublings() -> None:
    assert counted([]).doublings() == []


@pytest.mark.parametrize(
    ("data", "entropy"),
    [(bytes(range(256)), 8.0), (b"aaaa", 0.0), (b"abab", 1.0), (b"aabc", 1.5), (b"", 0.0)],
)
def test_entropy_of_order_0_is_that_of_the_shares(data: bytes, entropy: float) -> None:
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256).astype(np.int64)
    assert ByteCounts(counts=counts).entropy == pytest.approx(entropy)


@given(st.text(max_size=12), st.integers(0, 48), st.integers(0, 48))
def test_text_is_utf8_wherever_it_is_cut(text: str, begin: int, end: int) -> None:
    data = text.encode()
    part = data[begin : max(begin, end)]
    assert is_utf8(part, cut_before=begin > 0, cut_behind=end < len(data))


@given(st.binary(max_size=12))
def test_whole_bytes_are_utf8_if_they_decode(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        assert not is_utf8(data, cut_before=False, cut_behind=False)
    else:
        assert is_utf8(data, cut_before=False, cut_behind=False)


def test_a_cut_excuses_an_incomplete_character_and_nothing_else() -> None:
    assert is_utf8(b"\x82\xacab\xe2\x82", cut_before=True, cut_behind=True)
    assert not is_utf8(b"\x82\xacab", cut_before=False, cut_behind=True)
    assert not is_utf8(b"ab\xe2\x82", cut_before=True, cut_behind=False)
    assert not is_utf8(b"a\xffb\xe2", cut_before=True, cut_behind=True)
    assert not is_utf8(b"\x80\x80\x80\x80a", cut_before=True, cut_behind=True)
