"""Where documents come from: files and folders, any bytes at all, read in blocks.

A source is a file or a folder. A file is one document. A folder gives every regular file below it, hidden ones too,
in the order of their path bytes; symbolic links, sockets, pipes and devices are passed over and counted, as are
empty files. A symbolic link that is itself named as a source is followed: someone asked for it.
"""

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bytelm.errors import SourceError

KINDS: Final = ("binary", "text")
"""Kinds of documents; the piece table holds the index into this."""

SkipReason = Literal["empty", "link", "special"]
SKIP_REASONS: Final[tuple[SkipReason, ...]] = ("empty", "link", "special")
"""Why a path gave no document: no bytes, a symbolic link, or a socket, pipe or device."""

FileIdentity = tuple[int, int]
"""Device and inode: what tells that two paths are one folder."""

_BLOCK_BYTES: Final = 1 << 20
_SNIFFED_BYTES: Final = 8 << 10


@dataclass(frozen=True, slots=True)
class Document:
    """A file that is to be read.

    Attributes:
        path: Its path, as bytes: names need not be valid in any encoding.
        source: Index of the source that it was found in.
    """

    path: bytes
    source: int

    def blocks(self) -> Iterator[bytes]:
        """Its bytes in order, in blocks of at most 1 MiB, none of them empty. An empty file gives none.

        Raises:
            SourceError: The file has vanished or cannot be read.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:  # noqa: PTH123  a bytes path is no Path
                while data := file.read(_BLOCK_BYTES):
                    yield data
        except OSError as error:
            raise _unreadable(self.path, error) from error


@dataclass(frozen=True, slots=True)
class Skipped:
    """A path that gives no document.

    Attributes:
        path: Its path, as bytes.
        reason: Why not.
    """

    path: bytes
    reason: SkipReason


def find_documents(sources: Sequence[Path], *, without: Collection[FileIdentity] = ()) -> Iterator[Document | Skipped]:
    """Every document below the sources, source after source, in the order of path bytes.

    Args:
        sources: Files and folders, in the order that is wanted.
        without: Folders that are left out as if they were not there, as (device, inode).

    Yields:
        A ``Document`` for every regular file, empty ones too, and a ``Skipped`` for everything else but folders.

    Raises:
        SourceError: A source is missing or is neither a file nor a folder, or a folder cannot be listed.
    """
    for number, source in enumerate(sources):
        path = os.fsencode(source)
        status = _status(path)
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, number, without)
        else:
            yield Document(path, number)


def check_sources(sources: Sequence[Path]) -> None:
    """See that every source exists and is a file or a folder, before anything is written.

    Raises:
        SourceError: One is missing or of another kind, or there is none.
    """
    if not sources:
        raise SourceError("nothing to ingest: name at least one file or folder")
    for source in sources:
        _status(os.fsencode(source))


def kind_of(beginning: bytes) -> int:
    """Index in ``KINDS`` of a document that begins with these bytes: text is UTF-8 without a zero byte.

    Args:
        beginning: The first block of the document; only its first 8 KiB are looked at.
    """
    sniffed = beginning[:_SNIFFED_BYTES]
    if b"\0" in sniffed:
        return KINDS.index("binary")
    try:
        sniffed.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character that the end of the sniffed bytes cuts through is no fault of the document.
        cut_through = error.reason == "unexpected end of data" and len(beginning) > len(sniffed)
        return KINDS.index("text" if cut_through else "binary")
    return KINDS.index("text")


def name_of(path: Path) -> str:
    r"""A path as text that every encoding takes: bytes that are not UTF-8 as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown_path(path: bytes) -> str:
    """A path in quotes, fit for a message: control characters are escaped, too."""
    return repr(path.decode("utf-8", "backslashreplace"))


def _walk(root: bytes, source: int, without: Collection[FileIdentity]) -> Iterator[Document | Skipped]:
    pending = [_entries(root)]  # a stack and no recursion: folders may be nested deeper than Python recurses
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
        elif entry.is_symlink():
            yield Skipped(entry.path, "link")
        elif entry.is_dir(follow_symlinks=False):
            if not (without and _identity(entry) in without):
                pending.append(_entries(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Document(entry.path, source)
        else:
            yield Skipped(entry.path, "special")


def _entries(folder: bytes) -> "Iterator[os.DirEntry[bytes]]":
    """What a folder holds, sorted so that a walk gives whole paths in the order of their bytes."""
    try:
        with os.scandir(folder) as listing:
            # "a/b" stands behind "a-b" in the order of whole paths, though "a" stands before it: the slash counts.
            entries = sorted(
                listing, key=lambda entry: entry.name + (b"/" if entry.is_dir(follow_symlinks=False) else b"")
            )
    except OSError as error:
        raise _unreadable(folder, error) from error
    return iter(entries)


def _identity(entry: "os.DirEntry[bytes]") -> FileIdentity:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        raise _unreadable(entry.path, error) from error
    return status.st_dev, status.st_ino


def _status(path: bytes) -> os.stat_result:
    try:
        status = os.stat(path)  # noqa: PTH116  a bytes path is no Path
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise SourceError(f"cannot ingest {shown_path(path)}: it is neither a file nor a folder; name one of these")
    return status


def _unreadable(path: bytes, error: OSError | ValueError) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return SourceError(f"cannot read {shown_path(path)}: there is no such file or folder; check the path")
    cause = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
    return SourceError(f"cannot read {shown_path(path)}: {cause}; make it readable or leave it out")
