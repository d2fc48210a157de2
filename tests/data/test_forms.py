"""Names of files, and what is read of a folder by name."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bytelm.data.documents import Document, ReadOptions, Skipped
from bytelm.data.forms import form_of
from bytelm.data.sources import find_units, read_unit
from bytelm.errors import SourceError

TEXTS = ["one", "two"]
LINES = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
LIST = json.dumps([{"text": text} for text in TEXTS]).encode()
CSV = b"text\none\ntwo\n"
ROWS = ReadOptions(field="text")


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), file)
    return file.getvalue()


PLACES = {
    "a.jsonl": LINES,
    "a.ndjson": LINES,
    "a.jsonlines": LINES,
    "a.JL": LINES,
    "lines.json": LINES,
    "list.json": LIST,
    "a.csv": CSV,
    "a.tsv": CSV,
    "a.parquet": parquet(),
    "a.pq": parquet(),
    "web-train.00000-of-01024.json.gz": gzip.compress(LINES),
    "list.json.gzip": gzip.compress(LIST),
    "a.jsonl.zstd": zstandard.compress(LINES),
    "a.jsonl.zst": zstandard.compress(LINES),
    "a.csv.gz": gzip.compress(CSV),
    "a.parquet.gz": gzip.compress(parquet()),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_usual_names_of_tables_give_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PLACES[name])
    assert read(tmp_path / name, ROWS) == [(f"{name}#{number}", text.encode()) for number, text in numbered(name)]
    ((_, plain),) = read(tmp_path / name, ReadOptions(raw=True))
    assert plain == PLACES[name]


@pytest.mark.parametrize("archive", ["a.tar", "a.tar.zst", "a.zip"])
def test_tables_in_archives_give_rows(tmp_path: Path, archive: str) -> None:
    content = io.BytesIO()
    if archive == "a.zip":
        with zipfile.ZipFile(content, "w") as packed:
            for name, stored in {**PLACES, "notes.txt": b"notes"}.items():
                packed.writestr(name, stored)
    else:
        with tarfile.open(fileobj=content, mode="w") as packed:
            for name, stored in {**PLACES, "notes.txt": b"notes"}.items():
                member = tarfile.TarInfo(name)
                member.size = len(stored)
                packed.addfile(member, io.BytesIO(stored))
    stored = content.getvalue()
    (tmp_path / archive).write_bytes(zstandard.compress(stored) if archive.endswith("zst") else stored)
    expected = [(f"{archive}!/{name}#{row}", text.encode()) for name in PLACES for row, text in numbered(name)]
    assert read(tmp_path / archive, ROWS) == [*expected, (f"{archive}!/notes.txt", b"notes")]
    assert [content for _, content in read(tmp_path / archive, ReadOptions())][:-1] == list(PLACES.values())


def test_a_damaged_table_in_an_archive_costs_no_other_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("bad.jsonl.gz", gzip.compress(LINES)[:-9])
        packed.writestr("good.jsonl", LINES)
    found: list[bytes | str] = []
    for unit in find_units([str(tmp_path / "a.zip")], ROWS):
        assert not isinstance(unit, Skipped)
        for one in read_unit(unit, ROWS):
            assert isinstance(one, Document)
            try:
                found.append(b"".join(one.blocks()))
            except SourceError as error:
                found.append(error.reason)
    assert found[-3:] == ["damaged", b"one", b"two"]


def test_names_say_what_is_compressed_how() -> None:
    for name, form in {
        "a.tar.zstd": "tar+zst",
        "a.txt.gzip": "file+gz",
        "a.gz": "file+gz",
        "a": "file",
        ".gz": "file+gz",
        "a.zip.gz": "file+gz",
        "a.jsonl.bz2": "file+bz2",
    }.items():
        assert form_of(name.encode(), has_field=False) == form


def test_version_control_caches_and_byte_code_are_left_out_of_folders(tmp_path: Path) -> None:
    left_out = {
        ".git/HEAD": "version_control",
        "deep/.hg/x": "version_control",
        "bare.git/HEAD": "version_control",
        "__pycache__/a.txt": "cache",
        "deep/node_modules/a.js": "cache",
        "environment/pyvenv.cfg": "cache",
        "target/CACHEDIR.TAG": "cache",
        "deep/a.pyc": "byte_code",
        "A.class": "byte_code",
    }
    for name in (*left_out, "bare.git/objects/x", "a.py", "deep/a.bin", "venv/a", ".github/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    taken = [name for name, _ in read(tmp_path, ReadOptions())]
    assert taken == [".github/x", "a.py", "deep/a.bin", "venv/a"]
    skipped = [one for one in find_units([str(tmp_path)], ReadOptions()) if isinstance(one, Skipped)]
    assert sorted(one.reason for one in skipped) == sorted(left_out.values())
    assert len(read(tmp_path, ReadOptions(everything=True))) == len(taken) + len(left_out) + 1
    assert [name for name, _ in read(tmp_path, ReadOptions(include=("*.pyc", ".git/")))] == [".git/HEAD", "deep/a.pyc"]
    assert [name for name, _ in read(tmp_path, ReadOptions(include=("deep/",)))] == ["deep/a.bin"]
    for name in ("deep/a.pyc", "__pycache__", ".git"):  # what is named is taken
        assert len(read(tmp_path / name, ReadOptions())) == 1


def numbered(name: str) -> list[tuple[int, str]]:
    """Rows are numbered by lines where they are lines."""
    first = 2 if ".csv" in name or ".tsv" in name else 1
    return list(enumerate(TEXTS, first))


def read(source: Path, options: ReadOptions) -> list[tuple[str, bytes]]:
    """Names below the source's folder, or of the source, and contents."""
    begin = len(str(source)) + 1 if source.is_dir() else len(str(source.parent)) + 1
    found: list[tuple[str, bytes]] = []
    for unit in find_units([str(source)], options):
        for one in [] if isinstance(unit, Skipped) else read_unit(unit, options):
            if isinstance(one, Document):
                found.append((one.name.decode()[begin:], b"".join(one.blocks())))
    return found
