"""What sources give: units that are read in one go, the documents in them, and what gives none, with the reason.

Documents are any bytes at all, in blocks. What went wrong with one is a ``SourceError`` that says whether the system
refused or the bytes are not what they should be.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from bytelm.errors import SourceError

SkipReason = Literal[
    "empty",
    "link",
    "special",
    "excluded",
    "version_control",
    "cache",
    "byte_code",
    "unreadable",
    "damaged",
    "changed",
    "no_field",
    "too_small",
    "too_large",
    "dense",
    "other_kind",
    "duplicate",
    "near_duplicate",
]
SKIP_REASONS: Final[tuple[SkipReason, ...]] = get_args(SkipReason)
"""Why something gave no document. Sources know the first eleven: no bytes; a symbolic or hard link; a socket, pipe or
device; left out by a pattern; a folder of a version control; a cache; compiled byte code; refused by the system; not
the bytes that its form promises; other bytes than before; a row without the field. The others are an ingestion's."""

BLOCK_BYTES: Final = 1 << 20


class Document(NamedTuple):
    """A document that is to be read.

    Attributes:
        name: What it is called: a path, or an archive's path with ``!/`` and the member's name, or a table's path with
            ``#`` and the row. Bytes, for names need not be valid in any encoding.
        open_blocks: Begins to read it.
        is_row: It is a row of a table.
    """

    name: bytes
    open_blocks: Callable[[], Iterator[bytes]]
    is_row: bool = False

    def blocks(self) -> Iterator[bytes]:
        """Its bytes in order, in blocks of at most 1 MiB, none of them empty. An empty document gives none.

        They can be read once, and only until the next document of the same unit is asked for.

        Raises:
            SourceError: The document cannot be read, or is damaged; its ``reason`` says which.
        """
        yield from self.open_blocks()


class Skipped(NamedTuple):
    """Something that gives no document.

    Attributes:
        path: Its name, as a document's.
        reason: Why not.
        columns: The columns of a row that lacks the one that was asked for; None for everything else.
    """

    path: bytes
    reason: SkipReason
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How sources are read.

    Attributes:
        include: Patterns as in ``.gitignore``, against the path below the source; where there are any, only what
            matches is read. An archive in a folder is opened where a pattern names it, and then read as a whole; one
            that is itself a source is looked into like a folder.
        exclude: Patterns of the same kind; what matches is left out, whatever is included.
        gitignore: Leave out what the ``.gitignore`` files of the sources name.
        follow_links: Read what symbolic links inside folders point to.
        everything: Read version-control folders, caches and byte code in folders, too; see ``bytelm.data.clutter``.
        raw: Open nothing: archives, compressed files and tables are documents as they are.
        field: Column of tables whose text becomes documents; without it they are documents as they are, and ``text``
            is the column of data sets.
        most_expansion: Most bytes of content for each stored byte, from 64 MiB of content on.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    gitignore: bool = False
    follow_links: bool = False
    everything: bool = False
    raw: bool = False
    field: str | None = None
    most_expansion: float = 1000.0


class Unit(NamedTuple):
    """What is read in one go: a file, an archive, or a part of a table.

    Attributes:
        source: Index of the source that it was found in.
        address: Local path, or URL as UTF-8.
        form: How it is read.
        stored_bytes: Its size, or its part's, as it is stored; 0 where that is not known.
        part: Which part of the file, from 0.
        parts: How many parts the file has.
        in_folder: It was found in a folder, and not named.
    """

    source: int
    address: bytes
    form: str
    stored_bytes: int
    part: int = 0
    parts: int = 1
    in_folder: bool = False


def name_of(path: Path | str) -> str:
    r"""A path as text that every encoding takes: bytes that are not UTF-8 as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown_path(path: bytes) -> str:
    """A path in quotes, fit for a message: control characters are escaped, too."""
    return repr(path.decode("utf-8", "backslashreplace"))


def unreadable(path: bytes, error: OSError | ValueError) -> SourceError:
    """What to raise where the system refuses a path."""
    if isinstance(error, FileNotFoundError):
        return SourceError(f"cannot read {shown_path(path)}: there is no such file or folder; check the path")
    cause = " ".join((getattr(error, "strerror", None) or str(error)).lower().split()) or type(error).__name__
    return SourceError(f"cannot read {shown_path(path)}: {cause}; make it readable or leave it out")


def damaged(name: bytes, what: str, remedy: str = "get it anew or leave it out") -> SourceError:
    """What to raise where a document's bytes are not what its form promises."""
    return SourceError(f"{shown_path(name)} is damaged: {what}; {remedy}", reason="damaged")
