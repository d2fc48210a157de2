"""Rows of comma-separated values: what RFC 4180 allows is read, and a bad row costs itself alone."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data import table_rows
from bytelm.data.compression import Forward
from bytelm.data.csv_rows import csv_rows
from bytelm.data.documents import Document
from bytelm.errors import SourceError


def read(stored: bytes, block: int = 1 << 20, field: str = "text") -> list[bytes | str]:
    """Rows, and the messages of those that are damaged."""
    blocks = (stored[begin : begin + block] for begin in range(0, len(stored), block))
    found: list[bytes | str] = []
    for one in csv_rows(Forward(blocks), b"t.csv", field):
        assert isinstance(one, Document)
        assert one.is_row
        try:
            found.append(b"".join(one.blocks()))
        except SourceError as error:
            found.append(str(error).split("; ")[0].removeprefix("'t.csv' is damaged: "))
    return found


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=30), max_size=6),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 40),
)
def test_what_a_writer_writes_is_read(texts: list[str], delimiter: str, end: str, block: int) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    writer.writerow(["id", "text"])
    writer.writerows([number, text] for number, text in enumerate(texts))
    assert read(file.getvalue().encode(), block) == [text.encode() for text in texts]


def test_a_cell_may_be_longer_than_the_library_likes() -> None:
    assert read(b"id,text\n1," + b"x" * 300_000) == [b"x" * 300_000]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (b"", []),
        (b"text\n", []),
        (b"\xef\xbb\xbftext,id\na,1\n", [b"a"]),
        (b"id,text\n1,a\n\n2,b", [b"a", b"b"]),
        (b"id,text\n1,a\n2\n3,b,c\n4,d\n", [b"a", "row at line 3", "row at line 4", b"d"]),
        (b"id,text\n1,\xff\n2,b\n", ["row at line 2 is not UTF-8", b"b"]),
        (b"id,text\n\xff,a\n2,b\n", [b"a", b"b"]),
        (b'id,text\n1,a\n2,"open\n3,b\n4,"c"\n5,d\n', [b"a", "row at line 3", b"b", b"c", b"d"]),
        (b'id,text\n1,"open\n2,b\n', ["row at line 2", b"b"]),
    ],
)
def test_a_bad_row_costs_itself_alone(stored: bytes, expected: list[bytes | str]) -> None:
    found = read(stored, 3)
    assert len(found) == len(expected)
    for one, wanted in zip(found, expected, strict=True):
        assert one == wanted if isinstance(wanted, bytes) else wanted in str(one)


def test_a_row_that_is_too_long_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "MOST_ROW_BYTES", 50)
    found = read(b"id,text\n1,a\n2," + b"x" * 100 + b'\n3,b\n4,"c\n' + b"5,d\n" * 40)
    assert [one for one in found if isinstance(one, bytes)] == [b"a", b"b", *[b"d"] * 40]
    assert len(found) == 44


def test_a_table_without_such_a_column_is_refused_with_those_there_are() -> None:
    for stored in (b"id,body\n1,a\n", b"id;body\n1;a\n"):
        with pytest.raises(SourceError, match=r"has no field 'text', but 'id', 'body'; name one of these") as caught:
            read(stored)
        assert caught.value.reason == "no_field"
