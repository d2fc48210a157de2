"""What a source gives: documents, any bytes at all, read in blocks; and paths that give none, with the reason."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

SkipReason = Literal[
    "empty",
    "link",
    "special",
    "excluded",
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
SKIP_REASONS: Final[tuple[SkipReason, ...]] = (
    "empty",
    "link",
    "special",
    "excluded",
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
)
"""Why something gave no document. Sources know the first eight: no bytes; a symbolic or hard link; a socket, pipe or
device; left out by a pattern; refused by the system; not the bytes that its form promises; other bytes than before;
a row without the field. The others are an ingestion's."""

BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """A document that is to be read.

    Attributes:
        name: What it is called: a path, or an archive's path with ``!/`` and the member's name, or a table's path with
            ``#`` and the row. Bytes, for names need not be valid in any encoding.
        open_blocks: Begins to read it.
    """

    name: bytes
    open_blocks: Callable[[], Iterator[bytes]]

    def blocks(self) -> Iterator[bytes]:
        """Its bytes in order, in blocks of at most 1 MiB, none of them empty. An empty document gives none.

        They can be read once, and only until the next document of the same unit is asked for.

        Raises:
            SourceError: The document cannot be read, or is damaged; its ``reason`` says which.
        """
        return self.open_blocks()


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that gives no document.

    Attributes:
        path: Its name, as a document's.
        reason: Why not.
    """

    path: bytes
    reason: SkipReason


def name_of(path: Path | str) -> str:
    r"""A path as text that every encoding takes: bytes that are not UTF-8 as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown_path(path: bytes) -> str:
    """A path in quotes, fit for a message: control characters are escaped, too."""
    return repr(path.decode("utf-8", "backslashreplace"))
