"""Tables: one column, a document for each row, and a count for each row that gives none."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data import table_rows, tables
from bytelm.data.compression import Allowance, Forward
from bytelm.data.documents import Document, Skipped
from bytelm.data.json_rows import json_rows
from bytelm.data.tables import dataset_parts, dataset_rows, is_parquet, parquet_parts, parquet_rows
from bytelm.errors import SourceError

MIB = 1 << 20


def contents(found: Iterator[Document | Skipped]) -> list[bytes | str]:
    """What is read, and the reason for what is not."""
    return [b"".join(one.blocks()) if isinstance(one, Document) else one.reason for one in found]


def rows_of(stored: bytes, field: str = "text", block: int = 1 << 20) -> Iterator[Document | Skipped]:
    blocks = (stored[begin : begin + block] for begin in range(0, len(stored), block))
    return json_rows(Forward(blocks), b"t.jsonl", field)


texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=50)


@settings(deadline=None)
@given(st.lists(texts), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]), st.integers(1, 50))
def test_every_string_of_a_field_is_a_document_in_utf8(
    strings: list[str], escaped: bool, between: str, block: int
) -> None:
    lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=escaped) for text in strings]
    for end in ("", between):
        stored = (between.join(lines) + end).encode()
        assert contents(rows_of(stored, block=block)) == [text.encode() for text in strings]


@settings(deadline=None)
@given(st.lists(texts, max_size=12), st.integers(1, 60))
def test_parts_of_a_file_of_lines_give_each_line_once(strings: list[str], part_bytes: int) -> None:
    stored = "".join(json.dumps({"text": text}) + "\n" for text in strings).encode()
    parts = max(1, -(-len(stored) // part_bytes))
    found: list[bytes | str] = []
    names: list[bytes] = []
    for part in range(parts):
        begin = part * part_bytes
        end = begin + part_bytes if part + 1 < parts else None
        first = max(0, begin - 1)
        content = Forward(iter([stored[first:]] if stored[first:] else []), first)
        for one in json_rows(content, b"t", "text", begin=begin, end=end, is_part=True):
            found += contents(iter([one]))
            assert isinstance(one, Document)
            names.append(one.name)
    assert found == [text.encode() for text in strings]
    assert len(set(names)) == len(names)


def test_rows_are_named_by_the_number_of_their_line() -> None:
    stored = b'\n{"text": "a"}\n\n{"text": "b"}'
    assert [one.name for one in rows_of(stored) if isinstance(one, Document)] == [b"t.jsonl#2", b"t.jsonl#4"]


def test_what_is_no_string_in_the_field_gives_no_document_and_is_counted() -> None:
    rows = [{"text": value} for value in (None, 5, 1.5, True, ["a"], {"text": "a"})]
    rows += [{"other": "a"}, {}, [], "text", None, 3]
    stored = "\n".join(map(json.dumps, rows)).encode()
    assert contents(rows_of(stored)) == ["no_field"] * len(rows)
    assert contents(rows_of(b'{"text": ""}')) == [b""]


def test_a_field_in_another_is_written_with_dots() -> None:
    stored = (
        b'{"a": {"b": {"c": "deep"}}}\n{"a.b.c": "flat", "a": {"b": {"c": "deep"}}}\n{"a": {"b": "other"}}\n{"a": 1}'
    )
    assert contents(rows_of(stored, "a.b.c")) == [b"deep", b"flat", "no_field", "no_field"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut o', r"its line 2 is not JSON"),
        (b'{"text": "a"} and more', r"its line 2 is not JSON"),
        (b'{"text": "caf\xe9"}', r"its line 2 is not UTF-8"),
        (b'{"text": "\xed\xa0\x80"}', r"its line 2 is not UTF-8"),
        (b"\0", r"its line 2 is not JSON"),
        (b"[" * 100_000, r"its line 2 is not JSON"),
        (rb'{"text": "half \ud800"}', r"#2' is damaged: it holds half of a surrogate pair, which is no text"),
    ],
)
def test_a_damaged_line_is_named_and_the_next_ones_are_read(line: bytes, message: str) -> None:
    first, damaged, last = rows_of(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    assert isinstance(damaged, Document)
    with pytest.raises(SourceError, match=message) as caught:
        list(damaged.blocks())
    assert caught.value.reason == "damaged"
    assert contents(iter([first, last])) == [b"a", b"b"]


def test_what_json_allows_is_no_damage() -> None:
    whole_pair = rb'{"text": "\ud83d\ude00"}'
    long_number = b'{"n": ' + b"9" * 5000 + b', "text": "a"}'
    with_mark = b'\xef\xbb\xbf{"text": "b"}'
    assert contents(rows_of(whole_pair)) == ["😀".encode()]
    assert contents(rows_of(long_number)) == [b"a"]
    assert contents(rows_of(with_mark)) == [b"b"]


def test_a_line_without_end_is_refused_and_not_held() -> None:
    def lines() -> Iterator[bytes]:
        yield b'{"text": "a"}\n{"text": "'
        for _ in range(table_rows.MOST_ROW_BYTES // MIB + 30):
            yield b"x" * MIB
        yield b'"}\n{"text": "b"}'

    tracemalloc.start()
    first, long, last = json_rows(Forward(lines()), b"t.jsonl", "text")
    assert tracemalloc.get_traced_memory()[1] < table_rows.MOST_ROW_BYTES + 10 * MIB
    tracemalloc.stop()
    assert isinstance(long, Document)
    with pytest.raises(SourceError, match=r"its line 2 has more than 64 MiB; split it"):
        list(long.blocks())
    assert contents(iter([first, last])) == [b"a", b"b"]


def test_a_long_string_comes_in_blocks() -> None:
    text = "ä" * MIB
    (document,) = rows_of(json.dumps({"text": text}).encode())
    assert isinstance(document, Document)
    blocks = list(document.blocks())
    assert b"".join(blocks) == text.encode()
    assert all(1 <= len(block) <= MIB for block in blocks)


def parquet(place: Path, values: Any, *, column: str = "text", **settings: Any) -> Path:
    pq.write_table(pa.table({"id": list(range(len(values))), column: values}), place, **settings)
    return place


def rows_of_parquet(place: Path, field: str = "text", part: int = 0, parts: int = 1) -> Iterator[Document | Skipped]:
    with place.open("rb", buffering=0) as file:
        allowance = Allowance(b"t.parquet", place.stat().st_size, 1000.0)
        yield from parquet_rows(file, b"t.parquet", field, part, parts, allowance)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
def test_strings_and_bytes_of_a_parquet_column_are_documents(
    tmp_path: Path, kind: pa.DataType, compression: str
) -> None:
    strings = ["a", None, "", "ünï", "x" * 3 * MIB, "a"]
    values = pa.array(strings, pa.string()).cast(pa.binary() if "binary" in str(kind) else pa.string()).cast(kind)
    place = parquet(tmp_path / "t.parquet", values, compression=compression, row_group_size=4)
    assert is_parquet(place.read_bytes()[:18])
    found = list(rows_of_parquet(place))
    assert contents(iter(found)) == ["no_field" if text is None else text.encode() for text in strings]
    assert [one.name if isinstance(one, Document) else one.path for one in found] == [
        b"t.parquet#%d" % row for row in range(1, 7)
    ]


def test_bytes_of_any_value_and_of_a_fixed_size_stay_as_they_are(tmp_path: Path) -> None:
    values = [bytes(range(256)), b"\xff" * 256]
    for kind in (pa.binary(), pa.binary(256)):
        place = parquet(tmp_path / "t.parquet", pa.array(values, kind))
        assert contents(rows_of_parquet(place)) == values


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_of_a_parquet_file_give_each_row_once(tmp_path: Path, parts: int) -> None:
    strings = [f"row {number}" for number in range(100)]
    place = parquet(tmp_path / "t.parquet", strings, row_group_size=9)
    found = [one for part in range(parts) for one in rows_of_parquet(place, "text", part, parts)]
    assert contents(iter(found)) == [text.encode() for text in strings]
    assert [one.name for one in found if isinstance(one, Document)] == [b"t.parquet#%d" % row for row in range(1, 101)]


def test_a_large_parquet_file_is_read_in_as_many_parts_as_it_has_row_groups_at_most(tmp_path: Path) -> None:
    place = parquet(tmp_path / "t.parquet", [f"{number}" for number in range(100)], row_group_size=25)
    with place.open("rb", buffering=0) as file:
        assert parquet_parts(file, b"t", place.stat().st_size) == 1
        assert parquet_parts(file, b"t", 3 * tables.PART_BYTES) == 3
        assert parquet_parts(file, b"t", 99 * tables.PART_BYTES) == 4


def test_a_parquet_column_in_another_is_written_with_dots(tmp_path: Path) -> None:
    place = tmp_path / "t.parquet"
    inner = pa.struct([("text", pa.string()), ("n", pa.int32())])
    rows = [{"text": "a", "n": 1}, None, {"text": None, "n": 2}]
    pq.write_table(pa.table({"meta": pa.array(rows, inner), "meta.n": ["x", "y", "z"]}), place)
    assert contents(rows_of_parquet(place, "meta.text")) == [b"a", "no_field", "no_field"]
    assert contents(rows_of_parquet(place, "meta.n")) == [b"x", b"y", b"z"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("txt", r"'t\.parquet' has no field 'txt', but 'id', 'text'; name one of these"),
        ("text.x", r"has no field 'text\.x'"),
        ("id", r"holds neither strings nor bytes in 'id', but int64; name another field"),
    ],
)
def test_a_parquet_file_without_such_a_column_is_refused(tmp_path: Path, field: str, message: str) -> None:
    place = parquet(tmp_path / "t.parquet", ["a"])
    with pytest.raises(SourceError, match=message) as caught:
        list(rows_of_parquet(place, field))
    assert caught.value.reason == "no_field"


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    place = parquet(tmp_path / "t.parquet", [f"{number}" * 100 for number in range(100)])
    stored = place.read_bytes()
    footer = len(stored) - 8 - int.from_bytes(stored[-8:-4], "little")
    for damage in (
        stored[:4],
        stored[:-1],
        stored[: len(stored) // 2],
        stored[:footer] + bytes(40) + stored[footer + 40 :],
    ):
        place.write_bytes(damage)
        with pytest.raises(SourceError, match=r"'t\.parquet' is damaged: Parquet cannot be read") as caught:
            list(rows_of_parquet(place))
        assert caught.value.reason == "damaged"


@pytest.mark.parametrize("bad", [0, 2, 3])
def test_a_damaged_row_group_costs_its_own_rows_alone(tmp_path: Path, bad: int) -> None:
    strings = [f"row {number} " * 20 for number in range(20)]
    place = parquet(tmp_path / "t.parquet", strings, row_group_size=5, compression="none")
    page = pq.read_metadata(place).row_group(bad).column(1).data_page_offset
    stored = place.read_bytes()
    place.write_bytes(stored[:page] + bytes(40) + stored[page + 40 :])
    found = list(rows_of_parquet(place))
    lost = found.pop(5 * bad)
    assert isinstance(lost, Document)
    with pytest.raises(SourceError, match=rf"in row group {bad + 1} of 4: 5 of its 5 rows are lost") as caught:
        list(lost.blocks())
    assert caught.value.reason == "damaged"
    sound = [row for row in range(20) if row // 5 != bad]
    assert contents(iter(found)) == [strings[row].encode() for row in sound]
    assert [one.name for one in found if isinstance(one, Document)] == [b"t.parquet#%d" % (row + 1) for row in sound]


def test_rows_before_the_damage_of_a_row_group_are_read(tmp_path: Path) -> None:
    strings = [f"{number:08}" * 100 for number in range(3000)]
    place = parquet(tmp_path / "t.parquet", strings, row_group_size=2000, compression="none", use_dictionary=False)
    stored = place.read_bytes()
    at = stored.index(b"00001500" * 100)
    place.write_bytes(stored[: at - 4] + b"\xff" * 4 + stored[at:])  # the length of a value
    found = list(rows_of_parquet(place))
    assert isinstance(found[1024], Document)
    with pytest.raises(SourceError, match=r"in row group 1 of 2: 976 of its 2,000 rows are lost"):
        list(found[1024].blocks())
    del found[1024]
    assert contents(iter(found)) == [text.encode() for text in (*strings[:1024], *strings[2000:])]


def test_a_parquet_bomb_is_refused(tmp_path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * 500_000])
    place = parquet(tmp_path / "t.parquet", values, compression="zstd")
    read_bytes = 0
    with pytest.raises(SourceError, match="looks like a decompression bomb"):
        for one in rows_of_parquet(place):
            assert isinstance(one, Document)
            read_bytes += sum(map(len, one.blocks()))
    assert read_bytes <= max(64 * MIB, 1000 * place.stat().st_size)


def test_a_data_set_in_a_local_folder_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    parquet(tmp_path / "train-0.parquet", ["a", None, "b"])
    parquet(tmp_path / "train-1.parquet", ["c", "d"])
    name, parts = dataset_parts(f"hf:{tmp_path}")
    assert (name, parts) == (f"hf:{tmp_path}::train", 2)
    found = [contents(dataset_rows(name, "text", part, parts)) for part in range(parts)]
    assert found == [[b"a", "no_field", b"b"], [b"c", b"d"]]
    with pytest.raises(SourceError, match=r"has no field 'body', but 'id', 'text'") as caught:
        list(dataset_rows(name, "body", 0, parts))
    assert caught.value.reason == "no_field"
    with pytest.raises(SourceError, match=r"cannot read hf:.*nothing"):
        dataset_parts(f"hf:{tmp_path / 'nothing'}")
    with pytest.raises(SourceError, match="names no data set"):
        dataset_parts("hf:")
