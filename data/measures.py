"""What can be counted in constant memory: how long pieces are, and which bytes there are."""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

_FINE: Final = 6  # 2^6 bins for each doubling: a length is known to 1/64 of itself


class Lengths:
    """How many pieces are how long, in bins; exact up to 127 bytes, to 1/64 above."""

    def __init__(self) -> None:
        self._counts = np.zeros(_bin_of(np.array([1 << 62]))[0] + 1, np.int64)
        self.pieces = self.raw_bytes = self.most = 0
        self.least = 0

    def add(self, lengths_P: NDArray[np.int64]) -> None:
        """Count some lengths, each at least 1."""
        if not len(lengths_P):
            return
        bins, counts = np.unique(_bin_of(lengths_P), return_counts=True)
        self._counts[bins] += counts
        least, most = int(lengths_P.min()), int(lengths_P.max())
        self.least = min(self.least, least) if self.pieces else least
        self.most = max(self.most, most)
        self.pieces += len(lengths_P)
        self.raw_bytes += int(lengths_P.sum())

    def quantile(self, share: float) -> int:
        """The length that this share of the pieces does not exceed, to 1/64 above the true one.

        Args:
            share: In [0, 1].
        """
        rank = max(1, math.ceil(share * self.pieces))
        found = int(np.searchsorted(np.cumsum(self._counts), rank))
        return max(self.least, min(self.most, _largest_of(found)))

    def doublings(self) -> list[tuple[int, int]]:
        """Pieces of 1, 2–3, 4–7, 8–15 … bytes: (least length, pieces), from the first to the last that has any."""
        used = np.flatnonzero(self._counts)
        by_doubling: dict[int, int] = {}
        for place in used.tolist():
            doubling = _largest_of(place).bit_length() - 1
            by_doubling[doubling] = by_doubling.get(doubling, 0) + int(self._counts[place])
        if not by_doubling:
            return []
        return [(1 << n, by_doubling.get(n, 0)) for n in range(min(by_doubling), max(by_doubling) + 1)]


@dataclass(slots=True)
class ByteCounts:
    """What bytes there are.

    Attributes:
        counts: How often each of the 256 occurs.
        utf8_bytes: Bytes of pieces that are valid UTF-8 as far as the frames read hold them.
        frames: Frames that were read.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    utf8_bytes: int = 0
    frames: int = 0

    @property
    def raw_bytes(self) -> int:
        """Bytes that were read."""
        return int(self.counts.sum())

    @property
    def entropy(self) -> float:
        """Bits per byte of order 0: what a byte costs if only its frequency is known, and nothing before it."""
        shares = self.counts[self.counts > 0] / max(1, self.raw_bytes)
        return float(-(shares * np.log2(shares)).sum()) + 0.0  # and not -0.0


def is_utf8(data: bytes, *, cut_before: bool, cut_behind: bool) -> bool:
    """Whether bytes are valid UTF-8; where they were cut out of more, a character at the cut may be incomplete."""
    if cut_before:
        data = data[next((place for place, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), min(3, len(data))) :]
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return cut_behind and error.reason == "unexpected end of data"
    return True


def _bin_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    _, exponents = np.frexp(lengths.astype(np.float64))  # exact below 2^53; a length above is a bin off at most
    shifts = np.maximum(exponents.astype(np.int64) - 1 - _FINE, 0)
    return (shifts << _FINE) + (lengths >> shifts)


def _largest_of(place: int) -> int:
    """The largest length of a bin."""
    shift = max((place >> _FINE) - 1, 0)
    return ((place - (shift << _FINE) + 1) << shift) - 1
