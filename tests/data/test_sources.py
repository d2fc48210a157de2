"""Sources: every regular file, in one order, whatever its name and whatever it holds."""

import inspect
import os
import socket
import sys
from pathlib import Path

import pytest

from bytelm.data.sources import (
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
from bytelm.errors import SourceError

PLAIN = ReadOptions()


def found_below(folder: Path) -> list[bytes]:
    """Paths of the documents below a folder, relative to it, as they are found."""
    prefix = os.fsencode(folder) + b"/"
    return [found.address.removeprefix(prefix) for found in find_units([str(folder)], PLAIN) if isinstance(found, Unit)]


def document_at(path: bytes, stored_bytes: int = 1) -> Document:
    """The one document of a plain file."""
    (document,) = read_unit(Unit(0, path, "file", stored_bytes), PLAIN)
    assert isinstance(document, Document)
    return document


def put(folder: Path, name: bytes, content: bytes = b"x") -> None:
    path = folder / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_files_come_in_the_order_of_their_path_bytes(tmp_path: Path) -> None:
    names = [b"b", b"a/x", b"a-b", b"a.c", b"a0", b"B", b".hidden/.too", b"a/b/c", b"\xc3\xa4", b"\xff\xfe", b"a/\x01"]
    for name in names:
        put(tmp_path, name)
    assert found_below(tmp_path) == sorted(names)


def test_sources_are_read_in_the_order_they_are_named(tmp_path: Path) -> None:
    put(tmp_path, b"b/one")
    put(tmp_path, b"a/two")
    found = list(find_units([str(tmp_path / "b"), str(tmp_path / "a" / "two")], PLAIN))
    assert found == [
        Unit(0, os.fsencode(tmp_path / "b" / "one"), "file", 1),
        Unit(1, os.fsencode(tmp_path / "a" / "two"), "file", 1),
    ]


def test_links_and_special_files_are_passed_over_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, b"file")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as end:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        end.bind("socket")
        found = list(find_units([str(tmp_path)], PLAIN))
    reasons = {one.path.rpartition(b"/")[2]: one.reason for one in found if isinstance(one, Skipped)}
    assert reasons == {b"loop": "link", b"dangling": "link", b"link": "link", b"pipe": "special", b"socket": "special"}
    assert [one.address for one in found if isinstance(one, Unit)] == [os.fsencode(tmp_path / "file")]


def test_a_link_that_is_named_itself_is_followed(tmp_path: Path) -> None:
    put(tmp_path, b"folder/file")
    (tmp_path / "link").symlink_to("folder")
    assert found_below(tmp_path / "link") == [b"file"]


def test_folders_may_be_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    depth = 200
    name = b"d/" * depth + b"file"
    put(tmp_path, name)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + depth // 2)
    try:
        found = found_below(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert found == [name]


def test_a_folder_that_is_to_be_left_out_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, b"keep")
    put(tmp_path, b"out/leave")
    status = (tmp_path / "out").stat()
    found = list(find_units([str(tmp_path)], PLAIN, without={(status.st_dev, status.st_ino)}))
    assert found == [Unit(0, os.fsencode(tmp_path / "keep"), "file", 1)]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
@pytest.mark.parametrize("listed", [0, 1, 5_000_000])
def test_blocks_joined_are_the_file_whatever_size_was_listed(tmp_path: Path, size: int, listed: int) -> None:
    content = os.urandom(size)
    put(tmp_path, b"file", content)
    blocks = list(document_at(os.fsencode(tmp_path / "file"), listed).blocks())
    assert b"".join(blocks) == content
    assert all(1 <= len(block) <= 1 << 20 for block in blocks)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    put(tmp_path, b"a")
    put(tmp_path, b"b")
    first, second = find_units([str(tmp_path)], PLAIN)
    assert isinstance(first, Unit)
    assert isinstance(second, Unit)
    (tmp_path / "b").unlink()
    assert list(document_at(first.address).blocks()) == [b"x"]
    with pytest.raises(SourceError, match=r"cannot read '.*/b': there is no such file or folder") as caught:
        list(document_at(second.address).blocks())
    assert caught.value.reason == "unreadable"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc for a file that nobody can read")
def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(SourceError, match=r"cannot read '/proc/self/mem': .*; make it readable or leave it out"):
        list(document_at(b"/proc/self/mem").blocks())


def test_a_missing_source_and_one_that_is_no_file_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="there is no such file or folder"):
        check_sources([str(tmp_path / "nowhere")], PLAIN)
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        check_sources([str(tmp_path / "pipe")], PLAIN)
    with pytest.raises(SourceError, match="name at least one"):
        check_sources([], PLAIN)


def test_names_are_made_fit_for_messages() -> None:
    assert name_of(Path(os.fsdecode(b"caf\xc3\xa9\xff"))) == "café\\xff"
    assert "\x1b" not in shown_path(b"\x1b[2J")
    assert "\n" not in shown_path(b"a\nb")
