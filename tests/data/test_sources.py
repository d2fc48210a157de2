"""Sources: whatever is named becomes documents, in one order, whatever its name and whatever it holds."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bytelm.data import tables
from bytelm.data.sources import (
    SKIP_REASONS,
    Document,
    ReadOptions,
    Skipped,
    Unit,
    check_sources,
    find_units,
    name_of,
    read_unit,
    shown_path,
)
from bytelm.errors import ConfigError, SourceError

PLAIN = ReadOptions()
TEXT = ReadOptions(field="text")
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zst": zstandard.compress,
}
FILES = [("one.py", b"1" * 5000), ("deep/two.c", b"2"), ("deep/empty", b"")]


def packed(files: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(files: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    return file.getvalue()


def rows(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def units(source: Path | str, options: ReadOptions = PLAIN) -> list[Unit]:
    return [found for found in find_units([str(source)], options) if isinstance(found, Unit)]


def read(source: Path | str, options: ReadOptions = PLAIN) -> dict[str, bytes | str]:
    """Documents below a source by name, and reasons for what gave none; names begin behind the source's."""
    found: dict[str, bytes | str] = {}
    prefix = len(str(source)) + 1
    for unit in find_units([str(source)], options):
        for one in [unit] if isinstance(unit, Skipped) else read_unit(unit, options):
            if isinstance(one, Skipped):
                found[os.fsdecode(one.path)[prefix:]] = one.reason
            else:
                found[os.fsdecode(one.name)[prefix:]] = b"".join(one.blocks())
    return found


def test_sources_are_read_in_the_order_they_are_named(tmp_path: Path) -> None:
    put(tmp_path, {"b/one": b"x", "a/two": b"yy"})
    found = list(find_units([str(tmp_path / "b"), str(tmp_path / "a" / "two")], PLAIN))
    assert found == [
        Unit(0, os.fsencode(tmp_path / "b" / "one"), "file", 1, in_folder=True),
        Unit(1, os.fsencode(tmp_path / "a" / "two"), "file", 2),
    ]


def test_units_go_to_other_processes(tmp_path: Path) -> None:
    unit = Unit(1, b"\xff", "tar+gz", 5, 1, 2)
    assert pickle.loads(pickle.dumps((unit, TEXT))) == (unit, TEXT)  # noqa: S301  made here
    (document,) = read_unit(Unit(0, os.fsencode(put(tmp_path, {"a": b"x"}) / "a"), "file", 1), PLAIN)
    assert isinstance(document, Document)
    assert b"".join(pickle.loads(pickle.dumps(document)).blocks()) == b"x"  # noqa: S301


def test_a_link_that_is_named_itself_is_followed_and_others_are_told(tmp_path: Path) -> None:
    put(tmp_path, {"folder/file": b"x", "folder/.hidden": b"y"})
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "folder" / "inner").symlink_to("file")
    os.mkfifo(tmp_path / "folder" / "pipe")
    assert read(tmp_path / "link") == {".hidden": b"y", "file": b"x", "inner": "link", "pipe": "special"}
    assert read(tmp_path / "link", ReadOptions(follow_links=True))["inner"] == b"x"


@pytest.mark.parametrize("compression", COMPRESS)
def test_what_is_compressed_is_read_as_what_it_holds(tmp_path: Path, compression: str) -> None:
    compress = COMPRESS[compression]
    put(
        tmp_path,
        {
            f"a.c.{compression}": compress(b"content"),
            f"B.TAR.{compression.upper()}": compress(packed(FILES)),
            f"t.jsonl.{compression}": compress(rows(["x", "y"])),
        },
    )
    assert read(tmp_path, TEXT) == {
        f"B.TAR.{compression.upper()}!/one.py": b"1" * 5000,
        f"B.TAR.{compression.upper()}!/deep/two.c": b"2",
        f"B.TAR.{compression.upper()}!/deep/empty": b"",
        f"a.c.{compression}": b"content",
        f"t.jsonl.{compression}#1": b"x",
        f"t.jsonl.{compression}#2": b"y",
    }
    assert read(tmp_path)[f"t.jsonl.{compression}"] == rows(["x", "y"])


@pytest.mark.parametrize(("ending", "compression"), [("tgz", "gz"), ("tbz2", "bz2"), ("txz", "xz"), ("tzst", "zst")])
def test_short_endings_are_known(tmp_path: Path, ending: str, compression: str) -> None:
    put(tmp_path, {f"a.{ending}": COMPRESS[compression](packed(FILES))})
    assert list(read(tmp_path).values()) == [content for _, content in FILES]


def test_archives_and_tables_that_are_not_compressed_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["p", None]}), tmp_path / "t.parquet")
    put(tmp_path, {"a.tar": packed(FILES), "b.zip": zipped(FILES), "t.jsonl": rows(["x"])})
    assert list(read(tmp_path, TEXT).values()) == [*[content for _, content in FILES] * 2, b"x", b"p", "no_field"]
    as_they_are = read(tmp_path)
    assert as_they_are["t.jsonl"] == rows(["x"])
    assert as_they_are["t.parquet"] == (tmp_path / "t.parquet").read_bytes()


def test_nothing_is_opened_where_raw_files_are_asked_for(tmp_path: Path) -> None:
    files = {"a.gz": gzip.compress(b"x"), "b.tar": packed(FILES), "c.zip": zipped(FILES), "d.tgz": b"x"}
    assert read(put(tmp_path, files), ReadOptions(raw=True)) == files


def test_what_does_not_begin_as_its_name_says_is_a_document_as_it_is(tmp_path: Path) -> None:
    files: dict[str, bytes] = {
        f"a.{ending}": b"no such thing " * 100
        for ending in ("gz", "bz2", "xz", "lzma", "zst", "tar", "tar.gz", "tgz", "zip", "jsonl.gz", "parquet")
    }
    files |= {f"empty.{ending}": b"" for ending in ("gz", "tar", "zip", "parquet", "jsonl")}
    expected = {name: content for name, content in files.items() if name != "empty.jsonl"}
    assert read(put(tmp_path, files), TEXT) == expected | {"a.jsonl.gz": files["a.jsonl.gz"]}


def test_a_compressed_file_that_is_named_tar_but_holds_none_is_one_document(tmp_path: Path) -> None:
    put(tmp_path, {"a.tar.gz": gzip.compress(b"words")})
    assert read(tmp_path) == {"a.tar.gz": b"words"}


def test_archives_in_archives_stay_as_they_are(tmp_path: Path) -> None:
    inner = packed(FILES)
    put(tmp_path, {"a.zip": zipped([("b.tar", inner), ("c.gz", gzip.compress(b"x"))])})
    assert read(tmp_path) == {"a.zip!/b.tar": inner, "a.zip!/c.gz": gzip.compress(b"x")}


def test_damage_is_told_from_what_cannot_be_read(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "a.gz": gzip.compress(b"x")[:-3],
            "b.tar": packed(FILES)[:5000],
            "c.zip": zipped(FILES)[:-5],
            "d.tar.xz": lzma.compress(packed(FILES))[:-20],
            "e.gz": b"x",
        },
    )
    listed = units(tmp_path)
    for unit in listed[:-1]:
        with pytest.raises(SourceError) as caught:
            for one in read_unit(unit, PLAIN):
                assert isinstance(one, Document)
                list(one.blocks())
        assert caught.value.reason == "damaged"
        assert "\n" not in str(caught.value)
    (tmp_path / "e.gz").unlink()
    with pytest.raises(SourceError, match=r"cannot read '.*/e\.gz': there is no such file") as caught:
        list(read_unit(listed[-1], PLAIN))
    assert caught.value.reason == "unreadable"


def test_a_file_that_vanishes_or_shrinks_before_it_is_read_is_no_silent_loss(tmp_path: Path) -> None:
    put(tmp_path, {"a": b"x" * 100, "b": b"x"})
    first, second = units(tmp_path)
    (tmp_path / "a").write_bytes(b"short")
    (tmp_path / "b").unlink()
    (document,) = read_unit(first, PLAIN)
    assert isinstance(document, Document)
    assert b"".join(document.blocks()) == b"short"  # as a whole what it is now: nothing was promised yet
    (document,) = read_unit(second, PLAIN)
    assert isinstance(document, Document)
    with pytest.raises(SourceError, match="there is no such file or folder"):
        list(document.blocks())


def test_a_folder_that_cannot_be_listed_is_told_when_it_is_read(tmp_path: Path) -> None:
    put(tmp_path, {"a/x": b"x", "b/x": b"x"})
    found = find_units([str(tmp_path)], PLAIN)
    next(found)
    (tmp_path / "b" / "x").unlink()
    (tmp_path / "b").rmdir()
    (tmp_path / "b").write_bytes(b"now a file")
    (unit,) = found
    assert isinstance(unit, Unit)
    assert unit.form == "folder"
    with pytest.raises(SourceError, match=r"cannot read '.*/b': not a directory"):
        list(read_unit(unit, PLAIN))
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    with pytest.raises(SourceError, match="it could not be listed, but now it can; try again"):
        list(read_unit(unit, PLAIN))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told_when_it_is_read(tmp_path: Path) -> None:
    put(tmp_path, {"shut": b"x"})
    (tmp_path / "shut").chmod(0)
    (document,) = read_unit(units(tmp_path)[0], PLAIN)
    assert isinstance(document, Document)
    with pytest.raises(SourceError, match=r"cannot read '.*/shut': permission denied"):
        list(document.blocks())


def test_patterns_choose_files_and_look_into_archives_that_are_named(tmp_path: Path) -> None:
    put(tmp_path, {"a.tar": packed(FILES), "deep/b.zip": zipped(FILES), "x.py": b"x", "deep/y.c": b"y"})
    python = read(tmp_path, ReadOptions(include=("*.py",)))
    assert python == {"a.tar": "excluded", "deep/b.zip": "excluded", "deep/y.c": "excluded", "x.py": b"x"}
    for archive in ("a.tar", "deep/b.zip"):
        inside = read(tmp_path / archive, ReadOptions(include=("*.py",)))
        assert [name for name, content in inside.items() if content != "excluded"] == ["/one.py"]
    deep = read(tmp_path, ReadOptions(include=("/deep/",), exclude=("*.c",)))
    assert [name for name, content in deep.items() if content != "excluded"] == [
        "deep/b.zip!/one.py",
        "deep/b.zip!/deep/empty",
    ]
    assert read(tmp_path, ReadOptions(exclude=("deep", "*.tar"))) == {
        "a.tar": "excluded",
        "deep": "excluded",
        "x.py": b"x",
    }
    (tmp_path / ".gitignore").write_text("*.py\ndeep/\n!b.zip\n")
    ignoring = read(tmp_path, ReadOptions(gitignore=True))
    assert [name for name, content in ignoring.items() if content == "excluded"] == ["deep", "x.py"]


def test_a_file_that_is_named_is_judged_by_its_name(tmp_path: Path) -> None:
    place = put(tmp_path, {"deep/x.py": b"x"}) / "deep" / "x.py"
    (excluded,) = find_units([str(place)], ReadOptions(exclude=("x.*",)))
    assert excluded == Skipped(os.fsencode(place), "excluded")
    assert units(place, ReadOptions(exclude=("deep",), include=("/x.py",)))


def test_a_pattern_may_be_a_source_if_there_is_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"logs/a.txt": b"a", "logs/b.txt": b"b", "logs/c": b"c", "logs/deep/d.txt": b"d", "[x]": b"odd"})
    monkeypatch.chdir(tmp_path)
    assert [unit.address for unit in units("logs/*.txt")] == [b"logs/a.txt", b"logs/b.txt"]
    assert [unit.address for unit in units("logs/**")] == [
        b"logs/a.txt",
        b"logs/b.txt",
        b"logs/c",
        b"logs/deep/d.txt",
    ]
    assert [unit.address for unit in units("[x]")] == [b"[x]"]
    with pytest.raises(SourceError, match="no file or folder matches this pattern"):
        check_sources(["*.nothing"], PLAIN)


def test_standard_input_is_the_file_that_keeps_it(tmp_path: Path) -> None:
    kept = put(tmp_path, {"kept.tar": packed(FILES)}) / "kept.tar"
    check_sources(["-"], PLAIN)
    (unit,) = find_units(["-"], PLAIN, stdin=kept)
    assert unit == Unit(0, os.fsencode(kept), "file", kept.stat().st_size)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_large_tables_are_several_units_that_give_each_row_once(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "PART_BYTES", 1000)
    texts = [f"row {number} " + "x" * (number % 50) for number in range(400)]
    if form == "jsonl":
        put(tmp_path, {"t.jsonl": rows(texts)})
    else:
        pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet", row_group_size=30, compression="none")
    listed = units(tmp_path, TEXT)
    assert len(listed) > 5
    assert [(unit.part, unit.parts) for unit in listed] == [(part, len(listed)) for part in range(len(listed))]
    assert sum(unit.stored_bytes for unit in listed) == (tmp_path / f"t.{form}").stat().st_size
    assert list(read(tmp_path, TEXT).values()) == [text.encode() for text in texts]


def test_a_bomb_in_a_folder_is_refused_unless_more_is_allowed(tmp_path: Path) -> None:
    put(tmp_path, {"bomb.gz": gzip.compress(bytes(80 << 20))})
    with pytest.raises(SourceError, match=r"bomb\.gz' is damaged: it looks like a decompression bomb"):
        read(tmp_path)
    assert read(tmp_path, ReadOptions(most_expansion=2000.0)) == {"bomb.gz": bytes(80 << 20)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ReadOptions(raw=True, field="text"), "raw and field = 'text' contradict each other"),
        (ReadOptions(field=""), "field = ''"),
        (ReadOptions(most_expansion=0.5), r"most_expansion = 0\.5"),
        (ReadOptions(most_expansion=float("nan")), "most_expansion = nan"),
        (ReadOptions(include=("!a",)), "include"),
        (ReadOptions(exclude=("",)), "exclude"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, options: ReadOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sources([str(tmp_path)], options)
    with pytest.raises(ConfigError, match=message):
        list(find_units([str(tmp_path)], options))


def test_a_missing_source_and_one_that_is_no_file_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="there is no such file or folder"):
        check_sources([str(tmp_path / "nowhere")], PLAIN)
    with pytest.raises(
        SourceError, match="neither a file nor a folder; name one of these, or send it to standard input"
    ):
        check_sources([str(tmp_path / "pipe")], PLAIN)
    with pytest.raises(SourceError, match="name at least one"):
        check_sources([], PLAIN)


def test_an_address_of_this_machine_is_a_path(tmp_path: Path) -> None:
    put(tmp_path, {"a": b"x"})
    check_sources([f"file://{tmp_path}"], PLAIN)
    assert units(f"file://{tmp_path}") == units(tmp_path)


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of an empty folder that is no local one."""
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/folder"
        return
    address = f"memory://{uuid.uuid4().hex}"
    yield address
    files, path = fsspec.core.url_to_fs(address)
    if files.exists(path):
        files.rm(path, recursive=True)


def test_everything_is_read_from_an_address_as_from_a_disk(remote: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["p", None]}), tmp_path / "t.parquet")
    put(
        tmp_path,
        {
            "deep/a-b": b"1",
            "deep/a/x.py": b"2",
            "a.tar.zst": zstandard.compress(packed(FILES)),
            "b.zip": zipped(FILES),
            "t.jsonl.gz": gzip.compress(rows(["x", "y"])),
            "t.jsonl": rows(["x", "y"]),
            ".hidden": b"h",
        },
    )
    for place in tmp_path.rglob("*"):
        if place.is_file():
            with fsspec.open(f"{remote}/{place.relative_to(tmp_path)}", "wb") as file:
                file.write(place.read_bytes())  # pyright: ignore[reportAttributeAccessIssue]
    for options in (TEXT, PLAIN, ReadOptions(include=("*.py", "*.zip"), exclude=("deep/",))):
        ours = {name: content for name, content in read(remote, options).items() if content != "excluded"}
        theirs = {name: content for name, content in read(tmp_path, options).items() if content != "excluded"}
        assert list(ours.items()) == list(theirs.items())
    assert [unit.address for unit in units(f"{remote}/deep/a-b")] == [f"{remote}/deep/a-b".encode()]
    assert [unit.address for unit in units(f"{remote}/t.*", TEXT)] == [
        f"{remote}/{name}".encode() for name in ("t.jsonl", "t.jsonl.gz", "t.parquet")
    ]
    assert {unit.stored_bytes for unit in units(f"{remote}/deep")} == {1}
    with pytest.raises(SourceError, match="there is no such file or folder"):
        units(f"{remote}/nothing")
    with pytest.raises(SourceError, match="there is no such file or folder"):
        units(f"{remote}/*.nothing")


def test_a_data_set_in_a_folder_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    put(tmp_path, {"train-0.jsonl": rows(["a", "b"]), "train-1.jsonl": rows(["c"]), "test.jsonl": rows(["held out"])})
    source = f"hf:{tmp_path}"
    check_sources([source], PLAIN)
    listed = units(source)
    assert [(unit.address, unit.part, unit.parts) for unit in listed] == [
        (f"{source}::train".encode(), 0, 2),
        (f"{source}::train".encode(), 1, 2),
    ]
    assert list(read(source).values()) == [b"a", b"b", b"c"]
    assert list(read(f"{source}::test").values()) == [b"held out"]


def test_every_reason_of_a_source_is_one_of_the_reasons() -> None:
    assert len(set(SKIP_REASONS)) == len(SKIP_REASONS)
    assert {"empty", "link", "special", "excluded", "unreadable", "damaged", "no_field"} <= set(SKIP_REASONS)


def test_names_are_made_fit_for_messages() -> None:
    assert name_of(Path(os.fsdecode(b"caf\xc3\xa9\xff"))) == "café\\xff"
    assert "\x1b" not in shown_path(b"\x1b[2J")
    assert "\n" not in shown_path(b"a\nb")


READ_ALL = """
import resource, sys
from bytelm.data.sources import Document, ReadOptions, find_units, read_unit
options = ReadOptions(field="text", most_expansion=1e6)
read_bytes = 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for unit in find_units(sys.argv[1:], options):
    for document in read_unit(unit, options):
        read_bytes += sum(map(len, document.blocks()))
print(read_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "zst", "gz", "tar", "zip", "jsonl", "parquet"])
def test_what_is_larger_than_the_memory_takes_little_of_it(tmp_path: Path, form: str) -> None:
    size = 3 << 30
    limit_kib = 160 << 10 if form == "parquet" else 64 << 10
    if form in ("plain", "tar", "zip"):
        with (tmp_path / "large").open("wb") as file:
            file.truncate(size)
    if form == "tar":
        subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-S", "-C", tmp_path, "large"], check=True)
        (tmp_path / "large").unlink()
    elif form == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.write(tmp_path / "large")
        (tmp_path / "large").unlink()
    elif form in ("zst", "gz"):
        with (
            zstandard.open(tmp_path / "a.zst", "wb") if form == "zst" else gzip.open(tmp_path / "a.gz", "wb", 1)
        ) as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    elif form == "jsonl":
        line = json.dumps({"text": "x" * ((1 << 20) - 20)}).encode()
        with (tmp_path / "t.jsonl").open("wb") as file:
            for _ in range(size >> 20):
                file.write(line + b"\n")
        size = (size >> 20) * ((1 << 20) - 20)
    elif form == "parquet":
        schema = pa.schema([("text", pa.string())])
        with pq.ParquetWriter(tmp_path / "t.parquet", schema, compression="zstd", use_dictionary=False) as writer:
            for begin in range(3):
                texts = [f"{begin} {row} " + "x" * 1000 for row in range(1_000_000)]
                writer.write_table(pa.table({"text": texts}, schema), row_group_size=1_000_000)
        size = sum(len(f"{begin} {row} ") + 1000 for begin in range(3) for row in range(1_000_000))
    done = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path], check=True, capture_output=True, text=True)
    read_bytes, grown_kib = map(int, done.stdout.split())
    assert read_bytes == size
    assert grown_kib < limit_kib


def test_a_bad_row_of_a_data_set_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = rows(["a", "b", "c"]).splitlines()
    bad = [lines[0], lines[1][:9], b'{"text": "caf\xe9"}', rb'{"text": "half \ud800"}', lines[2]]
    folders = {
        "lines": {"train-0.jsonl": b"\n".join(bad), "train-1.jsonl": rows(["d"])},
        "packed": {"train-0.json.gz": gzip.compress(b"\n".join(bad)), "train-1.json.gz": gzip.compress(rows(["d"]))},
        "cells": {"train-0.csv": b"text,id\na,1\nbad\nb\xe9,2\n,3,3\nc,4\n", "train-1.csv": b"text,id\nd,1\n"},
    }
    for name, files in folders.items():
        source = f"hf:{put(tmp_path / name, files)}"
        found: list[str] = []
        for unit in units(source):
            for one in read_unit(unit, PLAIN):
                assert isinstance(one, Document)
                try:
                    found.append(b"".join(one.blocks()).decode())
                except SourceError as error:
                    found.append(error.reason)
        assert found == ["a", "damaged", "damaged", "damaged", "c", "d"], name
