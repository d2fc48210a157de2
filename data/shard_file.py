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
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from bytelm.errors import ShardError

FRAME_BYTES: Final = 256 << 10
"""Raw bytes of every frame but a shard's last."""

MOST_PIECES: Final = 1 << 20
"""A shard with this many pieces takes no further document: its piece table is held in memory while it is written."""

_VERSION: Final = 1
_STARTS, _ENDS = 1, 2
_SKIPPABLE = struct.Struct("<II")  # magic, bytes that follow
_HEADER = struct.Struct("<II8sII")  # skippable magic, bytes that follow, magic, version, frame_bytes
_HEAD = struct.Struct("<8sIIIIIQ16s")  # magic, version, frame_bytes, frames, pieces, documents, raw bytes, content
_ROW = struct.Struct("<QIHBx")
_SEEK_ENTRY = struct.Struct("<II")  # packed bytes, raw bytes
_SEEK_END = struct.Struct("<IBI")  # frames, descriptor, magic
_MAGIC = b"bytelm\r\n"
_HEADER_MAGIC, _FOOTER_MAGIC, _SEEK_MAGIC, _SEEK_END_MAGIC = 0x184D2A50, 0x184D2A51, 0x184D2A5E, 0x8F92EAB1
_HASH_BYTES = 16
_FRAME_TYPE = np.dtype(
    [("packed_bytes", "<u4"), ("first_piece", "<u4"), ("packed_hash", "<u8"), ("pieces_hash", "<u8")]
)
_ROW_TYPE = np.dtype([("start", "<u8"), ("source", "<u4"), ("kind", "<u2"), ("flags", "u1"), ("zero", "u1")])
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

    def read_anew(self, offset: int, length: int) -> bytes:
        """The same from where the file comes from: what ``read`` gave was found damaged and may be a copy."""
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
        self._descriptor = -1
        self.name = str(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def size(self) -> int:
        """See ``RangeReader``."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """See ``RangeReader``."""
        return os.pread(self._descriptor, length, offset)

    def read_anew(self, offset: int, length: int) -> bytes:
        """See ``RangeReader``."""
        return os.pread(self._descriptor, length, offset)


@dataclass(frozen=True, slots=True)
class FramePieces:
    """The pieces that touch one frame, P of them.

    Attributes:
        offsets_P: Byte of the frame at which each begins, int64, ascending from 0.
        starts_P: Whether the byte there begins a document.
        ends_P: Whether the last byte that each has in this frame ends its document.
        continues: Whether the first one began in an earlier frame.
        rows_P: Their rows of the piece table.
    """

    offsets_P: NDArray[np.int64]
    starts_P: NDArray[np.bool_]
    ends_P: NDArray[np.bool_]
    continues: bool
    rows_P: NDArray[np.void]

    @property
    def follows_end_P(self) -> NDArray[np.bool_]:  # noqa: N802
        """Whether the byte before each, in the same frame, ends a document; False for the first."""
        return np.concatenate([[False], self.ends_P[:-1]])

    @property
    def ends_document(self) -> bool:
        """Whether the frame's last byte ends a document."""
        return bool(self.ends_P[-1])

    @property
    def sources_P(self) -> NDArray[np.int64]:  # noqa: N802
        """Index of the source that each comes from."""
        return self.rows_P["source"].astype(np.int64)

    @property
    def kinds_P(self) -> NDArray[np.int64]:  # noqa: N802
        """Index of its kind."""
        return self.rows_P["kind"].astype(np.int64)


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
            starts_P=rows["flags"] & _STARTS != 0,
            ends_P=rows["flags"] & _ENDS != 0,
            sources_P=rows["source"].astype(np.int64),
            kinds_P=rows["kind"].astype(np.int64),
        )

    def content_hash(self, raw_digest: bytes) -> bytes:
        """``ShardSummary.content``: not source and kind, for where a document came from is not what it says.

        Args:
            raw_digest: XXH3 of all raw bytes, 128 bits.
        """
        flags = np.where(self.starts_P, _STARTS, 0) | np.where(self.ends_P, _ENDS, 0)
        return xxhash.xxh3_128_digest(raw_digest + self.begins_P.astype("<u8").tobytes() + flags.astype("u1").tobytes())


class ShardWriter:
    """Writes one shard to an open file, in constant memory.

    Args:
        file: Binary file, empty, open for writing.
        level: zstd level, 1 to 22.
        frame_bytes: Raw bytes of a frame.
    """

    def __init__(self, file: BinaryIO, *, level: int, frame_bytes: int = FRAME_BYTES) -> None:
        self._file = file
        self._frame_bytes = frame_bytes
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
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
                self._rows, len(self._rows) - _ROW.size, start, source, kind, flags & ~_ENDS | (_ENDS if ends else 0)
            )
        else:
            self._rows += _ROW.pack(self.raw_bytes, source, kind, (_STARTS if starts else 0) | (_ENDS if ends else 0))
            self._documents += starts
        self._pending += data
        self._content.update(data)
        self.raw_bytes += len(data)
        written = 0
        while len(self._pending) - written >= self._frame_bytes:
            self._write_frame(memoryview(self._pending)[written : written + self._frame_bytes])
            written += self._frame_bytes
        if written:
            self._pending = self._pending[written:]

    def finish(self) -> ShardSummary:
        """Write what is pending, the footer and the seek table. The file stays open.

        Returns:
            What the shard holds.
        """
        assert self.raw_bytes
        if self._pending:
            self._write_frame(memoryview(self._pending))
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

    def _write_frame(self, raw: memoryview) -> None:
        packed = self._compressor.compress(raw)
        raw.release()
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
        """Decode one frame, after its packed bytes and its piece rows have passed their hashes.

        Args:
            frame: In [0, frames).
            out: Writable, ``frame_size(frame)`` bytes; where it is shorter, it gets the beginning of the frame.
            decompressor: One that no other thread uses at the same time.

        Returns:
            The pieces that touch the frame.

        Raises:
            ShardError: The frame or its rows are damaged; ``out`` then holds nothing of use.
        """
        offset, length = self.frame_place(frame)
        packed = self._read_sound(offset, length, int(self._packed_hash_F[frame]), f"frame {frame}")
        pieces = self.frame_pieces(frame)
        assert len(out) <= self.frame_size(frame)
        try:
            with decompressor.stream_reader(packed) as stream:
                whole = stream.readinto(out) == len(out)
                whole = whole and (len(out) < self.frame_size(frame) or not stream.read(1))
        except zstandard.ZstdError as error:
            raise self._damaged(f"frame {frame} ({error})", offset, length) from error
        if not whole:
            raise self._damaged(f"frame {frame}", offset, length)
        return pieces

    def frame_pieces(self, frame: int) -> FramePieces:
        """The pieces that touch a frame, without its bytes.

        Raises:
            ShardError: Their rows are damaged.
        """
        first, end = self._piece_range(frame)
        offset, length = self._rows_offset + first * _ROW.size, (end - first) * _ROW.size
        content = self._read_sound(offset, length, int(self._pieces_hash_F[frame]), f"the piece table of frame {frame}")
        rows = np.frombuffer(content, _ROW_TYPE)
        size = self.frame_size(frame)
        offsets = rows["start"].astype(np.int64) - frame * self.frame_bytes
        continues = bool(offsets[0] < 0)
        last_offset = int(offsets[-1])
        if last_offset >= size:
            rows, offsets = rows[:-1], offsets[:-1]
        flags = rows["flags"]
        starts, ends = flags & _STARTS != 0, flags & _ENDS != 0
        if continues:
            offsets[0] = 0
            starts[0] = False
        if last_offset > size or (last_offset < size and frame + 1 < self.frames):  # it goes on behind the frame
            ends[-1] = False
        return FramePieces(offsets, starts, ends, continues, rows)

    def read_pieces(self) -> PieceTable:
        """Every row of the piece table, checked; no frame is read.

        Raises:
            ShardError: A part of the table is damaged.
        """
        content = self._read(self._rows_offset, self.pieces * _ROW.size, "the piece table")
        for frame in range(self.frames):
            first, end = (row * _ROW.size for row in self._piece_range(frame))
            if xxhash.xxh3_64_intdigest(memoryview(content)[first:end]) != int(self._pieces_hash_F[frame]):
                raise self._damaged(f"the piece table of frame {frame}", self._rows_offset + first, end - first)
        return PieceTable.of(np.frombuffer(content, _ROW_TYPE), self.raw_bytes)

    def _piece_range(self, frame: int) -> tuple[int, int]:
        """Rows of a frame, and the one of the next frame's first byte: it tells whether the last piece goes on."""
        end = int(self._first_piece_F[frame + 1]) + 1 if frame + 1 < self.frames else self.pieces
        return int(self._first_piece_F[frame]), end

    def _read(self, offset: int, length: int, what: str) -> bytes:
        damaged = self._damaged(what, offset, length)
        if offset < 0 or offset + length > self.packed_bytes:  # a damaged length could ask for all memory there is
            raise damaged
        with self._refusals_named():
            content = self._source.read(offset, length)
        if len(content) != length:
            raise damaged
        return content

    def _read_sound(self, offset: int, length: int, expected_hash: int, what: str) -> bytes:
        try:
            content = self._source.read(offset, length)
            if xxhash.xxh3_64_intdigest(content) != expected_hash:
                content = self._source.read_anew(offset, length)
                if xxhash.xxh3_64_intdigest(content) != expected_hash:
                    raise self._damaged(what, offset, length)
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
