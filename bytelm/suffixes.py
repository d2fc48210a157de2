"""Prompt lookup: what followed the last time that the same bytes stood in the text.

Text repeats itself: names, indentation, quotations, tables. After the same few bytes as before the same byte often
comes, and the longer the match, the surer.

Source: prompt lookup (Saxena 2023) and suffix decoding (Oliaro et al. 2024, arXiv 2411.04975), here over bytes.
"""

from dataclasses import dataclass
from typing import Final

LENGTHS: Final = (4, 6, 8, 12, 16, 24)
"""Lengths of the endings that are remembered."""

_LONGEST: Final = 64
"""Length up to which a match is measured."""


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier place where the same bytes stood.

    Attributes:
        place: Of the byte that followed there.
        length: Bytes before it that are the same, up to 64.
    """

    place: int
    length: int


class SuffixIndex:
    """A text that grows, with the place of the last occurrence of every ending of some lengths."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray()
        self._following: dict[bytes, int] = {}
        self.extend(data)

    def __len__(self) -> int:
        return len(self._data)

    def extend(self, data: bytes) -> None:
        """Append bytes."""
        begin = len(self._data)
        self._data += data
        whole, following = bytes(self._data[max(0, begin - LENGTHS[-1]) :]), self._following
        shift = begin - max(0, begin - LENGTHS[-1])
        for place in range(shift, len(whole)):
            for length in LENGTHS:
                if length > place:
                    break
                following[whole[place - length : place]] = place - shift + begin

    def find(self, drafted: bytes = b"") -> Match | None:
        """The last earlier place with the longest ending that the text has, if drafted bytes are appended to it.

        Example:
            >>> SuffixIndex(b"abcdefg abcd").find()
            Match(place=4, length=4)
        """
        tail = bytes(self._data[-_LONGEST:]) + drafted
        for length in reversed(LENGTHS):
            if length <= len(tail) and (place := self._following.get(tail[-length:])) is not None:
                return Match(place, length + self._more(tail, place, length))
        return None

    def following(self, place: int, count: int, drafted: bytes = b"") -> bytes:
        """Bytes from a place on, in the text with drafted bytes behind it; at its end they begin again.

        Example:
            >>> SuffixIndex(b"xyzxyz").following(3, 5)
            b'xyzxy'
            >>> SuffixIndex(b"xyzxyz").following(3, 7, drafted=b"!")
            b'xyz!xyz'
        """
        found = (bytes(self._data[place : place + count]) + drafted)[:count]
        while found and len(found) < count:
            found += found[: count - len(found)]
        return found

    def _more(self, tail: bytes, place: int, length: int) -> int:
        """By how many bytes a match goes on to the left."""
        more = 0
        while (
            length + more < min(len(tail), place, _LONGEST)
            and tail[-length - more - 1] == self._data[place - length - more - 1]
        ):
            more += 1
        return more
