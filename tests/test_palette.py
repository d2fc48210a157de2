"""Heads are told apart by colour, everywhere by the same one."""

import re

import pytest

from bytelm.palette import VERIFIED, head_colour


@pytest.mark.parametrize("heads", [1, 2, 8, 32])
def test_every_head_has_a_colour_of_its_own(heads: int) -> None:
    colours = [head_colour(head, heads) for head in range(heads)]
    assert colours[0] == VERIFIED
    assert len(set(colours)) == heads
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
