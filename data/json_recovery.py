"""Where a list of JSON objects goes on behind an element whose text is damaged.

A row that was cut off swallows the rows behind it: a quote that is lost turns text into structure and structure into
text. The next row is sought by what only a row has: behind a comma an object that begins with a name and parses as a
whole, and behind it a comma or the end of the list. Such a thing is no text of a sound string, whose quotes are
escaped. It may be an object of a list inside the damaged row, and therefore what follows it is read, too, as far as it
is held in memory:

    objects up to the end of a list, behind which more stands   a list inside the damaged row
    objects up to the end of the file, or to something else     rows, from the first that begins with the name with
                                                                which the first row of all begins
"""

import codecs
import json
import re
from typing import Final

LOOKED_AHEAD_BYTES: Final = 4 << 20
"""How far behind a place is read to judge it; a row that is longer is not found again."""

_DECODER: Final = json.JSONDecoder(parse_int=lambda _: None, parse_float=lambda _: None)
_BEGINS: Final = re.compile(rb',[ \t\r\n]*(?=\{[ \t\r\n]*")')
_FIRST_NAME: Final = re.compile(rb'\s*\{\s*("(?:[^"\\]|\\.)*")\s*:')
_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_LONGEST_ATOM: Final = 12  # an escaped pair of surrogates; an error within the last such bytes is the file's end


def may_hold_elements(held: bytearray, begin: int, end: int) -> bool:
    """Whether there is a place at which another element might begin; quickly told."""
    return _BEGINS.search(held, begin, end) is not None


def first_name(element: bytes) -> str | None:
    """The name that an object begins with; None of what is no object, or is damaged before it ends."""
    found = _FIRST_NAME.match(element)
    try:
        return None if found is None else json.loads(_structure(found.group(1)), strict=False)
    except ValueError:
        return None


def is_damaged(element: bytes, *, ends_file: bool) -> bool:
    """Whether an element does not parse, and not only because the file ends in the middle of it."""
    text = _structure(element)
    try:
        _DECODER.decode(text)
    except json.JSONDecodeError as error:
        rest = text.rstrip()
        is_cut = error.msg.startswith("Unterminated string") or error.pos + _LONGEST_ATOM > len(rest)
        # A file that is cut off seldom ends as a list does: then a bracket was lost.
        return not (ends_file and is_cut and not rest.endswith("]"))
    except RecursionError:
        return True
    return False


def next_element(held: bytearray, begin: int, end: int, name: str | None) -> int | None:
    """Where the list goes on within the text of an element that is damaged.

    Args:
        held: Bytes of the list, ``LOOKED_AHEAD_BYTES`` behind ``end`` too where there are as many.
        begin: Where the element begins.
        end: Where it was taken to end.
        name: The name that the first element of the list begins with; None where that is damaged.

    Returns:
        Place of the comma before the next element; None where there is none.
    """
    text, start, at = "", begin, begin
    while (found := _BEGINS.search(held, at, end)) is not None:
        comma, brace = found.span()
        if not text or (brace + LOOKED_AHEAD_BYTES > start + len(text) and start + len(text) < len(held)):
            start = brace
            text = _structure(held[start : start + 2 * LOOKED_AHEAD_BYTES])
        row, last = _first_row(text, comma - start, name)
        if row is not None:
            return start + row
        at = max(start + last, comma + 1)
    return None


def _first_row(text: str, comma: int, name: str | None) -> tuple[int | None, int]:
    """The comma before the first row among the objects from one on; and how far they were looked at.

    Args:
        text: What is looked at.
        comma: The comma before the first object, which may stand before the text; its brace does not.
        name: See ``next_element``.
    """
    first, row = comma, None
    brace = max(0, comma + 1)
    while True:
        brace = _skipped(text, brace)
        try:
            element, behind = _DECODER.raw_decode(text, brace) if text[brace : brace + 1] == "{" else (None, 0)
        except (ValueError, RecursionError):
            element, behind = None, 0
        mark = _skipped(text, behind)
        if element is None or text[mark : mark + 1] not in ("]", ","):
            return row, max(0, comma)
        if row is None and name is not None and next(iter(element), None) == name:
            row = comma
        comma = mark
        brace = mark + 1
        if text[mark] == "]":
            if _skipped(text, brace) < len(text):
                return None, mark
            return first if name is None else row, mark


def _skipped(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found is not None
    return found.end()


def _structure(text: bytes | bytearray) -> str:
    """Bytes as characters, one for each: places stay what they are, and what is no UTF-8 does no harm."""
    return codecs.latin_1_decode(text)[0]
