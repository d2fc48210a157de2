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

import os
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

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


@dataclass(frozen=True, slots=True)
class FramePieces:
    """The pieces that touch one frame, P of them.

    Attributes:
        offsets_P: Where each begins within the frame, int64, ascending. The first is 0: what the frame begins with.
        starts_P: Whether the byte there begins a document.
        follows_end_P: Whether the byte before it, in the same frame, ends a document; False for the first.
        sources_P: Index of the source that each comes from.
        kinds_P: Index of its kind.
        continues: Whether the first one began in an earlier frame.
        ends_document: Whether the frame's last byte ends a document.
    """

    offsets_P: NDArray[np.int64]
    starts_P: NDArray[np.bool_]
    follows_end_P: NDArray[np.bool_]
    sources_P: NDArray[np.int64]
    kinds_P: NDArray[np.int64]
    continues: bool
    ends_document: bool


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
        for frame in range(len(frames)):
            first, end = _piece_range(frames, len(rows), frame)
            frames["pieces_hash"][frame] = xxhash.xxh3_64_intdigest(rows[first:end].tobytes())
        content = xxhash.xxh3_128(
            self._content.digest() + rows["start"].tobytes() + rows["flags"].tobytes()
        )  # not source and kind: where a document came from is not what it says
        head = _HEAD.pack(
            _MAGIC,
            _VERSION,
            self._frame_bytes,
            len(frames),
            len(rows),
            self._documents,
            self.raw_bytes,
            content.digest(),
        )
        checked = head + frames.tobytes()
        digest = xxhash.xxh3_128_digest(checked)
        footer = checked + digest + rows.tobytes()
        self.packed_bytes += self._file.write(_SKIPPABLE.pack(_FOOTER_MAGIC, len(footer)) + footer)
        self.packed_bytes += self._file.write(
            _seek_table(frames["packed_bytes"].tolist(), self.raw_bytes, self._frame_bytes, len(footer))
        )
        return ShardSummary(
            raw_bytes=self.raw_bytes,
            packed_bytes=self.packed_bytes,
            pieces=len(rows),
            documents=self._documents,
            hash=digest.hex(),
            content=content.hexdigest(),
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
        path: The shard.
        expected_hash: ``ShardSummary.hash`` as the index has it; None trusts the file's own.

    Raises:
        ShardError: Missing, truncated, damaged, of an unknown version, or not the expected one.
    """

    def __init__(self, path: Path, *, expected_hash: str | None = None) -> None:
        self._path = path
        self.packed_bytes = self._size()
        self.frame_bytes = self._check_header()
        footer_offset, seek_table = self._find_footer()
        self._read_tables(footer_offset, expected_hash)
        self._check_seek_table(footer_offset, seek_table)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self._frames)

    def frame_size(self, frame: int) -> int:
        """Raw bytes of a frame."""
        return min(self.frame_bytes, self.raw_bytes - frame * self.frame_bytes)

    def read_frame(self, frame: int, out: memoryview, decompressor: zstandard.ZstdDecompressor) -> FramePieces:
        """Decode one frame, after its packed bytes and its piece rows have passed their hashes.

        Args:
            frame: In [0, frames).
            out: Writable, ``frame_size(frame)`` bytes.
            decompressor: One that no other thread uses at the same time.

        Returns:
            The pieces that touch the frame.

        Raises:
            ShardError: The frame or its rows are damaged; ``out`` then holds nothing of use.
        """
        offset, length = int(self._offsets[frame]), int(self._frames["packed_bytes"][frame])
        first, end = _piece_range(self._frames, self.pieces, frame)
        rows_offset = self._rows_offset + first * _ROW.size
        descriptor = self._open()
        try:
            packed = os.pread(descriptor, length, offset)
            row_bytes = os.pread(descriptor, (end - first) * _ROW.size, rows_offset)
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            os.close(descriptor)
        if xxhash.xxh3_64_intdigest(packed) != self._frames["packed_hash"][frame]:
            raise self._damaged(f"frame {frame}", offset, length)
        if xxhash.xxh3_64_intdigest(row_bytes) != self._frames["pieces_hash"][frame]:
            raise self._damaged(f"the piece table of frame {frame}", rows_offset, (end - first) * _ROW.size)
        assert len(out) == self.frame_size(frame)
        try:
            with decompressor.stream_reader(packed) as stream:
                whole = stream.readinto(out) == len(out) and not stream.read(1)
        except zstandard.ZstdError as error:
            raise self._damaged(f"frame {frame} ({error})", offset, length) from error
        if not whole:
            raise self._damaged(f"frame {frame}", offset, length)
        return self._pieces_of(frame, np.frombuffer(row_bytes, _ROW_TYPE))

    def read_pieces(self) -> PieceTable:
        """Every row of the piece table, checked; no frame is read.

        Raises:
            ShardError: A part of the table is damaged.
        """
        content = self._read(self._rows_offset, self.pieces * _ROW.size, "the piece table")
        for frame in range(self.frames):
            first, end = (row * _ROW.size for row in _piece_range(self._frames, self.pieces, frame))
            if xxhash.xxh3_64_intdigest(memoryview(content)[first:end]) != self._frames["pieces_hash"][frame]:
                raise self._damaged(f"the piece table of frame {frame}", self._rows_offset + first, end - first)
        rows = np.frombuffer(content, _ROW_TYPE)
        begins = rows["start"].astype(np.int64)
        return PieceTable(
            begins_P=begins,
            lengths_P=np.diff(begins, append=self.raw_bytes),
            starts_P=rows["flags"] & _STARTS != 0,
            ends_P=rows["flags"] & _ENDS != 0,
            sources_P=rows["source"].astype(np.int64),
            kinds_P=rows["kind"].astype(np.int64),
        )

    def _pieces_of(self, frame: int, rows: NDArray[np.void]) -> FramePieces:
        begin = frame * self.frame_bytes
        end = begin + self.frame_size(frame)
        starts, flags = rows["start"].astype(np.int64), rows["flags"]
        inside = int(np.searchsorted(starts, end))
        # The row after the last one inside, if there is one, begins with the next frame or later.
        last_ends_here = end == self.raw_bytes or (inside < len(rows) and int(starts[inside]) == end)
        continues = int(starts[0]) < begin
        begins = flags[:inside] & _STARTS != 0
        begins[0] &= not continues
        return FramePieces(
            offsets_P=np.maximum(starts[:inside] - begin, 0),
            starts_P=begins,
            follows_end_P=np.concatenate([[False], flags[: inside - 1] & _ENDS != 0]),
            sources_P=rows["source"][:inside].astype(np.int64),
            kinds_P=rows["kind"][:inside].astype(np.int64),
            continues=continues,
            ends_document=bool(last_ends_here and flags[inside - 1] & _ENDS),
        )

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError as error:
            raise ShardError(f"shard {self._path} is missing; restore it, or {_REMEDY}") from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise ShardError(f"shard {self._path} is missing; restore it, or {_REMEDY}") from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _read(self, offset: int, length: int, what: str) -> bytes:
        damaged = self._damaged(what, offset, length)
        if offset < 0 or offset + length > self.packed_bytes:  # a damaged length could ask for all memory there is
            raise damaged
        descriptor = self._open()
        try:
            content = os.pread(descriptor, length, offset)
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            os.close(descriptor)
        if len(content) != length:
            raise damaged
        return content

    def _check_header(self) -> int:
        if self.packed_bytes < _HEADER.size:
            raise ShardError(f"shard {self._path} is truncated to {self.packed_bytes} bytes; {_REMEDY}")
        header = self._read(0, _HEADER.size, "the header")
        _, _, magic, version, frame_bytes = _HEADER.unpack(header)
        if magic == _MAGIC and version != _VERSION:
            raise ShardError(
                f"shard {self._path} has version {version}, this bytelm reads {_VERSION}; "
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
                f"shard {self._path} does not end in a seek table: it is truncated or damaged at "
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
                f"shard {self._path} has hash {digest.hex()}, the index names {expected_hash}: it belongs to another "
                f"corpus or was replaced; restore it, or {_REMEDY}"
            )
        self._frames = np.frombuffer(table, _FRAME_TYPE)
        self._offsets = _HEADER.size + np.concatenate([[0], np.cumsum(self._frames["packed_bytes"], dtype=np.int64)])
        self._rows_offset = table_offset + len(table) + _HASH_BYTES
        self.pieces, self.documents, self.raw_bytes = pieces, documents, raw_bytes
        self.content = content.hex()
        if frame_bytes != self.frame_bytes or frames != -(-raw_bytes // frame_bytes):
            raise self._damaged("the footer", head_offset, _HEAD.size)

    def _check_seek_table(self, footer_offset: int, found: bytes) -> None:
        footer_bytes = self._rows_offset + self.pieces * _ROW.size - footer_offset - _SKIPPABLE.size
        footer_header = self._read(footer_offset, _SKIPPABLE.size, "the footer")
        if footer_header != _SKIPPABLE.pack(_FOOTER_MAGIC, footer_bytes) or footer_offset != self._offsets[-1]:
            raise self._damaged("the footer", footer_offset, _SKIPPABLE.size)
        expected = _seek_table(self._frames["packed_bytes"].tolist(), self.raw_bytes, self.frame_bytes, footer_bytes)
        if found != expected:
            raise self._damaged("the seek table", self.packed_bytes - len(found), len(found))

    def _damaged(self, what: str, offset: int, length: int) -> ShardError:
        return ShardError(f"shard {self._path}: {what} (bytes {offset}-{offset + length}) is damaged; {_REMEDY}")

    def _unreadable(self, error: OSError) -> ShardError:
        return ShardError(f"shard {self._path} cannot be read: {error.strerror}; check the disk and the permissions")


def _header(frame_bytes: int) -> bytes:
    return _HEADER.pack(_HEADER_MAGIC, _HEADER.size - _SKIPPABLE.size, _MAGIC, _VERSION, frame_bytes)


def _piece_range(frames: NDArray[np.void], pieces: int, frame: int) -> tuple[int, int]:
    """Rows of a frame: from the piece of its first byte to the piece of the next frame's first byte, both included."""
    first = int(frames["first_piece"][frame])
    return first, int(frames["first_piece"][frame + 1]) + 1 if frame + 1 < len(frames) else pieces


def _seek_table(packed_sizes: list[int], raw_bytes: int, frame_bytes: int, footer_bytes: int) -> bytes:
    # Skippable frames stand in the table with 0 raw bytes, because offsets are sums of the entries before.
    entries = [(_HEADER.size, 0)]
    entries += [
        (packed, min(frame_bytes, raw_bytes - frame * frame_bytes)) for frame, packed in enumerate(packed_sizes)
    ]
    entries.append((_SKIPPABLE.size + footer_bytes, 0))
    body = b"".join(_SEEK_ENTRY.pack(*entry) for entry in entries)
    end = _SEEK_END.pack(len(entries), 0, _SEEK_END_MAGIC)
    return _SKIPPABLE.pack(_SEEK_MAGIC, len(body) + len(end)) + body + end
