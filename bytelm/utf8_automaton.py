"""The nine states of well-formed UTF-8, and which bytes may come next in each: no overlongs, surrogates or beyond.

    0  between characters                  4  after E0: A0 … BF, then 1
    1  one continuation byte is due        5  after ED: 80 … 9F, then 1
    2  two are due                         6  after F0: 90 … BF, then 2
    3  three are due                       7  after F4: 80 … 8F, then 2
                                           8  rejected, for ever

Source: The Unicode Standard, version 16.0, table 3-7.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from bytelm.vocab import EOD

START: Final = 0
REJECTED: Final = 8

DUE: Final = (0, 1, 2, 3, 2, 2, 3, 3)
"""Bytes that are still missing in each state but the last."""

_MOST_DUE: Final = 4  # of a character that has not begun


def _transitions() -> npt.NDArray[np.uint8]:
    table = np.full((9, 256), REJECTED, np.uint8)
    table[0, :0x80] = 0
    table[0, 0xC2:0xE0] = 1
    table[0, 0xE0:0xF0] = 2
    table[0, [0xE0, 0xED]] = 4, 5
    table[0, 0xF0:0xF5] = 3
    table[0, [0xF0, 0xF4]] = 6, 7
    for state, first, last, after in (
        (1, 0x80, 0xBF, 0),
        (2, 0x80, 0xBF, 1),
        (3, 0x80, 0xBF, 2),
        (4, 0xA0, 0xBF, 1),
        (5, 0x80, 0x9F, 1),
        (6, 0x90, 0xBF, 2),
        (7, 0x80, 0x8F, 2),
    ):
        table[state, first : last + 1] = after
    return table


_TABLE: Final = _transitions()
_ROWS: Final = _TABLE.tolist()


def advance(state: int, data: Iterable[int]) -> int:
    """State after some bytes.

    Example:
        >>> advance(START, "é".encode()), advance(START, b"a\\xe2\\x82"), advance(START, b"\\xff")
        (0, 1, 8)
    """
    for byte in data:
        state = _ROWS[state][byte]
    return state


def state_at_end(prompt: bytes) -> int:
    """State after any bytes: what is not UTF-8 counts as nothing, only a character may be begun at the end.

    Example:
        >>> [state_at_end(prompt) for prompt in ("é".encode(), b"a\\xe2\\x82", b"\\xff", b"\\xff\\xc3")]
        [0, 1, 0, 1]
    """
    state = START
    for byte in prompt[1 - _MOST_DUE :]:  # a character that is not whole has no more bytes
        state = _ROWS[state][byte]
        if state == REJECTED:  # the byte may begin a character itself
            state = _ROWS[START][byte] % REJECTED
    return state


def _forbidden(state: int, room: int) -> npt.NDArray[np.bool_]:
    due_after = np.array([*DUE, 1 << 30])[_TABLE[state]]
    forbidden = np.append(due_after > room - 1, state != START)
    assert len(forbidden) == EOD + 1
    # Where even the shortest way to the character's end is too long, the character goes on none the less.
    return forbidden if not forbidden.all() else np.append(_TABLE[state] == REJECTED, True)


_FORBIDDEN: Final = [[_forbidden(state, room) for room in range(1, _MOST_DUE + 1)] for state in range(REJECTED)]


def forbidden(state: int, room: int) -> npt.NDArray[np.bool_]:
    """Ids that may not come next: bytes that are no UTF-8 here, and the end of the document inside a character.

    Args:
        state: 0 … 7.
        room: Bytes that may still come, this one included, at least 1: a character that would not fit is forbidden.

    Returns:
        Bool of 257, never all True.
    """
    return _FORBIDDEN[state][min(room, _MOST_DUE) - 1]
