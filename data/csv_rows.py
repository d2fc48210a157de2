"""Rows of comma-separated values with a header, RFC 4180: cells in quotes may hold newlines.

What is wrong with a row costs that row alone. Where the quotes of a row, or how many cells it has, do not fit, and it
has several lines, a quote that nothing closes has swallowed rows: it then ends with its first line, and the others are
read anew.
"""

import csv
from collections import deque
from collections.abc import Iterator
from typing import Final

from bytelm.data import table_rows
from bytelm.data.compression import Forward
from bytelm.data.documents import Document, Skipped, damaged
from bytelm.data.table_rows import SEPARATOR, failing, lines_of, no_column, row_document, too_long

_BOM: Final = b"\xef\xbb\xbf"
_DELIMITERS: Final = ",\t;|"


def csv_rows(content: Forward, name: bytes, field: str) -> Iterator[Document | Skipped]:
    """A document for each row, which is named by the number of its first line.

    Args:
        content: The file from its first byte on. Its delimiter is the one with which the header has the field.
        name: Name of the file, for the names of its rows.
        field: The column.

    Yields:
        A ``Document`` for a row, also for one that is damaged, which its ``blocks`` then says.

    Raises:
        SourceError: It has no such column, or cannot be read on.
    """
    # Without this no cell may have more than 128 KiB. The limit is one of the process, and only raised.
    csv.field_size_limit(max(csv.field_size_limit(), table_rows.MOST_ROW_BYTES))
    lines = _Lines(content)
    if (header := _header(lines, name, field)) is None:
        return
    columns, delimiter = header
    column = columns.index(field)
    while lines.begin_row():
        row = b"%d" % lines.first
        cells, error = _cells(lines, delimiter)
        if not error and cells and len(cells) != len(columns):
            error = f"it has {len(cells)} cells, the header {len(columns)}"
        if lines.is_long and lines.taken == 1:
            yield too_long(name, row)
        elif error or lines.is_long:
            lines.keep(1)
            found = f"its row at line {row.decode()} cannot be read ({error or 'it does not end'})"
            yield failing(name + SEPARATOR + row, damaged(name, found))
        elif cells:
            value = cells[column].encode("utf-8", "surrogateescape")
            if _is_utf8(value):
                yield row_document(name + SEPARATOR + row, value)
            else:
                found = f"its row at line {row.decode()} is not UTF-8"
                yield failing(name + SEPARATOR + row, damaged(name, found))


class _Lines:
    """Lines as text, with their ends; bytes that are not UTF-8 as surrogates. Those of a row can be given back.

    Attributes:
        first: Number of the first line of the row, from 1.
        is_long: The row, or a line of it, is too long to be held.
    """

    def __init__(self, content: Forward) -> None:
        self._source = lines_of(content)
        self._waiting: deque[str | None] = deque()
        self._row: list[str | None] = []
        self._row_chars = 0
        self.first = 1
        self.is_long = False

    @property
    def taken(self) -> int:
        """Lines of the row so far."""
        return len(self._row)

    def begin_row(self) -> bool:
        """The next line begins a row; False if there is none."""
        self.first += len(self._row)
        self._row = []
        self._row_chars = 0
        self.is_long = False
        return self._reads()

    def keep(self, count: int) -> None:
        """Give back all lines of the row but the first ones."""
        self._waiting.extendleft(reversed(self._row[count:]))
        del self._row[count:]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.is_long or not self._reads():
            raise StopIteration
        line = self._waiting.popleft()
        self._row.append(line)
        self._row_chars += len(line or "")
        self.is_long = line is None or self._row_chars > table_rows.MOST_ROW_BYTES
        return line or ""

    def _reads(self) -> bool:
        if not self._waiting:
            found = next(self._source, None)
            if found is None:
                return False
            position, line = found
            if line is not None and not position:
                line = line.removeprefix(_BOM)
            self._waiting.append(None if line is None else line.decode("utf-8", "surrogateescape") + "\n")
        return True


def _header(lines: _Lines, name: bytes, field: str) -> tuple[list[str], str] | None:
    """The columns, and the delimiter; None of a file without a row."""
    if not lines.begin_row():
        return None
    most: list[str] = []
    error = ""
    for delimiter in _DELIMITERS:
        columns, error = _cells(lines, delimiter)
        if field in columns:
            return columns, delimiter
        most = max(most, columns, key=len)
        lines.keep(0)
    if not most:
        raise damaged(name, f"its header cannot be read ({error or 'it is empty'})")
    raise no_column(name, field, most)


def _cells(lines: _Lines, delimiter: str) -> tuple[list[str], str]:
    """The cells of the next row, none of an empty line; or why it has none."""
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True), []), ""
    except csv.Error as error:
        return [], str(error)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
