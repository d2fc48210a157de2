import bz2
import gzip
import json
import lzma
import random
import re
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from bytelm import task_data
from bytelm.errors import SourceError
from bytelm.task_data import DataSet, drawn, field_of, read_file, read_rows, text_of, texts_of

ROWS = [{"a": 1}, {"a": "zwei"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", LINES),
        ("x.jsonl", LINES + b"\n\n"),
        ("x.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("x.jsonl.bz2", bz2.compress(LINES)),
        ("x.jsonl.zst", zstandard.compress(LINES)),
        ("x.jsonl.zst", zstandard.compress(LINES[:9]) + zstandard.compress(LINES[9:])),
        ("x.jsonl.xz", lzma.compress(LINES)),
        ("x.json", json.dumps(ROWS, indent=1).encode()),
    ],
)
def test_rows_of_json_come_back_however_they_are_packed(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_file(tmp_path / name) == ROWS


def test_tables_and_the_text_of_hellaswag_are_rows_too(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('input1\tlabel\nthe\tt h e\n"\ta "b\n')
    assert read_file(tmp_path / "x.tsv") == [{"input1": "the", "label": "t h e"}, {"input1": '"', "label": 'a "b'}]
    (tmp_path / "lines.tsv").write_bytes("input1\tlabel\r\na\u2028b\tc\x0bd\r\n".encode())  # these end no line
    assert read_file(tmp_path / "lines.tsv") == [{"input1": "a\u2028b", "label": "c\x0bd"}]
    (tmp_path / "h.txt").write_text("A man sits. he\n3\na\nb\nc\nd\n")
    assert read_file(tmp_path / "h.txt") == [{"ctx": "A man sits. he", "label": 3, "endings": ["a", "b", "c", "d"]}]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes((content[middle] ^ 0xFF,)) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a":', "line 2 is no JSON"),
        ("x.jsonl", b"[1, 2]", "row 1 is no JSON object"),
        ("x.jsonl", b"", "holds no example"),
        ("x.json", b"[]", "holds no example"),
        ("x.jsonl", b"\xff\xfe", "is damaged"),
        ("x.jsonl.gz", gzip.compress(LINES, mtime=0)[:-4], "is damaged"),
        ("x.jsonl.gz", b"no gzip", "is damaged"),
        ("x.jsonl.bz2", b"no bzip2", "is damaged"),
        ("x.jsonl.gz", flipped(gzip.compress(LINES * 50, mtime=0)), "is damaged"),
        ("x.jsonl.bz2", bz2.compress(LINES)[:-4], "is damaged"),
        ("x.jsonl.zst", b"no zstd", "is damaged"),
        ("x.jsonl.zst", zstandard.compress(LINES)[:-1], "is damaged"),
        ("x.jsonl", b"[" * 100_000, "is no JSON"),
        ("x.tsv", b"input1\tlabel\n", "holds no example"),
        ("x.tsv", b"input1\tlabel\n" + b"a" * 200_000, "is no table"),
        ("h.txt", b"a\n1\nb\n", "is not what HellaSwag's text is"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_file(tmp_path / name)


def test_a_folder_gives_the_file_of_the_task(tmp_path: Path) -> None:
    source = DataSet(files=("one.jsonl", "two.jsonl"), hub="nobody/nothing")
    with pytest.raises(SourceError, match=r"holds no data of task example; put one.jsonl or two.jsonl there"):
        read_rows(source, tmp_path, "example")
    (tmp_path / "two.jsonl").write_bytes(LINES)
    assert read_rows(source, tmp_path, "example") == ROWS
    with pytest.raises(SourceError, match=r"cannot read .*nowhere"):
        read_rows(source, tmp_path / "nowhere", "example")


def test_offline_and_absent_is_one_line_that_says_where_to_put_which_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = DataSet(files=("one.jsonl", "two.jsonl"), hub="nobody/nothing-at-all")
    with pytest.raises(
        SourceError,
        match=r"nobody/nothing-at-all is in no .+ cannot be reached .*; give --data FILE or --data DIR with DIR/o",
    ) as caught:
        read_rows(source, None, "example")
    assert "\n" not in str(caught.value)


def test_a_field_that_is_missing_is_named_with_those_that_are_there() -> None:
    assert field_of({"b": 2}, ["a", "b"], "example", 1) == 2
    with pytest.raises(SourceError, match="row 3 of the data of task example has no field 'a', only 'b', 'c'"):
        field_of({"b": 2, "c": 3}, ["a"], "example", 3)


def test_what_is_no_text_is_named_with_what_was_found() -> None:
    row = {"a": "x", "b": 7, "c": [], "d": ["y", None], "e": ["y"]}
    assert text_of(row, ["a"], "example", 1) == "x"
    assert texts_of(row, ["missing", "e"], "example", 1) == ["y"]
    for read, name, message in (
        (text_of, "b", "row 2 of the data of task example should have text in 'b', found 7"),
        (texts_of, "a", "should have a list of texts in 'a', found \"x\""),
        (texts_of, "c", "should have a list of texts in 'c', found []"),
        (texts_of, "d", "should have text in 'd', found null"),
    ):
        with pytest.raises(SourceError, match=re.escape(message)):
            read(row, [name], "example", 2)


def test_a_limit_draws_the_same_examples_for_a_seed() -> None:
    examples = list(range(100))
    some = drawn(examples, 10, seed=1)
    assert some == drawn(examples, 10, seed=1) == sorted(set(some))
    assert some != drawn(examples, 10, seed=2)
    assert drawn(examples, None, seed=1) == drawn(examples, 100, seed=1) == examples


def test_a_decompression_bomb_is_refused_before_it_is_held(tmp_path: Path) -> None:
    bomb = tmp_path / "examples.jsonl.zst"
    bomb.write_bytes(zstandard.ZstdCompressor(level=1).compress(bytes(96 << 20)))
    with pytest.raises(SourceError, match=r"examples\.jsonl\.zst.*decompression bomb"):
        read_file(bomb)


@pytest.mark.parametrize("packed", ["", ".zst", ".xz"])
def test_too_much_data_is_refused_and_never_held_twice(
    tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 32 << 20
    monkeypatch.setattr(task_data, "_MOST_BYTES", limit)
    data = Path("/dev/zero")
    if packed:
        data = tmp_path / f"examples.jsonl{packed}"
        content = random.Random(0).randbytes(1 << 16) * (2 * limit >> 16)
        data.write_bytes(zstandard.compress(content) if packed == ".zst" else lzma.compress(content, preset=0))
    tracemalloc.start()
    with pytest.raises(SourceError, match=rf"the data .* has more .*{limit:,} .* most; give a part of it"):
        read_file(data)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1.5 * limit


def test_the_largest_known_data_set_fits_and_far_more_than_it_does_not() -> None:
    largest_known_bytes = 50 << 20  # the training part of HellaSwag
    assert 2 * largest_known_bytes < task_data._MOST_BYTES <= 256 << 20
