"""What the rows of every table share: how they are named, which value is a document, and what is wrong with one.

A string becomes its UTF-8 bytes, bytes stay as they are. A row that has no such field, or null there, or anything that
is neither a string nor bytes, gives no document and is counted: nothing is guessed or converted. A field inside another
is written with dots, ``meta.text``.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from bytelm.data.compression import Forward
from bytelm.data.documents import BLOCK_BYTES, Document, Skipped, damaged, shown_path
from bytelm.errors import SourceError

SEPARATOR: Final = b"#"
"""Stands between a table's path and the number of a row, from 1."""

MOST_ROW_BYTES: Final = 64 << 20
"""The longest row as it is written: it must be held in memory several times over to be understood."""

_MOST_NAMED: Final = 20


def field_of(row: object, field: str) -> tuple[object, tuple[str, ...] | None]:
    """What a row holds in a field, or in one field of another.

    Returns:
        The value, None where there is nothing; and the columns of a row that has no such field, None of one that has.
    """
    if isinstance(row, dict) and field in row:
        return row[field], None
    found: object = row
    for part in field.split("."):
        if not isinstance(found, dict) or part not in found:
            columns = tuple(row) if isinstance(row, dict) else ()
            return None, columns[: _MOST_NAMED + 1]
        found = found[part]
    return found, None


def row_document(name: bytes, value: object, columns: tuple[str, ...] | None = None) -> Document | Skipped:
    """The document of a row.

    Args:
        name: Name of the row.
        value: Value of the field that holds the document.
        columns: See ``Skipped``.
    """
    if isinstance(value, str):
        try:
            value = value.encode("utf-8")
        except UnicodeEncodeError:
            what = "it holds half of a surrogate pair, which is no text"
            return failing(name, damaged(name, what, "repair the row or leave it out"))
    if isinstance(value, bytes):
        return Document(name, partial(_cut, value), is_row=True)
    return Skipped(name, "no_field", columns)


def failing(name: bytes, error: SourceError) -> Document:
    """A row that cannot be read: whoever tries is told why."""

    def fail() -> Iterator[bytes]:
        raise error
        yield  # a generator: the error comes when the document is read, never when it is asked for

    return Document(name, fail, is_row=True)


def too_long(name: bytes, row: bytes, what: str = "line", lost: str = "") -> Document:
    """A row that is longer than can be held; ``lost`` says what is lost with it."""
    found = f"its {what} {row.decode()} has more than {MOST_ROW_BYTES >> 20} MiB{lost}"
    return failing(name + SEPARATOR + row, damaged(name, found, "split it or leave it out"))


def no_column(name: bytes, field: str, columns: Sequence[str]) -> SourceError:
    """A table that has no such column, for which whoever asked should see those that it has."""
    there = ", ".join(map(repr, columns[:_MOST_NAMED])) + (", …" if len(columns) > _MOST_NAMED else "")
    has = f"but {there}; name one of these" if there else "nor any other; choose another source"
    return SourceError(f"{shown_path(name)} has no field {field!r}, {has}", reason="no_field")


def lines_of(content: Forward) -> Iterator[tuple[int, bytes | None]]:
    """Where each line begins, and the line without its end; None in place of one that is too long."""
    begin = content.tell()
    held: list[bytes] = []
    held_bytes = 0
    while block := content.some():
        *whole, rest = block.split(b"\n")
        for line in whole:
            size = held_bytes + len(line)
            yield begin, b"".join((*held, line)) if size <= MOST_ROW_BYTES else None
            begin += size + 1
            held.clear()
            held_bytes = 0
        held_bytes += len(rest)
        held = [*held, rest] if held_bytes <= MOST_ROW_BYTES else []
    if held_bytes:
        yield begin, b"".join(held) if held_bytes <= MOST_ROW_BYTES else None


def _cut(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), BLOCK_BYTES):
        yield data[begin : begin + BLOCK_BYTES]
