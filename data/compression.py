"""Compressed bytes in, their content out: blocks to blocks, in constant memory, whole or with an error.

What a library's convenience functions let pass is refused here or read to the end: a file that is several streams one
after another, a stream that is cut off, bytes that follow it, a header that claims a window of gigabytes, and content
that is out of all proportion to what is stored.
"""

import bz2
import lzma
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import zstandard

from bytelm.data.documents import BLOCK_BYTES, damaged

MOST_WINDOW_BYTES: Final = 128 << 20
"""How far back a stream may refer; ``zstd --long=27`` and ``xz -9`` stay within it."""

UNQUESTIONED_BYTES: Final = 64 << 20
"""As much content may come out of anything, however small it is stored."""

_LZMA_MEMORY: Final = MOST_WINDOW_BYTES + (8 << 20)
_MOST_LZMA_CONTENT: Final = 256 << 30
_FIRST_FED_BYTES: Final = 64 << 10  # little enough that many short streams in a row do not copy their rest too often
_MOST_FED_BYTES: Final = 1 << 20  # and much enough that a thread of its own is not forever asking for the interpreter
_BLOCKS_AHEAD: Final = 4
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK_BYTES: Final = 128 << 10
_LONGEST_ZSTD_HEADER: Final = 18
_RLE, _RESERVED = 1, 3


class Allowance:
    """How much content something may give, for what is stored of it.

    Args:
        name: What it is, for the message.
        stored_bytes: Its size as it is stored; 0 where that is not known, then what has been read counts.
        most_expansion: Most bytes of content for each stored byte, from ``UNQUESTIONED_BYTES`` on.
    """

    def __init__(self, name: bytes, stored_bytes: int, most_expansion: float) -> None:
        self._name = name
        self._stored_bytes = stored_bytes
        self._most_expansion = most_expansion
        self._read_bytes = 0
        self._given_bytes = 0

    def reading(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Stored bytes as they are, counted."""
        for block in blocks:
            self._read_bytes += len(block)
            yield block

    def giving(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Content as it is, counted.

        Raises:
            SourceError: It is too much.
        """
        for block in blocks:
            self.give(len(block))
            yield block

    def give(self, size: int) -> None:
        """Count content.

        Raises:
            SourceError: It is too much.
        """
        self._given_bytes += size
        if self._given_bytes > UNQUESTIONED_BYTES:
            stored_bytes = max(self._stored_bytes, self._read_bytes)
            if self._given_bytes > self._most_expansion * stored_bytes:
                raise damaged(
                    self._name,
                    f"it looks like a decompression bomb: {stored_bytes:,} bytes give more than "
                    f"{self._most_expansion:g} times as many",
                    "leave it out, or allow more with most_expansion",
                )


class Forward:
    """Bytes that are read forwards only, from blocks; enough of a file for ``tarfile``.

    Args:
        blocks: The bytes, in blocks that are not empty.
        position: What ``tell`` says at first.
    """

    def __init__(self, blocks: Iterator[bytes], position: int = 0) -> None:
        self._blocks = blocks
        self._block = b""
        self._begin = 0
        self._position = position

    def tell(self) -> int:
        """How many bytes were read or passed over."""
        return self._position

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end; they remain to be read."""
        while len(self._block) - self._begin < size:
            more = next(self._blocks, None)
            if more is None:
                break
            self._block = self._block[self._begin :] + more
            self._begin = 0
        return self._block[self._begin : self._begin + size]

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end."""
        data = self.peek(size)
        self._begin += len(data)
        self._position += len(data)
        return data

    def some(self, size: int = BLOCK_BYTES) -> bytes:
        """At least one and at most ``size`` of the next bytes, as many as cost nothing; none only at the end."""
        if self._begin == len(self._block):
            self._block = next(self._blocks, b"")
            self._begin = 0
        data = self._block[self._begin : self._begin + size]
        self._begin += len(data)
        self._position += len(data)
        return data

    def rest(self) -> Iterator[bytes]:
        """Everything that follows, in blocks of at most 1 MiB."""
        while data := self.some():
            yield data

    def seek(self, position: int) -> int:
        """Pass over everything up to a position, or to the end.

        Raises:
            ValueError: It lies behind.
        """
        if position < self._position:
            raise ValueError("the bytes before this place are gone")
        while self._position < position and self.some(min(position - self._position, BLOCK_BYTES)):
            pass
        return self._position


class _Decoder(Protocol):
    """One stream of a format."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflate:
    """zlib's decoder with the interface of the others."""

    def __init__(self, wbits: int) -> None:
        self._decoder = zlib.decompressobj(wbits)
        self.eof = False
        self.needs_input = True

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        content = self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)
        self.eof = self._decoder.eof
        # Full output may hide more that needs no further input.
        self.needs_input = not self._decoder.unconsumed_tail and len(content) < max_length
        return content


def _gz() -> _Inflate:
    return _Inflate(31)


def _deflate() -> _Inflate:
    return _Inflate(-15)


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)


def _lzma() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)


_STREAMS: Final[dict[str, tuple[Callable[[], _Decoder], bool, bool]]] = {
    # How to begin a stream, whether others may follow it, and whether zeros may.
    "gz": (_gz, True, True),
    "deflate": (_deflate, False, False),
    "bz2": (bz2.BZ2Decompressor, True, False),
    "xz": (_xz, True, True),
    "lzma": (_lzma, False, False),
}
COMPRESSIONS: Final = ("gz", "bz2", "xz", "lzma", "zst")
"""What can be decompressed, by the ending of names."""

MAGIC_BYTES: Final = 18
"""How many first bytes ``fits`` wants to see."""


def fits(compression: str, beginning: bytes) -> bool:
    """Whether bytes begin as a compression does; what does not is no damaged file of it, but something else."""
    if compression == "lzma":
        return _is_lzma(beginning)
    if compression == "zst":
        return beginning.startswith(_ZSTD_MAGIC) or _is_skippable(beginning)
    return beginning.startswith({"gz": b"\x1f\x8b\x08", "bz2": b"BZh", "xz": b"\xfd7zXZ\0"}[compression])


def decompress(compression: str, stored: Iterator[bytes], name: bytes) -> Iterator[bytes]:
    """The content of compressed bytes, in blocks of at most 1 MiB, none empty.

    Args:
        compression: One of ``COMPRESSIONS``, or ``deflate`` as zip files hold it.
        stored: Bytes that begin as it does.
        name: What they are, for the message.

    Raises:
        SourceError: They are damaged, cut off, followed by something else, or need too much memory.
    """
    return _frames(stored, name) if compression == "zst" else _streams(compression, stored, name)


def ahead(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same blocks, a few of them taken before they are asked for, by a thread of its own."""
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = deque(thread.submit(next, blocks, b"") for _ in range(_BLOCKS_AHEAD))
        try:
            while block := waiting.popleft().result():
                waiting.append(thread.submit(next, blocks, b""))
                yield block
        finally:
            for future in waiting:
                future.cancel()


def _streams(compression: str, stored: Iterator[bytes], name: bytes) -> Iterator[bytes]:
    begin, others_follow, zeros_follow = _STREAMS[compression]
    source = Forward(stored)
    decoder, fed_bytes = begin(), _FIRST_FED_BYTES
    data = b""
    while True:
        if decoder.needs_input and not data:
            data = source.some(fed_bytes)
            fed_bytes = min(2 * fed_bytes, _MOST_FED_BYTES)
            if not data:
                raise damaged(name, f"its {compression} stream is cut off")
        try:
            content = decoder.decompress(data, BLOCK_BYTES)
        except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
            raise _not_decoded(name, compression, error) from error
        data = b""
        if content:
            yield content
        if decoder.eof:
            data = decoder.unused_data or source.some(_FIRST_FED_BYTES)
            while zeros_follow and data and not (data := data.lstrip(b"\0")):
                data = source.some(_FIRST_FED_BYTES)
            if not data:
                return
            if not others_follow:
                raise damaged(name, f"bytes follow the end of its {compression} stream")
            decoder, fed_bytes = begin(), _FIRST_FED_BYTES


def _not_decoded(name: bytes, compression: str, error: Exception) -> Exception:
    if "Memory usage limit" in str(error):
        return damaged(
            name,
            f"it needs a window of more than {MOST_WINDOW_BYTES >> 20} MiB",
            "leave it out or compress it with a smaller one",
        )
    return damaged(name, f"its {compression} stream cannot be decoded ({error})")


def _frames(stored: Iterator[bytes], name: bytes) -> Iterator[bytes]:
    """zstd, block by block: a block gives 128 KiB at most, so that content never comes in larger pieces."""
    source = Forward(stored)
    decompressor = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES)
    while beginning := source.peek(_LONGEST_ZSTD_HEADER):
        if _is_skippable(beginning):
            if len(beginning) < 8:
                raise _cut_off(name)
            end = source.tell() + 8 + int.from_bytes(beginning[4:8], "little")
            if source.seek(end) < end:
                raise _cut_off(name)
            continue
        if not beginning.startswith(_ZSTD_MAGIC):
            short = len(beginning) < len(_ZSTD_MAGIC)
            raise _cut_off(name) if short else damaged(name, "bytes follow the end of its zstd frame")
        yield from _frame(source, beginning, decompressor, name)


def _frame(source: Forward, beginning: bytes, decompressor: zstandard.ZstdDecompressor, name: bytes) -> Iterator[bytes]:
    try:
        parameters = zstandard.get_frame_parameters(beginning)
        header = source.read(zstandard.frame_header_size(beginning))
    except zstandard.ZstdError as error:
        raise (_cut_off(name) if len(beginning) < _LONGEST_ZSTD_HEADER else _bad_frame(name, error)) from error
    if parameters.window_size > MOST_WINDOW_BYTES:
        raise damaged(
            name,
            f"it needs a window of {parameters.window_size >> 20:,} MiB, more than {MOST_WINDOW_BYTES >> 20}",
            "leave it out or compress it with a smaller one (zstd --long=27)",
        )
    if parameters.dict_id:
        raise damaged(name, f"it needs the zstd dictionary {parameters.dict_id}", "decompress it beforehand")
    decoder = decompressor.decompressobj()
    pending = [header]
    blocks = 0
    last = False
    while not last:
        head = source.read(3)
        if len(head) < 3:
            raise _cut_off(name)
        bits = int.from_bytes(head, "little")
        last, kind, size = bool(bits & 1), bits >> 1 & 3, bits >> 3
        if kind == _RESERVED or size > _ZSTD_BLOCK_BYTES:
            raise _bad_frame(name, "a block of an impossible kind or size")
        body_bytes = (1 if kind == _RLE else size) + (4 if last and parameters.has_checksum else 0)
        body = source.read(body_bytes)
        if len(body) < body_bytes:
            raise _cut_off(name)
        pending += (head, body)
        blocks += 1
        if last or blocks == BLOCK_BYTES // _ZSTD_BLOCK_BYTES:
            try:
                content = decoder.decompress(b"".join(pending))
            except zstandard.ZstdError as error:
                raise _bad_frame(name, error) from error
            pending.clear()
            blocks = 0
            if content:
                yield content
    if not decoder.eof:
        raise _cut_off(name)


def _cut_off(name: bytes) -> Exception:
    return damaged(name, "its zstd frame is cut off")


def _bad_frame(name: bytes, error: Exception | str) -> Exception:
    return damaged(name, f"its zstd frame cannot be decoded ({error})")


def _is_skippable(beginning: bytes) -> bool:
    return beginning[1:4] == b"\x2a\x4d\x18" and beginning[0] >> 4 == 5


def _is_lzma(beginning: bytes) -> bool:
    """The old format has no magic: a plausible header must do, as for the xz tools."""
    if len(beginning) < 14:
        return False
    properties, window, size = struct.unpack_from("<BIQ", beginning)
    is_window = window == 0xFFFFFFFF or any(window in (1 << n, 3 << n - 1) for n in range(1, 32))
    return (
        properties < 225 and is_window and (size == (1 << 64) - 1 or size < _MOST_LZMA_CONTENT) and beginning[13] == 0
    )
