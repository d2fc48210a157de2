"""Rows of JSON: one a line, or the elements of one list; what is wrong with a row costs that row alone.

``.jsonl`` and its like are lines. ``.json`` may be lines, a list of objects, or one object; what it is, its beginning
tells. An object that has the field is one row; everything else that ends so is no table.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bytelm.data import json_recovery, table_rows
from bytelm.data.compression import Forward
from bytelm.data.documents import Document, Skipped, damaged
from bytelm.data.table_rows import SEPARATOR, field_of, lines_of, row_document, too_long

# Numbers are not wanted: many of them need not be held, and a long one need not be refused.
_DECODER: Final = json.JSONDecoder(parse_int=lambda _: None, parse_float=lambda _: None)
_BOM: Final = b"\xef\xbb\xbf"
_PEEKED_BYTES: Final = 1 << 20
_SPACE: Final = b" \t\r\n"
_MARK: Final = re.compile(rb'[\[\]{}",]')
_NOT_SPACE: Final = re.compile(rb"\S")
_STRING_MARK: Final = re.compile(rb'["\\\n]')
_MOST_INDENT_BYTES: Final = 1 << 10
_JUDGED_BYTES: Final = 1 << 16  # of an element without an end; twice as many each time after


def json_rows(
    content: Forward, name: bytes, field: str, *, begin: int = 0, end: int | None = None, is_part: bool = False
) -> Iterator[Document | Skipped]:
    """A document for each line of JSON; empty lines count, but give nothing.

    Args:
        content: The lines, in UTF-8. A part that does not begin at 0 is read from one byte before it on: a line belongs
            to the part that its first byte lies in.
        name: Name of the table, for the names of its rows.
        field: The field that holds the document.
        begin: Byte of the table at which the part begins.
        end: Byte at which the part ends; a line that begins before it is read whole. None reads to the end.
        is_part: This is a part: nobody knows how many lines came before, so rows are named by the place of their line.

    Yields:
        A ``Document`` for a row, also for one that is damaged, which its ``blocks`` then says; a ``Skipped`` for a row
        without the field.

    Raises:
        SourceError: The lines cannot be read on.
    """
    for number, (position, line) in enumerate(lines_of(content), start=1):
        if end is not None and position >= end:
            return
        if position < begin:
            continue
        row = b"@%d" % position if is_part else b"%d" % number
        if line is None:
            yield too_long(name, row)
            continue
        text = line if position else line.removeprefix(_BOM)
        if text and not text.isspace():
            yield _json_row(text, name, row, field, "line")


def json_file_rows(content: Forward, name: bytes, field: str) -> Iterator[Document | Skipped]:
    """The rows of a file that is JSON in any form; the file itself where it is no table.

    Args:
        content: All of it, from its first byte on.
        name: Name of the file, for the names of its rows.
        field: The field that holds the document.

    Yields:
        As ``json_rows``.

    Raises:
        SourceError: It cannot be read on.
    """
    beginning = content.peek(_PEEKED_BYTES)
    whole = len(beginning) < _PEEKED_BYTES
    stripped = beginning.removeprefix(_BOM).lstrip(_SPACE)
    if stripped.startswith(b"[") and stripped[1:].lstrip(_SPACE).startswith(b"{"):
        yield from _list_rows(content, name, field)
    elif stripped.startswith(b"{") and (not whole or _begins_with_lines(stripped)):
        yield from json_rows(content, name, field)
    elif stripped.startswith(b"{") and _has(beginning.removeprefix(_BOM), field):
        yield _json_row(b"".join(content.rest()).removeprefix(_BOM), name, b"1", field, "object")
    else:
        yield Document(name, content.rest)


def _begins_with_lines(beginning: bytes) -> bool:
    """Whether one of the first two lines is an object of its own, and there is more than that one line."""
    lines = [line for line in beginning.split(b"\n", 8) if not line.isspace() and line]
    return len(lines) > 1 and any(isinstance(_decoded(line), dict) for line in lines[:2])


def _has(text: bytes, field: str) -> bool:
    return field_of(_decoded(text), field)[1] is None


def _decoded(text: bytes) -> object:
    try:
        return _DECODER.decode(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _json_row(text: bytes, name: bytes, row: bytes, field: str, what: str, lost: str = "") -> Document | Skipped:
    row_name = name + SEPARATOR + row
    try:
        value = _DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError:
        return table_rows.failing(row_name, damaged(name, f"its {what} {row.decode()} is not UTF-8{lost}"))
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return table_rows.failing(row_name, damaged(name, f"its {what} {row.decode()} is not JSON ({said}){lost}"))
    return row_document(row_name, *field_of(value, field))


@dataclass(frozen=True, slots=True)
class _Element:
    """What stands for one element of a list.

    Attributes:
        text: Its bytes; None where they are too many.
        size_bytes: How many there are.
        has_end: Its end was found; without one, the rest of the file belongs to it.
    """

    text: bytes | None
    size_bytes: int
    has_end: bool

    @property
    def lost(self) -> str:
        """What a message says of the bytes that are lost with it."""
        if self.has_end:
            return f"; its {self.size_bytes:,} bytes are lost"
        return f" and has no end; the {self.size_bytes:,} bytes up to the end of the file are lost"


def _list_rows(content: Forward, name: bytes, field: str) -> Iterator[Document | Skipped]:
    for number, element in enumerate(_elements(content), start=1):
        row = b"%d" % number
        if element.text is None:
            yield too_long(name, row, "element", element.lost)
        else:
            yield _json_row(element.text, name, row, field, "element", element.lost)


def _elements(content: Forward) -> Iterator[_Element]:
    """Each element of a list of objects.

    A line that begins as the elements do, within a string or an object that was not closed, begins the next element:
    where each has lines of its own, a row that was cut off costs no other row. Elsewhere ``json_recovery`` finds the
    next element, so that such a row costs itself; where its comma is lost too, it costs the row behind it as well.
    """
    scanner = _Scanner(content)
    while True:
        end, is_last = scanner.end_of_element()
        size = end - scanner.begin
        whole = size if scanner.is_long else scanner.size_before_another(size)
        is_last = is_last and whole == size
        end = scanner.begin + whole
        element = None if scanner.is_long else bytes(scanner.held[scanner.begin : end])
        if element is None or element.strip(_SPACE) or not is_last:
            is_held = element is not None and len(element) <= table_rows.MOST_ROW_BYTES
            yield _Element(element if is_held else None, scanner.passed_bytes + whole, scanner.has_end)
        if is_last:
            return
        scanner.start(end + 1)


class _Scanner:
    """Finds where the elements of a list end.

    Args:
        content: The list, from its first byte on.

    Attributes:
        held: Bytes that were read and not yet given out.
        begin: Place in ``held`` at which the next element begins, or at which what was not passed of it begins.
        is_long: The element is too long to be held; what was read of it is passed over.
        passed_bytes: How many of its bytes were passed over.
        has_end: Its end was found, and not that of the file.
    """

    def __init__(self, content: Forward) -> None:
        beginning = content.peek(_PEEKED_BYTES)
        opening = beginning.index(b"[") + 1
        first = beginning.index(b"{", opening)
        line = beginning.rfind(b"\n", opening, first)
        indent = re.escape(beginning[line + 1 : first]) if line >= 0 else rb"[ \t]*"
        self._first_name = json_recovery.first_name(beginning[first:])
        self._begins_line = re.compile(b"\n" + indent + rb"\{")
        content.read(opening)
        self._content = content
        self.held = bytearray()
        self.start(0)

    def start(self, begin: int) -> None:
        """An element begins there."""
        self.begin = self._at = begin
        self._depth, self._in_string = 0, False
        self.is_long, self.passed_bytes, self.has_end = False, 0, True
        self._judged_bytes = _JUDGED_BYTES

    def size_before_another(self, size: int) -> int:
        """Bytes of the element: fewer than were found where it is damaged and another one begins within them."""
        line = self.line_within(size)
        if line is None and not json_recovery.may_hold_elements(self.held, self.begin, self.begin + size):
            return size
        element = bytes(self.held[self.begin : self.begin + size])
        if not json_recovery.is_damaged(element, ends_file=line is None and not self.has_end):
            return size
        if line is not None:
            size, self.has_end = line, True
            if not json_recovery.is_damaged(element[:size], ends_file=False):
                return size
        if (comma := self.element_within(size)) is not None:
            size, self.has_end = comma, True
        return size

    def line_within(self, size: int) -> int | None:
        """Where in the first bytes of the element a line begins as elements do; None where none does."""
        text = _NOT_SPACE.search(self.held, self.begin)
        found = self._begins_line.search(self.held, text.start() if text else self.begin, self.begin + size)
        return found.start() - self.begin if found else None

    def element_within(self, size: int) -> int | None:
        """Where in the first bytes of the element, which is damaged, the comma before another stands; None for none."""
        if not json_recovery.may_hold_elements(self.held, self.begin, self.begin + size):
            return None
        while len(self.held) - self.begin < size + json_recovery.LOOKED_AHEAD_BYTES and self._more():
            pass
        comma = json_recovery.next_element(self.held, self.begin, self.begin + size, self._first_name)
        return None if comma is None else comma - self.begin

    def end_of_element(self) -> tuple[int, bool]:
        """Where the element ends, and whether none follows it."""
        while True:
            found = (_STRING_MARK if self._in_string else _MARK).search(self.held, self._at)
            if found is None:
                self._at = max(self._at, len(self.held))
                held_bytes = len(self.held) - self.begin
                is_too_long = held_bytes > table_rows.MOST_ROW_BYTES
                if not self.is_long and (is_too_long or held_bytes >= self._judged_bytes):
                    self._judged_bytes = 2 * held_bytes
                    if (cut := self._lost_end(held_bytes, is_too_long=is_too_long)) is not None:
                        return self.begin + cut, False
                if is_too_long:
                    self.passed_bytes += len(self.held) - self.begin
                    self.is_long, self.begin = True, len(self.held)  # only its end is of interest
                if not self._more():
                    self.has_end = False
                    return len(self.held), True
                continue
            self._at = found.end()
            byte = found.group()
            if self._in_string:
                if byte == b'"':
                    self._in_string = False
                elif byte == b"\\":
                    self._at += 1
                elif self._line_begins(self._at - 1):  # no string holds a newline: this one was cut off
                    return self._at - 1, False
            elif byte == b'"':
                self._in_string = True
            elif byte in b"[{":
                if self._depth == 1 and byte == b"{" and (line := self._unclosed_before(self._at - 1)) is not None:
                    return line, False
                self._depth += 1
            elif self._depth:
                self._depth -= byte != b","
            elif byte == b"," or (byte == b"]" and self._is_end()):
                return self._at - 1, byte != b","

    def _lost_end(self, size: int, *, is_too_long: bool) -> int | None:
        """Where another element begins in the first bytes of one whose end is not in sight, if it is damaged."""
        if is_too_long and (line := self.line_within(size)) is not None:
            return line
        if not json_recovery.may_hold_elements(self.held, self.begin, self.begin + size):
            return None
        element = bytes(self.held[self.begin : self.begin + size])
        return self.element_within(size) if json_recovery.is_damaged(element, ends_file=True) else None

    def _line_begins(self, at: int) -> bool:
        at -= self.begin
        while len(self.held) - self.begin - at < _MOST_INDENT_BYTES and self._more():
            pass
        return self._begins_line.match(self.held, self.begin + at) is not None

    def _unclosed_before(self, at: int) -> int | None:
        """The newline before a brace that begins an element, though the last one was not closed; None for others.

        Behind a comma in an object there is a name, and never a brace.
        """
        before = self.held[max(self.begin, at - _MOST_INDENT_BYTES) : at]
        if not before.rstrip(_SPACE).endswith(b","):
            return None
        line = self.held.rfind(b"\n", self.begin, at)
        found = self._begins_line.match(self.held, line) if line >= 0 else None
        return line if found and found.end() == at + 1 else None

    def _is_end(self) -> bool:
        """Whether only space follows: a bracket in the wrong place ends no list."""
        while not (follows := self.held[self._at :].strip(_SPACE)) and self._more():
            pass
        return not follows

    def _more(self) -> bool:
        """Read on; the element then begins at 0."""
        del self.held[: self.begin]
        self._at -= self.begin
        self.begin = 0
        block = self._content.some()
        self.held += block
        return bool(block)
