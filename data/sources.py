"""Where documents come from: files and folders, any bytes at all, listed as units and read in blocks.

A source is a file or a folder. A file is one document. A folder gives every regular file below it, hidden ones too,
in the order of their path bytes; symbolic links, sockets, pipes and devices are passed over and named. A symbolic link
that is itself named as a source is followed: someone asked for it.

Listing and reading are apart: ``find_units`` says what there is, in order, without reading it; ``read_unit`` reads one
unit, in any process, and gives the same documents each time.
"""

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bytelm.data.documents import BLOCK_BYTES, SKIP_REASONS, Document, Skipped, SkipReason, name_of, shown_path
from bytelm.data.kinds import KINDS
from bytelm.data.kinds import kind_of as _kind_of
from bytelm.errors import SourceError

__all__ = [
    "KINDS",
    "SKIP_REASONS",
    "Document",
    "FileIdentity",
    "ReadOptions",
    "SkipReason",
    "Skipped",
    "Unit",
    "check_sources",
    "find_documents",
    "find_units",
    "kind_of",
    "name_of",
    "read_unit",
    "shown_path",
]

FileIdentity = tuple[int, int]
"""Device and inode: what tells that two paths are one folder."""

STANDARD_INPUT: Final = "-"
"""The source that is standard input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How sources are read.

    Attributes:
        include: Patterns as in ``.gitignore``; where there are any, only what matches is read.
        exclude: Patterns as in ``.gitignore``; what matches is left out.
        gitignore: Leave out what the ``.gitignore`` files of the sources name.
        follow_links: Read what symbolic links inside folders point to.
        raw: Open nothing: archives, compressed files and tables are documents as they are.
        field: Column of tables whose text becomes documents; without it they are documents as they are.
        most_expansion: Most raw bytes for each stored byte, from 64 MiB raw on.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    gitignore: bool = False
    follow_links: bool = False
    raw: bool = False
    field: str | None = None
    most_expansion: float = 1000.0


@dataclass(frozen=True, slots=True)
class Unit:
    """What is read in one go: a file, an archive, or a part of a table.

    Attributes:
        source: Index of the source that it was found in.
        address: Local path, or URL as UTF-8.
        form: How it is read.
        stored_bytes: Its size as it is stored; 0 where that is not known.
        part: Which part of the file, from 0.
        parts: How many parts the file has.
    """

    source: int
    address: bytes
    form: str
    stored_bytes: int
    part: int = 0
    parts: int = 1


def find_units(
    sources: Sequence[str],
    options: ReadOptions,
    *,
    without: Collection[FileIdentity] = (),
    stdin: Path | None = None,
) -> Iterator[Unit | Skipped]:
    """Everything below the sources, source after source, in the order of path bytes.

    Args:
        sources: What to read, in the order that is wanted.
        options: How.
        without: Folders that are left out as if they were not there, as (device, inode).
        stdin: File that holds what was read from standard input, for the source ``-``.

    Yields:
        A ``Unit`` for everything that is to be read, empty files too, and a ``Skipped`` for everything else but
        folders.

    Raises:
        SourceError: A source is missing or is neither a file nor a folder, or a folder cannot be listed.
    """
    del options
    for number, source in enumerate(sources):
        path = os.fsencode(stdin) if source == STANDARD_INPUT and stdin is not None else os.fsencode(source)
        status = _status(path)
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, number, without)
        else:
            yield Unit(number, path, "file", status.st_size)


def read_unit(unit: Unit, options: ReadOptions) -> Iterator[Document | Skipped]:
    """The documents of a unit, in order; the same ones each time while nobody changes the source.

    Args:
        unit: What ``find_units`` gave.
        options: The options that it was found with.

    Yields:
        A ``Document`` for each that is to be read, empty ones too, and a ``Skipped`` for what gives none.

    Raises:
        SourceError: The rest of the unit cannot be read, or is damaged; its ``reason`` says which. An error out of
            ``Document.blocks`` concerns that document; this iterator can then be asked on.
    """
    del options
    yield Document(unit.address, partial(_file_blocks, unit.address, unit.stored_bytes))


@dataclass(frozen=True, slots=True)
class _FoundDocument:
    """What ``find_documents`` gives."""

    path: bytes
    source: int

    def blocks(self) -> Iterator[bytes]:
        return _file_blocks(self.path, 0)


def find_documents(
    sources: Sequence[Path], *, without: Collection[FileIdentity] = ()
) -> Iterator[_FoundDocument | Skipped]:
    """Every document below the sources, without opening archives."""
    for found in find_units([os.fspath(source) for source in sources], ReadOptions(), without=without):
        yield found if isinstance(found, Skipped) else _FoundDocument(found.address, found.source)


def kind_of(beginning: bytes) -> int:
    """Kind of a document without a name."""
    return _kind_of(b"", beginning)


def check_sources(sources: Sequence[str | Path], options: ReadOptions | None = None) -> None:
    """See that every source exists and can be listed, before anything is written.

    Raises:
        SourceError: One is missing or of another kind, or there is none.
    """
    del options
    if not sources:
        raise SourceError("nothing to ingest: name at least one file or folder")
    for source in sources:
        if source != STANDARD_INPUT:
            _status(os.fsencode(source))


def _file_blocks(path: bytes, expected_bytes: int) -> Iterator[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # One byte more than is expected: a small file then costs one small block and a read that finds the end.
            while data := os.read(descriptor, min(max(expected_bytes, 4095) + 1, BLOCK_BYTES)):
                yield data
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from error


def _walk(root: bytes, source: int, without: Collection[FileIdentity]) -> Iterator[Unit | Skipped]:
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
            yield Unit(source, entry.path, "file", _size(entry))
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


def _size(entry: "os.DirEntry[bytes]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0  # whoever reads it finds out what is wrong


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
