"""Reading what somebody names without trusting its size: nothing is read beyond a limit, whatever a file claims.

A file of the disk has a size that can be asked for first. A device, a pipe or stdin has none and may never end, so that
it is read up to the limit and one byte more. Either way a file beyond the limit is an error before it is held.
"""

import contextlib
import io
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from bytelm.errors import BytelmError, SourceError

STDIN: Final = Path("-")
_BLOCK_BYTES: Final = 1 << 20


class FileBytes:
    """The bytes of a file of the disk, of which pieces are read when they are asked for.

    Args:
        path: The file.
        size: Its length in bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def __len__(self) -> int:
        """Bytes in all."""
        return self._size

    def __getitem__(self, place: slice) -> bytes:
        """A piece; all of it with ``[:]``.

        Raises:
            SourceError: The file cannot be read any more, or has become shorter.
        """
        begin, end, step = place.indices(self._size)
        assert step == 1, "pieces have no gaps"
        try:
            with self._path.open("rb") as file:
                file.seek(begin)
                found = file.read(max(0, end - begin))
        except OSError as error:
            raise SourceError(f"cannot read {self._path}: {error.strerror}; give a file that exists") from error
        if len(found) < end - begin:
            raise SourceError(f"{self._path} became shorter while it was read; run the same command again")
        return found


def size_of_regular(path: Path) -> int | None:
    """Bytes of a file of the disk; None for a device or a pipe, whose size nobody knows.

    Raises:
        SourceError: It cannot be looked at, or is a folder.
    """
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {_reason(error)}; give a file that exists") from error
    if stat.S_ISDIR(facts.st_mode):
        raise SourceError(f"cannot read {path}: it is a folder; give a file")
    # What the kernel makes up as it is read (/proc) says that it has no bytes.
    return facts.st_size if stat.S_ISREG(facts.st_mode) and facts.st_size else None


def read_bounded(path: Path, limit_bytes: int, *, what: str, remedy: str) -> bytes:
    """All bytes of a file, if they are not too many.

    Args:
        path: A file, a pipe or a device; ``-`` is stdin.
        limit_bytes: The most bytes that are accepted.
        what: Name of the thing that is read, for the error message.
        remedy: End of the error message: what the user can do about a file that is too large.

    Raises:
        SourceError: It cannot be read, or there are more bytes.
    """

    def too_large(size: str) -> SourceError:
        return SourceError(f"{what} {path} has {size} bytes, and {limit_bytes:,} are the most; {remedy}")

    if path != STDIN and (size := size_of_regular(path)) is not None and size > limit_bytes:
        raise too_large(f"{size:,}")
    found = read_at_most(path, limit_bytes + 1)
    if len(found) > limit_bytes:
        raise too_large("more")
    return found


def read_at_most(path: Path, most_bytes: int) -> bytes:
    """The beginning of a file, a pipe or a device; ``-`` is stdin.

    Raises:
        SourceError: It cannot be read.
    """
    try:
        if path == STDIN:
            return _at_most(_stdin(), most_bytes)
        with path.open("rb", buffering=0) as file:
            return _at_most(file, most_bytes)
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {_reason(error)}; give a file that exists") from error


def lines_of(
    path: Path, line_bytes: int, total_bytes: int, too_large: Callable[[str], BytelmError], *, whole: bool = False
) -> Iterator[bytes]:
    """The lines of a file, a pipe or a device, one by one, without their ends; ``-`` is stdin.

    Args:
        path: A file, a pipe or a device; ``-`` is stdin.
        line_bytes: The most bytes that one line may have.
        total_bytes: The most bytes that all lines together may have.
        too_large: Makes the error from a message such as "line 3 has more than 5 bytes".
        whole: Leave out a last line that has no end: its writer was cut short.

    Raises:
        SourceError: It cannot be read.
        BytelmError: A line, or the whole, is too long; ``too_large`` makes this error.
    """
    try:
        with contextlib.nullcontext(_stdin()) if path == STDIN else path.open("rb") as file:
            total = number = 0
            while line := file.readline(line_bytes + 1):
                number += 1
                total += len(line)
                if len(line) > line_bytes:
                    raise too_large(f"line {number} has more than {line_bytes:,} bytes")
                if total > total_bytes:
                    raise too_large(f"all lines together have more than {total_bytes:,} bytes")
                if not (whole and line[-1:] != b"\n"):
                    yield line.rstrip(b"\r\n")
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {_reason(error)}; give a file that exists") from error


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise ValueError("stdin is closed")
    return sys.stdin.buffer


def _at_most(file: BinaryIO, most_bytes: int) -> bytes:
    found = io.BytesIO()  # gives out what it holds without a copy, where a list of blocks would be held twice
    left = most_bytes
    while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
        left -= found.write(block)
    return found.getvalue()


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
