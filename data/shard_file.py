"""One shard: a valid zstd file that knows its frames and documents, and in which every byte is checked.

    header       skippable frame   magic, version, bytes of a full frame
    frames       zstd frames       256 KiB of raw bytes each, independent, with content size and checksum
    footer       skippable frame   head (sizes, content hash) · frame table · hash of both · piece table
    seek table   skippable frame   as zstd's seekable format defines it, so that other tools find a frame too

``zstd -d`` gives the raw bytes back: documents stand one after another with nothing between them. The piece table
says where each begins. A piece is a whole document or a consecutive part of one, and two flags tell whether its
first byte begins the document and its last byte ends it.

What is checked against what: the index of the corpus holds the hash of the frame table; the frame table holds the
hash of each packed frame and of the piece rows that touch it; header and seek table hold nothing that is not also
elsewhere, and are compared whole. A reader checks a frame and its rows before it decodes them, so opening a shard
costs little and no damaged byte gets out. All numbers are little-endian.

Source: zstd's "Seekable Format" 0.1.0 for the seek table, RFC 8878 for frames and skippable frames.
"""

import contextlib
import os
import struct
import weakref
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from bytelm.data.frame_packer import FramePacker
from bytelm.errors import ShardError

FRAME_BYTES: Final = 256 << 10
"""Raw bytes of every frame but a shard's last."""

MOST_PIECES: Final = 1 << 20
"""A shard with this many pieces takes no further document: its piece table is held in memory while it is written."""

STARTS: Final = 1
ENDS: Final = 2
"""Flags of a piece: its first byte begins a document, its last byte ends one."""
MARK_SHIFT: Final = 2

_VERSION: Final = 1
_FLAGS_BIT = 48
_SKIPPABLE = struct.Struct("<II")  # magic, bytes that follow
_HEADER = struct.Struct("<II8sII")  # skippable magic, bytes that follow, magic, version, frame_bytes
_HEAD = struct.Struct("<8sIIIIIQ16s")  # magic, version, frame_bytes, frames, pieces, documents, raw bytes, content
_ROW = struct.Struct("<QIHBx")
_SEEK_ENTRY = struct.Struct("<II")  # packed bytes, raw bytes
_SEEK_END = struct.Struct("<IBI")  # frames, descriptor, magic
_MAGIC = b"bytelm\r\n"
_HEADER_MAGIC, _FOOTER_MAGIC, _SEEK_MAGIC, _SEEK_END_MAGIC = 0x184D2A50, 0x184D2A51, 0x184D2A5E, 0x8F92EAB1
_HASH_BYTES = 16
_FRAME_FLAGS, _HAS_CHECKSUM, _CHECKSUM_BYTES = 4, 0b100, 4  # of a zstd frame: the byte behind its magic, RFC 8878
_FRAME_TYPE = np.dtype(
    [("packed_bytes", "<u4"), ("first_piece", "<u4"), ("packed_hash", "<u8"), ("pieces_hash", "<u8")]
)
_ROW_TYPE = np.dtype([("start", "<u8"), ("source", "<u4"), ("kind", "<u2"), ("flags", "u1"), ("zero", "u1")])
_FRAMES_AT_ONCE = 16
_ROWS_OF_FRAME = "the piece table of frame {}"
_REMEDY = "ingest the sources again"


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What a finished shard holds.

    Attributes:
        raw_bytes: Bytes of its documents.
        packed_bytes: Bytes of the file.
        pieces: Rows of the piece table.
        documents: Pieces that begin their document.
        hash: Hash of the frame table, hexadecimal; with it every byte of the file is checked.
        content: Hash of raw bytes and document boundaries, hexadecimal; the same at every compression level.
    """

    raw_bytes: int
    packed_bytes: int
    pieces: int
    documents: int
    hash: str
    content: str


class RangeReader(Protocol):
    """A file that is read in parts, wherever it is; several threads may read it."""

    @property
    def name(self) -> str:
        """Its path or address, for messages."""
        ...

    def size(self) -> int:
        """Its bytes.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be read.
        """
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Some of its bytes; fewer where it ends before ``offset + length``.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be read.
        """
        ...

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill memory with its bytes; how many they are, fewer where it ends.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be read.
        """
        ...

    def read_anew(self, offset: int, length: int) -> bytes:
        """The same from where the file comes from: what was read before was found damaged and may be a copy."""
        ...


class LocalFile:
    """A file of this machine, open as long as somebody holds it.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def size(self) -> int:
        """See ``RangeReader``."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """See ``RangeReader``."""
        return os.pread(self._descriptor, length, offset)

    def read_into(self, offset: int, out: memoryview) -> int:
        """See ``RangeReader``."""
        return os.preadv(self._descriptor, [out], offset)

    def read_anew(self, offset: int, length: int) -> bytes:
        """See ``RangeReader``."""
        return os.pread(self._descriptor, length, offset)


@dataclass(frozen=True, slots=True)
class FramePieces:
    """The pieces that touch a frame, or frames that follow each other: P of them.

    Attributes:
        rows: Their rows of the piece table as they are on disk, and the row of the piece with the next frame's first
            byte, if there is a next frame and that is another piece.
        begin: The first byte within the shard.
        size: Raw bytes.
        is_last: No frame follows.
    """

    rows: bytes
    begin: int
    size: int
    is_last: bool

    @property
    def rows_P(self) -> NDArray[np.void]:  # noqa: N802
        """All of ``rows``: where a piece begins within the shard, its source, kind and flags."""
        return np.frombuffer(self.rows, _ROW_TYPE)

    @property
    def offsets_P(self) -> NDArray[np.int64]:  # noqa: N802
        """Byte of the frame at which each begins, ascending from 0."""
        return (join_marks([self]) >> MARK_SHIFT).astype(np.int64)

    @property
    def starts_P(self) -> NDArray[np.bool_]:  # noqa: N802
        """Whether the byte there begins a document."""
        return join_marks([self]) & STARTS != 0

    @property
    def ends_P(self) -> NDArray[np.bool_]:  # noqa: N802
        """Whether the last byte that each has in this frame ends its document."""
        return join_marks([self]) & ENDS != 0

    @property
    def follows_end_P(self) -> NDArray[np.bool_]:  # noqa: N802
        """Whether the byte before each, in the same frame, ends a document; False for the first."""
        return np.concatenate([[False], self.ends_P[:-1]])

    @property
    def continues(self) -> bool:
        """Whether the first one began in an earlier frame."""
        return int.from_bytes(self.rows[:8], "little") < self.begin

    @property
    def ends_document(self) -> bool:
        """Whether the frame's last byte ends a document."""
        return bool(self.ends_P[-1])

    @property
    def sources_P(self) -> NDArray[np.int64]:  # noqa: N802
        """Index of the source that each comes from."""
        return self._touching["source"].astype(np.int64)

    @property
    def kinds_P(self) -> NDArray[np.int64]:  # noqa: N802
        """Index of its kind."""
        return self._touching["kind"].astype(np.int64)

    @property
    def _touching(self) -> NDArray[np.void]:
        rows = self.rows_P
        return rows[:-1] if int(rows["start"][-1]) >= self.begin + self.size else rows


def join_marks(frames: Sequence[FramePieces]) -> NDArray[np.int64]:
    """The pieces of frames that are put one behind the other, in one number each.

    Args:
        frames: F of them, at least one, of any shards.

    Returns:
        int64, ascending: where each piece begins in the joined bytes, shifted left by ``MARK_SHIFT``, with ``STARTS``
        if a document begins there and ``ENDS`` if the last byte that the piece has in its frame ends one.
    """
    words = np.frombuffer(b"".join([frame.rows for frame in frames]), "<i8")  # start; source, kind and flags
    rows_F = np.array([len(frame.rows) // _ROW.size for frame in frames])
    begin_F = np.array([frame.begin for frame in frames])
    size_F = np.array([frame.size for frame in frames])
    is_last_F = np.array([frame.is_last for frame in frames])
    end_F = np.cumsum(size_F)
    joined_F = end_F - size_F
    last_F = np.cumsum(rows_F) - 1
    first_F = last_F - rows_F + 1
    offsets, flags = words[::2] + np.repeat(joined_F - begin_F, rows_F), words[1::2] >> _FLAGS_BIT
    flags[first_F[offsets[first_F] < joined_F]] &= ENDS  # it began in an earlier frame
    offsets[first_F] = np.maximum(offsets[first_F], joined_F)
    behind_F = offsets[last_F] >= end_F
    goes_on_F = np.where(behind_F, offsets[last_F] > end_F, ~is_last_F)
    flags[(last_F - behind_F)[goes_on_F]] &= STARTS
    marks = offsets << MARK_SHIFT | flags
    return np.delete(marks, last_F[behind_F])


@dataclass(frozen=True, slots=True)
class PieceTable:
    """All pieces of a shard, P of them.

    Attributes:
        begins_P: Where each begins within the shard, int64, ascending.
        lengths_P: Bytes of each, int64.
        starts_P: Whether its first byte begins a document.
        ends_P: Whether its last byte ends a document.
        sources_P: Index of the source that it comes from.
        kinds_P: Index of its kind.
    """

    begins_P: NDArray[np.int64]
    lengths_P: NDArray[np.int64]
    starts_P: NDArray[np.bool_]
    ends_P: NDArray[np.bool_]
    sources_P: NDArray[np.int64]
    kinds_P: NDArray[np.int64]

    @classmethod
    def of(cls, rows: NDArray[np.void], raw_bytes: int) -> "PieceTable":
        """The pieces that rows of the table on disk describe."""
        begins = rows["start"].astype(np.int64)
        return cls(
            begins_P=begins,
            lengths_P=np.diff(begins, append=raw_bytes),
            starts_P=rows["flags"] & STARTS != 0,
            ends_P=rows["flags"] & ENDS != 0,
            sources_P=rows["source"].astype(np.int64),
            kinds_P=rows["kind"].astype(np.int64),
        )

    def content_hash(self, raw_digest: bytes) -> bytes:
        """``ShardSummary.content``: not source and kind, for where a document came from is not what it says.

        Args:
            raw_digest: XXH3 of all raw bytes, 128 bits.
        """
        flags = np.where(self.starts_P, STARTS, 0) | np.where(self.ends_P, ENDS, 0)
        return xxhash.xxh3_128_digest(raw_digest + self.begins_P.astype("<u8").tobytes() + flags.astype("u1").tobytes())


class ShardWriter:
    """Writes one shard to an open file, in constant memory.

    Args:
        file: Binary file, empty, open for writing.
        packer: Packs the frames.
        frame_bytes: Raw bytes of a frame.

    Attributes:
        raw_bytes: Bytes that were appended.
        packed_bytes: Bytes of the file so far; some of what was appended may still be packed.
    """

    def __init__(self, file: BinaryIO, packer: FramePacker, *, frame_bytes: int = FRAME_BYTES) -> None:
        self._file = file
        self._frame_bytes = frame_bytes
        self._packer = packer
        self._handed_bytes = packer.frames_at_once * frame_bytes
        self._waiting: deque[Future[list[bytes]]] = deque()
        self._pending = bytearray()
        self._rows = bytearray()
        self._packed_sizes = array("I")
        self._packed_hashes = array("Q")
        self._content = xxhash.xxh3_128()
        self._documents = 0
        self.raw_bytes = 0
        self.packed_bytes = file.write(_header(frame_bytes))

    @property
    def pieces(self) -> int:
        """Rows of the piece table so far."""
        return len(self._rows) // _ROW.size

    def append(self, data: bytes, *, starts: bool, ends: bool, source: int, kind: int, continues: bool = False) -> None:
        """Append some consecutive bytes of a document.

        Args:
            data: At least one byte.
            starts: The first of them begins the document.
            ends: The last of them ends the document.
            source: Index of the source, below 2^32.
            kind: Index of the kind, below 2^16.
            continues: They follow directly on the last bytes appended, and belong to the same piece.
        """
        assert data
        if continues:
            start, source, kind, flags = _ROW.unpack_from(self._rows, len(self._rows) - _ROW.size)
            _ROW.pack_into(
                self._rows, len(self._rows) - _ROW.size, start, source, kind, flags & ~ENDS | (ENDS if ends else 0)
            )
        else:
            self._rows += _ROW.pack(self.raw_bytes, source, kind, (STARTS if starts else 0) | (ENDS if ends else 0))
            self._documents += starts
        self._pending += data
        self._content.update(data)
        self.raw_bytes += len(data)
        if len(self._pending) >= self._handed_bytes:
            whole = len(self._pending) - len(self._pending) % self._frame_bytes
            rest = self._pending[whole:]
            del self._pending[whole:]
            self._pack(self._pending)
            self._pending = rest

    def finish(self) -> ShardSummary:
        """Write what is pending, the footer and the seek table. The file stays open.

        Returns:
            What the shard holds.
        """
        assert self.raw_bytes
        if self._pending:
            self._pack(self._pending)
        self._write_packed(most_waiting=0)
        rows = np.frombuffer(bytes(self._rows), _ROW_TYPE)
        frames = np.zeros(len(self._packed_sizes), _FRAME_TYPE)
        frames["packed_bytes"] = self._packed_sizes
        frames["packed_hash"] = self._packed_hashes
        firsts = np.arange(len(frames), dtype=np.uint64) * np.uint64(self._frame_bytes)
        frames["first_piece"] = np.searchsorted(rows["start"], firsts, side="right") - 1
        # Each hash covers the rows of a frame's pieces and, where there is one, of the next frame's first.
        ends = np.append(frames["first_piece"][1:] + 1, len(rows))
        for frame, (first, end) in enumerate(zip(frames["first_piece"].tolist(), ends.tolist(), strict=True)):
            frames["pieces_hash"][frame] = xxhash.xxh3_64_intdigest(rows[first:end].tobytes())
        content = PieceTable.of(rows, self.raw_bytes).content_hash(self._content.digest())
        head = _HEAD.pack(
            _MAGIC,
            _VERSION,
            self._frame_bytes,
            len(frames),
            len(rows),
            self._documents,
            self.raw_bytes,
            content,
        )
        checked = head + frames.tobytes()
        digest = xxhash.xxh3_128_digest(checked)
        footer = checked + digest + rows.tobytes()
        self.packed_bytes += self._file.write(_SKIPPABLE.pack(_FOOTER_MAGIC, len(footer)) + footer)
        self.packed_bytes += self._file.write(
            _seek_table(frames["packed_bytes"], self.raw_bytes, self._frame_bytes, len(footer))
        )
        return ShardSummary(
            raw_bytes=self.raw_bytes,
            packed_bytes=self.packed_bytes,
            pieces=len(rows),
            documents=self._documents,
            hash=digest.hex(),
            content=content.hex(),
        )

    def _pack(self, raw: bytearray) -> None:
        self._waiting.append(self._packer.pack(raw, self._frame_bytes))
        self._write_packed(self._packer.most_waiting)

    def _write_packed(self, most_waiting: int) -> None:
        while len(self._waiting) > most_waiting:
            for packed in self._waiting.popleft().result():
                self._packed_sizes.append(len(packed))
                self._packed_hashes.append(xxhash.xxh3_64_intdigest(packed))
                self.packed_bytes += self._file.write(packed)


class ShardReader:
    """Reads single frames of one shard; safe to share between threads.

    Opening reads and checks the header, the frame table and the seek table, and holds 24 bytes a frame.

    Args:
        source: The shard: a path, or whatever gives its bytes.
        expected_hash: ``ShardSummary.hash`` as the index has it; None trusts the file's own.

    Raises:
        ShardError: Missing, truncated, damaged, of an unknown version, or not the expected one.
    """

    def __init__(self, source: Path | RangeReader, *, expected_hash: str | None = None) -> None:
        self._name = str(source) if isinstance(source, Path) else source.name
        with self._refusals_named():
            self._source: RangeReader = LocalFile(source) if isinstance(source, Path) else source
            self.packed_bytes = self._source.size()
        self.frame_bytes = self._check_header()
        footer_offset, seek_table = self._find_footer()
        self._read_tables(footer_offset, expected_hash)
        self._check_seek_table(footer_offset, seek_table)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self._packed_hash_F)

    def frame_size(self, frame: int) -> int:
        """Raw bytes of a frame."""
        return min(self.frame_bytes, self.raw_bytes - frame * self.frame_bytes)

    def frame_place(self, frame: int) -> tuple[int, int]:
        """Where a frame's packed bytes are: offset and length."""
        offset = int(self._offsets_F[frame])
        return offset, int(self._offsets_F[frame + 1]) - offset

    def read_frame(self, frame: int, out: memoryview, decompressor: zstandard.ZstdDecompressor) -> FramePieces:
        """Decode one frame; see ``read_frames``."""
        return self.read_frames(frame, 1, out, decompressor)

    def read_frames(
        self, first: int, count: int, out: memoryview, decompressor: zstandard.ZstdDecompressor
    ) -> FramePieces:
        """Decode frames that follow each other, after their packed bytes and their piece rows have passed their hashes.

        Args:
            first: The first of them.
            count: At least 1.
            out: Writable, their raw bytes.
            decompressor: One that no other thread uses at the same time.

        Returns:
            The pieces that touch the frames.

        Raises:
            ShardError: A frame or its rows are damaged; ``out`` then holds nothing of use.
        """
        pieces = self.frame_pieces(first, count)
        assert len(out) == pieces.size
        self.decode_frames(first, count, out, decompressor)
        return pieces

    def decode_frames(self, first: int, count: int, out: memoryview, decompressor: zstandard.ZstdDecompressor) -> None:
        """The same without the pieces; where ``out`` is shorter than the last frame needs, it gets the beginning."""
        for part in range(first, first + count, _FRAMES_AT_ONCE):
            end = min(part + _FRAMES_AT_ONCE, first + count)
            begin = (part - first) * self.frame_bytes
            raw_bytes = min(self.raw_bytes, end * self.frame_bytes) - part * self.frame_bytes
            self._decode(part, end, out[begin : begin + raw_bytes], raw_bytes, decompressor)

    def _decode(
        self, first: int, end: int, out: memoryview, raw_bytes: int, decompressor: zstandard.ZstdDecompressor
    ) -> None:
        offset, *ends = self._offsets_F[first : end + 1].tolist()
        begins = [offset, *ends[:-1]]
        packed = self._read_sound(begins, ends, self._packed_hash_F[first:end].tolist(), "frame {}", first)
        for frame, begin, behind in zip(range(first, end), begins, ends, strict=True):
            at = (frame - first) * self.frame_bytes
            frame_bytes = min(self.frame_bytes, raw_bytes - at)
            try:
                whole = _decode_sound(
                    packed[begin - offset : behind - offset], out[at : at + frame_bytes], frame_bytes, decompressor
                )
            except zstandard.ZstdError as error:
                raise self._damaged(f"frame {frame} ({error})", begin, behind - begin) from error
            if not whole:
                raise self._damaged(f"frame {frame}", begin, behind - begin)

    def frame_pieces(self, first: int, count: int = 1) -> FramePieces:
        """The pieces that touch frames that follow each other, without the frames' bytes.

        Raises:
            ShardError: Their rows are damaged.
        """
        end = first + count
        rows = self._first_piece_F[first : end + 1].tolist()
        # Of each frame its rows and the one of the next frame's first byte: it tells whether the last piece goes on.
        ends = [self._rows_offset + (row + 1) * _ROW.size for row in rows[1:]]
        if end == self.frames:
            ends.append(self._rows_offset + self.pieces * _ROW.size)
        begins = [self._rows_offset + row * _ROW.size for row in rows[:count]]
        content = bytes(self._read_sound(begins, ends, self._pieces_hash_F[first:end].tolist(), _ROWS_OF_FRAME, first))
        size = min(self.raw_bytes, end * self.frame_bytes) - first * self.frame_bytes
        return FramePieces(content, first * self.frame_bytes, size, end == self.frames)

    def fetch(self, first: int, count: int) -> None:
        """Read frames that follow each other without a look at them.

        Raises:
            ShardError: They cannot be read.
        """
        with self._refusals_named():
            offset, _ = self.frame_place(first)
            self._source.read(offset, int(self._offsets_F[first + count]) - offset)
            rows = self._first_piece_F[first : first + count + 1].tolist()
            end = self.pieces if first + count == self.frames else rows[-1] + 1
            self._source.read(self._rows_offset + rows[0] * _ROW.size, (end - rows[0]) * _ROW.size)

    def read_pieces(self) -> PieceTable:
        """Every row of the piece table, checked; no frame is read.

        Raises:
            ShardError: A part of the table is damaged.
        """
        content = self.frame_pieces(0, self.frames).rows
        return PieceTable.of(np.frombuffer(content, _ROW_TYPE), self.raw_bytes)

    def _read(self, offset: int, length: int, what: str) -> bytes:
        damaged = self._damaged(what, offset, length)
        if offset < 0 or offset + length > self.packed_bytes:  # a damaged length could ask for all memory there is
            raise damaged
        with self._refusals_named():
            content = self._source.read(offset, length)
        if len(content) != length:
            raise damaged
        return content

    def _read_sound(self, begins: list[int], ends: list[int], hashes: list[int], what: str, first: int) -> memoryview:
        """The bytes from the first begin to the last end, writable, after each part has passed its hash."""
        offset, length = begins[0], ends[-1] - begins[0]
        content = np.empty(length, np.uint8).data
        try:
            read = self._source.read_into(offset, content)
            if _first_unsound(content[:read], begins, ends, hashes) is not None:
                content = memoryview(bytearray(self._source.read_anew(offset, length)))
                unsound = _first_unsound(content, begins, ends, hashes)
                if unsound is not None:
                    begin, end = begins[unsound], ends[unsound]
                    raise self._damaged(what.format(first + unsound), begin, end - begin)
        except OSError as error:
            raise self._refused(error) from error
        return content

    def _check_header(self) -> int:
        if self.packed_bytes < _HEADER.size:
            raise ShardError(f"shard {self._name} is truncated to {self.packed_bytes} bytes; {_REMEDY}")
        header = self._read(0, _HEADER.size, "the header")
        _, _, magic, version, frame_bytes = _HEADER.unpack(header)
        if magic == _MAGIC and version != _VERSION:
            raise ShardError(
                f"shard {self._name} has version {version}, this bytelm reads {_VERSION}; "
                f"use the bytelm that made it, or {_REMEDY}"
            )
        if header != _header(frame_bytes) or not frame_bytes:
            raise self._damaged("the header", 0, _HEADER.size)
        return frame_bytes

    def _find_footer(self) -> tuple[int, bytes]:
        """Offset of the footer's skippable frame, and the whole seek table."""
        place = self.packed_bytes - _SEEK_END.size
        frames, _, magic = _SEEK_END.unpack(self._read(place, _SEEK_END.size, "the end of the seek table"))
        length = _SKIPPABLE.size + frames * _SEEK_ENTRY.size + _SEEK_END.size
        if magic != _SEEK_END_MAGIC or frames < 3 or length > self.packed_bytes:
            raise ShardError(
                f"shard {self._name} does not end in a seek table: it is truncated or damaged at "
                f"bytes {place}-{self.packed_bytes}; {_REMEDY}"
            )
        seek_table = self._read(self.packed_bytes - length, length, "the seek table")
        last_entry = length - _SEEK_END.size - _SEEK_ENTRY.size
        footer_length, _ = _SEEK_ENTRY.unpack_from(seek_table, last_entry)
        return self.packed_bytes - length - footer_length, seek_table

    def _read_tables(self, footer_offset: int, expected_hash: str | None) -> None:
        head_offset = footer_offset + _SKIPPABLE.size
        head = self._read(head_offset, _HEAD.size, "the footer")
        magic, version, frame_bytes, frames, pieces, documents, raw_bytes, content = _HEAD.unpack(head)
        table_offset = head_offset + _HEAD.size
        table = self._read(table_offset, frames * _FRAME_TYPE.itemsize, "the frame table")
        digest = self._read(table_offset + len(table), _HASH_BYTES, "the hash of the frame table")
        if magic != _MAGIC or version != _VERSION or xxhash.xxh3_128_digest(head + table) != digest:
            raise self._damaged("the frame table", head_offset, _HEAD.size + len(table) + _HASH_BYTES)
        if expected_hash is not None and digest.hex() != expected_hash:
            raise ShardError(
                f"shard {self._name} has hash {digest.hex()}, the index names {expected_hash}: it belongs to another "
                f"corpus or was replaced; restore it, or {_REMEDY}"
            )
        rows = np.frombuffer(table, _FRAME_TYPE)
        self._offsets_F = _HEADER.size + np.concatenate([[0], np.cumsum(rows["packed_bytes"], dtype=np.int64)])
        self._first_piece_F = rows["first_piece"].copy()
        self._packed_hash_F = rows["packed_hash"].copy()
        self._pieces_hash_F = rows["pieces_hash"].copy()
        self._rows_offset = table_offset + len(table) + _HASH_BYTES
        self.pieces, self.documents, self.raw_bytes = pieces, documents, raw_bytes
        self.content = content.hex()
        if frame_bytes != self.frame_bytes or frames != -(-raw_bytes // frame_bytes):
            raise self._damaged("the footer", head_offset, _HEAD.size)

    def _check_seek_table(self, footer_offset: int, found: bytes) -> None:
        footer_bytes = self._rows_offset + self.pieces * _ROW.size - footer_offset - _SKIPPABLE.size
        footer_header = self._read(footer_offset, _SKIPPABLE.size, "the footer")
        if footer_header != _SKIPPABLE.pack(_FOOTER_MAGIC, footer_bytes) or footer_offset != self._offsets_F[-1]:
            raise self._damaged("the footer", footer_offset, _SKIPPABLE.size)
        packed_sizes_F = np.diff(self._offsets_F)
        if found != _seek_table(packed_sizes_F, self.raw_bytes, self.frame_bytes, footer_bytes):
            raise self._damaged("the seek table", self.packed_bytes - len(found), len(found))

    def _damaged(self, what: str, offset: int, length: int) -> ShardError:
        return ShardError(f"shard {self._name}: {what} (bytes {offset}-{offset + length}) is damaged; {_REMEDY}")

    @contextlib.contextmanager
    def _refusals_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> ShardError:
        if isinstance(error, FileNotFoundError):
            return ShardError(f"shard {self._name} is missing; restore it, or {_REMEDY}")
        cause = error.strerror or str(error)
        return ShardError(
            f"shard {self._name} cannot be read: {cause}; check the disk, the network and the permissions"
        )


def _first_unsound(content: memoryview, begins: list[int], ends: list[int], hashes: list[int]) -> int | None:
    offset = begins[0]
    for number, (begin, end, expected) in enumerate(zip(begins, ends, hashes, strict=True)):
        if xxhash.xxh3_64_intdigest(content[begin - offset : end - offset]) != expected:
            return number
    return None


def _decode_sound(
    packed: memoryview, out: memoryview, raw_bytes: int, decompressor: zstandard.ZstdDecompressor
) -> bool:
    """Decode a frame whose packed bytes have passed their hash; whether it held ``raw_bytes``, or ``out`` is shorter.

    zstd would compute its own checksum over the raw bytes, 32 bits and a twelfth of the time; the hash that has been
    compared has 64, and decoding adds nothing to what it covers. So the flag that asks for it is taken back.
    """
    if packed[_FRAME_FLAGS] & _HAS_CHECKSUM:
        packed[_FRAME_FLAGS] &= ~_HAS_CHECKSUM
        packed = packed[:-_CHECKSUM_BYTES]
    with decompressor.stream_reader(packed) as stream:
        return stream.readinto(out) == len(out) and (len(out) < raw_bytes or not stream.read(1))


def tables_offset(packed_bytes: int, frames: int, pieces: int) -> int:
    """Where the tables of a whole shard begin, behind its frames."""
    footer = _SKIPPABLE.size + _HEAD.size + frames * _FRAME_TYPE.itemsize + _HASH_BYTES + pieces * _ROW.size
    seek_table = _SKIPPABLE.size + (frames + 2) * _SEEK_ENTRY.size + _SEEK_END.size
    return packed_bytes - seek_table - footer


def _header(frame_bytes: int) -> bytes:
    return _HEADER.pack(_HEADER_MAGIC, _HEADER.size - _SKIPPABLE.size, _MAGIC, _VERSION, frame_bytes)


def _seek_table(packed_sizes_F: NDArray[np.integer], raw_bytes: int, frame_bytes: int, footer_bytes: int) -> bytes:
    # Skippable frames stand in the table with 0 raw bytes, because offsets are sums of the entries before.
    entries = np.zeros((len(packed_sizes_F) + 2, 2), "<u4")
    entries[0, 0] = _HEADER.size
    entries[1:-1, 0] = packed_sizes_F
    entries[1:-1, 1] = frame_bytes
    entries[-2, 1] = raw_bytes - (len(packed_sizes_F) - 1) * frame_bytes
    entries[-1, 0] = _SKIPPABLE.size + footer_bytes
    end = _SEEK_END.pack(len(entries), 0, _SEEK_END_MAGIC)
    return _SKIPPABLE.pack(_SEEK_MAGIC, entries.nbytes + len(end)) + entries.tobytes() + end
