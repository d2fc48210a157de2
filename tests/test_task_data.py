import bz2
import gzip
import json
from pathlib import Path

import pytest
import zstandard

from bytelm.errors import SourceError
from bytelm.task_data import DataSet, drawn, field_of, read_file, read_rows

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
        ("x.json", json.dumps(ROWS, indent=1).encode()),
    ],
)
def test_rows_of_json_come_back_however_they_are_packed(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_file(tmp_path / name) == ROWS


def test_tables_and_the_text_of_hellaswag_are_rows_too(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('input1\tlabel\nthe\tt h e\n"\ta "b\n')
    assert read_file(tmp_path / "x.tsv") == [{"input1": "the", "label": "t h e"}, {"input1": '"', "label": 'a "b'}]
    (tmp_path / "h.txt").write_text("A man sits. he\n3\na\nb\nc\nd\n")
    assert read_file(tmp_path / "h.txt") == [{"ctx": "A man sits. he", "label": 3, "endings": ["a", "b", "c", "d"]}]


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
        ("x.jsonl.zst", b"no zstd", "is damaged"),
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

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = DataSet(files=("one.jsonl", "two.jsonl"), hub="nobody/nothing-at-all")
    with pytest.raises(
        SourceError, match=r"nobody/nothing-at-all cannot be read .*give --data FILE or --data DIR with DIR/one"
    ) as caught:
        read_rows(source, None, "example")
    assert "\n" not in str(caught.value)


def test_a_field_that_is_missing_is_named_with_those_that_are_there() -> None:
    assert field_of({"b": 2}, ["a", "b"], "example", 1) == 2
    with pytest.raises(SourceError, match="row 3 of the data of task example has no field 'a', only 'b', 'c'"):
        field_of({"b": 2, "c": 3}, ["a"], "example", 3)


def test_a_limit_draws_the_same_examples_for_a_seed() -> None:
    examples = list(range(100))
    some = drawn(examples, 10, seed=1)
    assert some == drawn(examples, 10, seed=1) == sorted(set(some))
    assert some != drawn(examples, 10, seed=2)
    assert drawn(examples, None, seed=1) == drawn(examples, 100, seed=1) == examples
