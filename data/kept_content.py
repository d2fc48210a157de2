"""Content that is dear to read, kept from the first reading of an ingestion for the second.

What has to be decompressed or comes over a network is written beside the journal while it is surveyed: lightly packed
and in the form of a shard, so that any process can begin at any document, and no damage gets through. Plain files of
this machine are not kept: to read them twice costs less. Nothing depends on it. What is not kept, for want of room or
because an ingestion was resumed, is read from its source again.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import zstandard

from bytelm.data.addresses import is_url
from bytelm.data.documents import Unit
from bytelm.data.frame_packer import FramePacker
from bytelm.data.shard_file import ShardReader, ShardWriter
from bytelm.errors import ShardError, StorageError

LEAST_FREE: Final = 1 / 8
"""Share of a disk that stays free."""

_LEVEL: Final = 1
_FRAME_BYTES: Final = 1 << 20
_ASKED_EVERY_BYTES: Final = 64 << 20


class ContentPlace(NamedTuple):
    """Where something is kept.

    Attributes:
        file: Path.
        offset: Of its first byte in the content of the file.
    """

    file: str
    offset: int


def is_dear(unit: Unit) -> bool:
    """Whether a unit is worth keeping."""
    return "+" in unit.form or unit.form.startswith(("zip", "parquet", "hf")) or is_url(unit.address)


class ContentWriter:
    """Keeps documents one behind the other, or stops to and keeps nothing where the disk has little room.

    Args:
        file: Where; it is there when everything is in it.
        least_free: Share of the disk that stays free.
    """

    def __init__(self, file: Path, least_free: float = LEAST_FREE) -> None:
        self._place = file
        self._beside = file.with_name(file.name + ".part")
        self._least_free = least_free
        self._file: BinaryIO | None = None
        self._writer: ShardWriter | None = None
        self._given_up = False
        self._asked_bytes = 0

    def add(self, block: bytes, *, begins: bool) -> None:
        """Add some bytes of a document.

        Args:
            block: At least one.
            begins: They are its first.
        """
        if self._given_up:
            return
        try:
            writer = self._writer or self._open()
            if writer.raw_bytes >= self._asked_bytes:
                self._asked_bytes += _ASKED_EVERY_BYTES
                usage = shutil.disk_usage(self._beside.parent)
                if usage.free < self._least_free * usage.total:
                    self.give_up()
                    return
            writer.append(block, starts=begins, ends=True, source=0, kind=0, continues=not begins)
        except OSError:  # it was a favour
            self.give_up()

    def finish(self) -> None:
        """Complete the file, if anything is in it."""
        if self._writer is None or self._file is None:
            return
        try:
            self._writer.finish()
            self._file.close()
            self._beside.replace(self._place)
        except OSError:
            self.give_up()

    def give_up(self) -> None:
        """Keep nothing."""
        self._given_up = True
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk refuses what is still buffered; it is not wanted
                self._file.close()
            with contextlib.suppress(OSError):
                self._beside.unlink(missing_ok=True)
        self._file = self._writer = None

    def _open(self) -> ShardWriter:
        self._beside.parent.mkdir(exist_ok=True)
        self._file = self._beside.open("wb")
        self._writer = ShardWriter(self._file, FramePacker(_LEVEL), frame_bytes=_FRAME_BYTES)
        return self._writer


class ContentReader:
    """Reads what was kept.

    Args:
        file: What a ``ContentWriter`` has finished.

    Raises:
        StorageError: It is gone or damaged.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = -1
        self._raw = b""
        try:
            self._reader = ShardReader(Path(file))
        except ShardError as error:
            raise self._lost(error) from error

    def blocks(self, offset: int, size: int) -> Iterator[bytes]:
        """Some bytes, in blocks of at most 1 MiB, none of them empty.

        Raises:
            StorageError: They are gone or damaged.
        """
        end = offset + size
        while offset < end:
            frame, begin = divmod(offset, _FRAME_BYTES)
            if frame != self._frame:
                self._decode(frame)
            block = self._raw[begin : begin + end - offset]
            offset += len(block)
            yield block

    def _decode(self, frame: int) -> None:
        self._frame = -1
        raw = bytearray(self._reader.frame_size(frame))
        try:
            self._reader.decode_frames(frame, 1, memoryview(raw), self._decompressor)
        except ShardError as error:
            raise self._lost(error) from error
        self._frame, self._raw = frame, bytes(raw)

    def _lost(self, error: ShardError) -> StorageError:
        return StorageError(
            f"what was kept of the sources in {self.file} is gone or damaged ({error}); check the disk; "
            "the same command with --resume reads the sources again"
        )
