"""The automaton knows exactly the UTF-8 that Python's decoder knows."""

import itertools

import numpy as np
import pytest

from bytelm import utf8_automaton
from bytelm.utf8_automaton import DUE, REJECTED, START, advance, forbidden
from bytelm.vocab import EOD


def whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_all_strings_of_one_to_three_bytes_are_judged_as_by_pythons_decoder() -> None:
    table = utf8_automaton._TABLE
    for length in (1, 2):
        for data in itertools.product(range(256), repeat=length):
            assert (advance(START, data) == START) == whole(bytes(data)), data
    # Three bytes, all 16.7 million: Python knows which code points there are, and how each is written.
    state_NNN = table[table[table[START]]]
    found = {bytes(data.tolist()) for data in np.argwhere(state_NNN == START) if _crosses(data)}
    expected = {chr(point).encode() for point in range(0x800, 0x10000) if not 0xD800 <= point < 0xE000}
    assert found == expected


def _crosses(data: np.ndarray) -> bool:
    """Three bytes that are one character, not several."""
    return data[0] >= 0xE0


def test_all_beginnings_of_four_bytes_are_judged_as_by_pythons_decoder() -> None:
    for lead in range(0xF0, 0x100):
        for second in range(256):
            good = whole(bytes((lead, second, 0x80, 0x80)))
            assert (advance(START, (lead, second)) != REJECTED) == good
            assert advance(START, (lead, second, 0x80, 0xBF)) == (START if good else REJECTED)
            assert advance(START, (lead, second, 0x80, 0xC0)) == REJECTED


@pytest.mark.parametrize("state", range(REJECTED))
@pytest.mark.parametrize("room", [1, 2, 3, 4, 9])
def test_what_is_allowed_leads_to_a_whole_character_in_time(state: int, room: int) -> None:
    mask = forbidden(state, room)
    assert mask[EOD] == (state != START)
    assert not mask.all()
    for byte in np.flatnonzero(~mask[:EOD]):
        after = advance(state, (int(byte),))
        assert after != REJECTED
        assert DUE[after] == min(DUE[state] - 1, DUE[after]) if state else True
        if DUE[state] <= room:
            assert DUE[after] <= room - 1
