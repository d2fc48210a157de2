"""Rows of JSON in any form: lines, lists, one object; a bad row costs itself alone."""

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from bytelm.data import table_rows
from bytelm.data.compression import Forward
from bytelm.data.documents import Document
from bytelm.data.json_rows import json_file_rows
from bytelm.errors import SourceError

ROWS = [{"id": number, "text": f'row {number} [{{"x"}}], \\ "q" é\n'} for number in range(5)]
TEXTS = [row["text"].encode() for row in ROWS]


def read(stored: bytes, block: int = 1 << 20, field: str = "text") -> list[bytes | str]:
    """Rows, the messages of those that are damaged, and the columns of those without the field."""
    blocks = (stored[begin : begin + block] for begin in range(0, len(stored), block))
    found: list[bytes | str] = []
    for one in json_file_rows(Forward(blocks), b"t.json", field):
        if not isinstance(one, Document):
            found.append(f"no field, but {one.columns}")
            continue
        try:
            found.append(b"".join(one.blocks()) if one.is_row else b"file: " + b"".join(one.blocks()))
        except SourceError as error:
            assert error.reason == "damaged"
            found.append(str(error))
    return found


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("style", [{"indent": 2}, {"indent": 0}, {}, {"separators": (",", ":")}, "lines"], ids=str)
def test_every_form_of_a_list_and_lines_give_the_same_rows(style: Any, block: int) -> None:
    stored = "\n".join(map(json.dumps, ROWS)) if style == "lines" else json.dumps(ROWS, **style)
    assert read(stored.encode(), block) == TEXTS
    assert read(b"\xef\xbb\xbf \n" + stored.encode(), block) == TEXTS


LINE = json.dumps(ROWS[1])


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    "bad",
    [
        LINE[:20].encode(),
        LINE[:20].encode() + b",",
        LINE[:-1].encode() + b",",
        LINE[:-1].encode() + b"]},",
        LINE[:-2].encode() + b"]},",
        LINE.encode() + b"},",
        LINE.encode() + b"]],",
        b'{"text": nope},',
        b'{"text": "\x01"},',
        b'{"text": "caf\xe9"},',
        rb'{"text": "half \ud800"},',
    ],
    ids=lambda bad: repr(bad[-12:]),
)
def test_a_bad_element_of_a_list_costs_itself_alone(bad: bytes, block: int) -> None:
    lines = [json.dumps(row).encode() for row in ROWS]
    stored = b"[\n" + b",\n".join([lines[0], bad.removesuffix(b","), *lines[2:]]) + b"\n]\n"
    if not bad.endswith(b","):
        stored = stored.replace(bad + b",", bad)
    found = read(stored, block)
    assert [one for one in found if isinstance(one, bytes)] == [TEXTS[0], *TEXTS[2:]]
    (message,) = (one for one in found if isinstance(one, str))
    assert "is damaged" in message


LOST = [
    '{"id": 1, "text": "cut off',
    '{"id": 1, "text": "cut off"',
    '{"id": 1, "text": "cut off", "n":',
    '{"id": 1, "text": "cut off", "n": 4',
    '{"i',
    '{"id": 1, "text": "x", "d": [1, 2}',
    '{"id": 1, "text": "x", "d": {"e": 1}',
    '{"id": 1, "text": "x", "d": [1, 2',
    '{"id": 1, "text": "x", "d": [{"e": 1}, {"e": 1}',
    '{"id": 1, "text": "x"]}',
    '{"id": 1, "text": "}, {", "d": "]',
]


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize("separator", [",", ", ", " ,\n"])
@pytest.mark.parametrize("bad", LOST)
def test_an_element_without_end_in_a_list_on_one_line_costs_itself_alone(bad: str, separator: str, block: int) -> None:
    rows = [json.dumps(row) for row in ROWS]
    for place in range(4):
        stored = "[" + separator.join([*rows[:place], bad, *rows[place + 1 :]]) + "]"
        found = read(stored.encode(), block)
        assert [one for one in found if isinstance(one, bytes)] == [*TEXTS[:place], *TEXTS[place + 1 :]]
        (message,) = (one for one in found if isinstance(one, str))
        assert f"its element {place + 1} is not JSON" in message


def test_many_elements_without_end_cost_themselves_alone() -> None:
    rows = [json.dumps(row) for row in ROWS * 200]
    bad = [place for place in range(len(rows)) if place % 7 == 3]
    for place in bad:
        rows[place] = LOST[place % len(LOST)]
    found = read(("[" + ", ".join(rows) + "]").encode(), 1000)
    assert [one for one in found if isinstance(one, bytes)] == [
        text for place, text in enumerate(TEXTS * 200) if place not in bad
    ]
    assert len(found) == len(rows)


@pytest.mark.parametrize("last", ["", '{"id": 1, "text": "cut', '{"id": 1, "text": "cut"}]'])
def test_an_object_inside_a_damaged_element_is_no_row(last: str) -> None:
    inner = '"d": [{"text": "a"}, {"text": "b"}, {"text": "c"}]}'
    for bad in (
        '{"id": 0, "text": nope, ' + inner,
        '{"id": 0, "text": "cut off, ' + inner,
        '{"id": 0, "d": "cut ' + inner,
    ):
        stored = '[{"id": 0, "text": "row"}, ' + bad + (f", {last}" if last else "")
        found = read(stored.encode())
        expected = [b"row", b"cut"] if last.endswith("]") else [b"row"]
        assert [one for one in found if isinstance(one, bytes)] == expected


def test_text_that_looks_like_rows_is_no_row() -> None:
    text = ', {"id": 9, "text": "fake"}, {"id": 9, "text": "fake"}]'
    rows = [{"id": 1, "text": "a"}, {"id": 2, "text": text, "d": [1]}, {"id": 3, "text": "c"}]
    for damage in (("[1]", "[1"), ("[1]", "nope"), ('"id": 2', '"id" 2'), ('", "d"', ', "d"')):
        found = read(json.dumps(rows).replace(*damage).encode())
        assert [one for one in found if isinstance(one, bytes)] == [b"a", b"c"]


def test_what_stands_behind_an_element_without_end_is_told_where_no_row_is_found() -> None:
    no_more = '{"text": "b", nothing'
    may_be_inside = '{"text": "b", "d": [1, {"e": "c"}, {"e": "d"}]'
    for lost in (no_more, may_be_inside):
        row, message = read(b'[{"text": "a"},' + lost.encode())
        assert row == b"a"
        assert "its element 2 is not JSON" in str(message)
        assert f"has no end; the {len(lost)} bytes up to the end of the file are lost" in str(message)
    row, message, last = read(b'[{"text": "a"},{"text": nope},{"text": "c"}]')
    assert (row, last) == (b"a", b"c")
    assert "its element 2 is not JSON" in str(message)
    assert "; its 14 bytes are lost; get it anew" in str(message)


def test_a_long_element_without_end_is_left_soon_and_a_long_one_with_objects_is_one_row() -> None:
    many = json.dumps({"d": [{"id": number, "text": "inner"} for number in range(40_000)], "text": "long"})
    row = '{"text": "' + "x" * 1000 + '"}'
    stored = f'[{row}, {many}, {{"text": "cut, {", ".join([row] * 2000)}, {many}]'.encode()
    found = read(stored, 1 << 20)
    assert found[1] == found[-1] == b"long"
    assert len(found) == 2004
    assert [one for one in found if isinstance(one, str)] == [found[2]]


def test_an_element_of_too_many_levels_costs_itself_alone() -> None:
    first, deep, last = read(b'[{"text": "a"}, {"text": ' + b"[" * 100_000 + b"]" * 100_000 + b'}, {"text": "b"}]')
    assert (first, last) == (b"a", b"b")
    assert "its element 2 is not JSON" in str(deep)


def test_an_element_that_is_too_long_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "MOST_ROW_BYTES", 2 << 20)
    for separator in (b", ", b",\n"):

        def blocks(separator: bytes = separator) -> Iterator[bytes]:
            yield b'[{"text": "a"}' + separator + b'{"text": "'
            for _ in range(20):
                yield b"x" * (1 << 20)
            yield b'"}' + separator + b'{"text": "b"}]'

        tracemalloc.start()
        first, long, last = json_file_rows(Forward(blocks()), b"t.json", "text")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()
        assert isinstance(first, Document)
        assert isinstance(long, Document)
        assert isinstance(last, Document)
        assert (b"".join(first.blocks()), b"".join(last.blocks())) == (b"a", b"b")
        with pytest.raises(SourceError, match="its element 2 has more than 2 MiB"):
            list(long.blocks())


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (b'{"text": "one"}', [b"one"]),
        (b'{\n "text": "one"\n}\n', [b"one"]),
        (b'{"meta": {"text": "one"}}', [b'file: {"meta": {"text": "one"}}']),
        (b"[1, 2]", [b"file: [1, 2]"]),
        (b"[]", [b"file: []"]),
        (b"nothing", [b"file: nothing"]),
        (b'{"te\n{"text": "b"}\n', ["line 1", b"b"]),
        (b'{"text": "b"}\n{"te', [b"b", "line 2"]),
        (b'[{"text": "b"}, {"te', [b"b", "element 2"]),
        (b'[{"text": "b"}, {"other": 1}]', [b"b", "no field, but ('other',)"]),
        (b'[{"text": "b"}] more', [b"b' is damaged"]),
    ],
)
def test_what_a_json_file_is_its_beginning_tells(stored: bytes, expected: list[bytes | str]) -> None:
    found = read(stored)
    if expected == [b"b' is damaged"]:  # what follows the list belongs to nothing
        assert len(found) == 1
        assert "is not JSON" in str(found[0])
        return
    assert len(found) == len(expected)
    for one, wanted in zip(found, expected, strict=True):
        assert one == wanted if isinstance(wanted, bytes) else wanted in str(one)
