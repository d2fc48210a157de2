"""Which documents an ingestion leaves out by what they are: their size, their kind, how dense they are."""

from dataclasses import dataclass
from typing import Final

import zstandard

from bytelm.data.documents import SkipReason
from bytelm.data.kinds import GROUPS, KINDS, group_of
from bytelm.errors import ConfigError
from bytelm.names import nearest

DENSITY_LEAST_BYTES: Final = 1 << 10
"""A shorter document is too short to tell how dense it is."""

_DENSITY_LEVEL: Final = 1
_MOST_BITS: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What documents have to be.

    Attributes:
        min_bytes: Least bytes of a document.
        max_bytes: Most bytes of a document.
        max_bits_per_byte: Most bits that zstd needs for each byte, 8 for noise: archives, pictures and encrypted files
            come close to it, text needs 2 to 4. A document below 1 KiB always passes.
        only: Kinds, groups of kinds, ``text`` for all that is not binary, ``binary`` for the rest; empty for all.

    Raises:
        ConfigError: A name is unknown, or a limit can never be met.
    """

    min_bytes: int = 0
    max_bytes: int | None = None
    max_bits_per_byte: float | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_bytes < 0 or (self.max_bytes is not None and not max(1, self.min_bytes) <= self.max_bytes):
            raise ConfigError(
                f"min_bytes = {self.min_bytes}, max_bytes = {self.max_bytes}: no document can be that; "
                "the first must be at least 0, the second no smaller"
            )
        if self.max_bits_per_byte is not None and not 0 < self.max_bits_per_byte <= _MOST_BITS:
            raise ConfigError(f"max_bits_per_byte = {self.max_bits_per_byte}: a number above 0, at most 8, is needed")
        for name in self.only:
            if name not in KINDS and name not in GROUPS:
                near = nearest(name, dict.fromkeys([*KINDS, *GROUPS]))
                known = f"there are text, {', '.join(GROUPS)}, and the kinds {', '.join(KINDS[2:])}"
                raise ConfigError(
                    f"only = {name!r}: no such kind or group; {known if near is None else f'did you mean {near!r}?'}"
                )

    @property
    def kinds(self) -> frozenset[int]:
        """Indices of the kinds that pass."""
        if not self.only:
            return frozenset(range(len(KINDS)))
        return frozenset(kind for kind in range(len(KINDS)) if any(_belongs(kind, name) for name in self.only))

    def verdict(self, kind: int, raw_bytes: int) -> SkipReason | None:
        """Why a document is left out by its kind or size; None if it is not."""
        if raw_bytes < self.min_bytes:
            return "too_small"
        if self.max_bytes is not None and raw_bytes > self.max_bytes:
            return "too_large"
        return "other_kind" if self.only and kind not in self.kinds else None


class DensityMeter:
    """How many bits zstd needs for each byte of a document, in constant memory; one document after another."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_DENSITY_LEVEL, write_content_size=False)
        self.start()

    def start(self) -> None:
        """Begin with another document."""
        self._stream = self._compressor.compressobj()
        self._raw_bytes = self._packed_bytes = 0

    def add(self, block: bytes) -> None:
        """Add the next bytes of the document."""
        self._raw_bytes += len(block)
        self._packed_bytes += len(self._stream.compress(block))

    def bits_per_byte(self) -> float:
        """Bits for each byte of the document that ends here; 0 if it is too short to tell."""
        if self._raw_bytes < DENSITY_LEAST_BYTES:
            return 0.0
        return 8 * (self._packed_bytes + len(self._stream.flush())) / self._raw_bytes


def _belongs(kind: int, name: str) -> bool:
    if name == "text":
        return group_of(kind) != "binary"
    return name in (KINDS[kind], group_of(kind))
