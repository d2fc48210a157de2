"""Files to read, by local path or by fsspec address: as blocks from beginning to end, or open and seekable."""

import contextlib
import io
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, Final, cast

from bytelm.data.documents import BLOCK_BYTES, shown_path, unreadable
from bytelm.data.storage import file_system_of, is_remote, retried
from bytelm.errors import SourceError

_FETCHED_BYTES: Final = 8 << 20


def is_url(address: bytes) -> bool:
    """Whether an address is one for fsspec and no local path."""
    return b"://" in address and is_remote(os.fsdecode(address))


def is_web(address: bytes) -> bool:
    """Whether an address is one of a web server: any can send a file whole, not any can send parts of it."""
    return address[:8].lower().startswith((b"http://", b"https://"))


def blocks_of(address: bytes, stored_bytes: int, begin: int = 0) -> Iterator[bytes]:
    """The bytes of a file in order, in blocks of at most 1 MiB, none of them empty.

    Args:
        address: Local path, or URL as UTF-8.
        stored_bytes: Its size when it was listed; 0 where that is not known or does not matter.
        begin: Where to begin.

    Raises:
        SourceError: The file has vanished or cannot be read; or a remote one is not as long as it was.
    """
    if is_url(address):
        return _remote_blocks(address, stored_bytes, begin)
    return file_blocks(address, stored_bytes, begin)


def small_file(path: bytes, stored_bytes: int) -> bytes | None:
    """A file of this machine in one block, if it has as many bytes as it should and at most 1 MiB; else None.

    It is opened, read once and closed: where as many bytes come as are expected, and one more was asked for, the file
    has ended.

    Raises:
        SourceError: The file has vanished or cannot be read.
    """
    if stored_bytes >= BLOCK_BYTES:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, stored_bytes + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from error
    return data if len(data) == stored_bytes else None


def file_blocks(path: bytes, stored_bytes: int, begin: int = 0) -> Iterator[bytes]:
    """``blocks_of`` for a local path."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if begin:
                os.lseek(descriptor, begin, os.SEEK_SET)
            # One byte more than is expected: a small file then costs one small block and a read that finds the end.
            while data := os.read(descriptor, min(max(stored_bytes, 4095) + 1, BLOCK_BYTES)):
                yield data
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from error


@contextlib.contextmanager
def opened(address: bytes) -> Iterator[BinaryIO]:
    """A file, open and seekable; what the system refuses while it is open is named, too.

    Args:
        address: Local path, or URL as UTF-8.

    Raises:
        SourceError: The file has vanished, cannot be read, or its server cannot send parts of it.
    """
    try:
        if not is_url(address):
            with open(address, "rb") as file:  # noqa: PTH123  a bytes path is no Path
                yield file
            return
        with _open_remote(address, _FETCHED_BYTES) as file:
            if not file.seekable():
                raise _needs_parts(address)
            yield cast("BinaryIO", io.BufferedReader(file, BLOCK_BYTES))
    except OSError as error:
        raise unreadable(address, error) from error


class _RemoteFile(io.RawIOBase):
    """An fsspec file whose reads are tried again where they can be, and whose errors are all ``OSError``."""

    def __init__(self, address: bytes, file: Any) -> None:
        super().__init__()
        self._address = address
        self._file = file
        # A file of unknown size is a stream: it cannot go back, so a read that failed cannot be tried again.
        self._is_stream = getattr(file, "size", 0) is None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return not self._is_stream

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        try:
            if self._is_stream:
                return retried(lambda: self._file.read(size), ())
            return retried(partial(self._read_at, self._file.tell(), size))
        except ValueError as error:
            raise _needs_parts(self._address) from error

    def _read_at(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        return self._file.read(size)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _open_remote(address: bytes, fetched_bytes: int) -> _RemoteFile:
    files, path = file_system_of(os.fsdecode(address))
    return _RemoteFile(address, retried(lambda: files.open(path, "rb", block_size=fetched_bytes)))


def _remote_blocks(address: bytes, stored_bytes: int, begin: int) -> Iterator[bytes]:
    is_stream = is_web(address) and not begin
    read_bytes = begin
    try:
        with _open_remote(address, 0 if is_stream else _FETCHED_BYTES) as file:
            if begin:
                file.seek(begin)
            while data := file.read(BLOCK_BYTES):
                read_bytes += len(data)
                yield data
    except OSError as error:
        raise unreadable(address, error) from error
    if stored_bytes and read_bytes != stored_bytes:
        raise SourceError(
            f"cannot read {shown_path(address)}: {read_bytes:,} bytes came instead of {stored_bytes:,}; "
            "it has changed, or the connection broke: try again"
        )


def _needs_parts(address: bytes) -> SourceError:
    return SourceError(f"cannot read {shown_path(address)}: its server sends no parts of it; download it first")
