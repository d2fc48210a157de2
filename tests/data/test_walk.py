"""Walking: every regular file once, in the order of path bytes, and never in circles."""

import inspect
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from bytelm.data.documents import Skipped
from bytelm.data.path_filter import PathFilter
from bytelm.data.walk import Unlisted, list_folder, walk
from bytelm.errors import SourceError

EVERYTHING = PathFilter((), ())


def walked(folder: Path, **settings: Any) -> list[bytes]:
    """Paths of the files below a folder, relative to it, as they are found."""
    begin = len(os.fsencode(folder)) + 1
    found = walk(os.fsencode(folder), EVERYTHING, **settings)
    return [one.path[begin:] for one in found if not isinstance(one, Skipped | Unlisted)]


def passed_over(folder: Path, **settings: Any) -> dict[bytes, str]:
    begin = len(os.fsencode(folder)) + 1
    found = walk(os.fsencode(folder), EVERYTHING, **settings)
    return {one.path[begin:]: one.reason for one in found if isinstance(one, Skipped)}


def put(folder: Path, name: bytes, content: bytes = b"x") -> None:
    path = folder / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_files_come_in_the_order_of_their_path_bytes(tmp_path: Path) -> None:
    names = [b"b", b"a/x", b"a-b", b"a.c", b"a0", b"B", b".hidden/.too", b"a/b/c", b"\xc3\xa4", b"\xff\xfe", b"a/\x01"]
    for name in names:
        put(tmp_path, name)
    assert walked(tmp_path) == sorted(names)


def test_links_and_special_files_are_passed_over_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, b"file")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as end:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        end.bind("socket")
        assert passed_over(tmp_path) == {
            b"loop": "link",
            b"dangling": "link",
            b"link": "link",
            b"pipe": "special",
            b"socket": "special",
        }
        assert walked(tmp_path) == [b"file"]


def test_folders_may_be_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    depth = 200
    name = b"d/" * depth + b"file"
    put(tmp_path, name)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + depth // 2)
    try:
        found = walked(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert found == [name]


@pytest.mark.parametrize("follow_links", [False, True])
def test_a_folder_that_is_to_be_left_out_is_left_out(tmp_path: Path, follow_links: bool) -> None:
    put(tmp_path, b"keep")
    put(tmp_path, b"out/leave")
    (tmp_path / "again").symlink_to("out")
    status = (tmp_path / "out").stat()
    assert walked(tmp_path, without={(status.st_dev, status.st_ino)}, follow_links=follow_links) == [b"keep"]


def test_links_are_followed_on_request_and_keep_the_order(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", b"x")
    put(tmp_path / "source", b"a-b")
    put(tmp_path / "source", b"ab")
    (tmp_path / "source" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source" / "file").symlink_to(tmp_path / "elsewhere" / "x")
    assert walked(tmp_path / "source", follow_links=True) == [b"a-b", b"a/x", b"ab", b"file"]


def test_links_that_lead_back_or_nowhere_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, b"source/inner/file")
    links = {"up": "..", "self": ".", "over": "../..", "nowhere": "nothing", "circle": "circle", "beside": "../other"}
    for name, target in links.items():
        (tmp_path / "source" / "inner" / name).symlink_to(target)
    put(tmp_path, b"source/other/file")
    (tmp_path / "source" / "other" / "back").symlink_to("../inner")
    assert walked(tmp_path / "source", follow_links=True) == [
        b"inner/beside/file",
        b"inner/file",
        # over is the parent of the source: the source itself, below it, is where the walk already is
        b"other/back/file",
        b"other/file",
    ]
    told = passed_over(tmp_path / "source", follow_links=True)
    assert set(told.values()) == {"link"}
    assert {b"inner/up", b"inner/self", b"inner/nowhere", b"inner/circle", b"inner/over/source"} <= set(told)


def test_a_link_to_something_special_is_a_link(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    assert passed_over(tmp_path, follow_links=True) == {b"link": "link", b"pipe": "special"}


def test_a_folder_that_vanishes_is_told_in_its_place(tmp_path: Path) -> None:
    for name in (b"a/x", b"b/x", b"c/x"):
        put(tmp_path, name)
    found = walk(os.fsencode(tmp_path), EVERYTHING)
    first = next(found)
    assert first.path.endswith(b"a/x")
    (tmp_path / "b" / "x").unlink()
    (tmp_path / "b").rmdir()
    (tmp_path / "b").write_text("no folder any more")
    gone, last = found
    assert gone == Unlisted(os.fsencode(tmp_path / "b"))
    assert last.path.endswith(b"c/x")
    with pytest.raises(SourceError, match=r"cannot read '.*/b': not a directory; make it readable or leave it out"):
        list_folder(gone.path, gitignore=False, follow_links=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_told_in_its_place(tmp_path: Path) -> None:
    put(tmp_path, b"shut/x")
    (tmp_path / "shut").chmod(0)
    try:
        assert list(walk(os.fsencode(tmp_path), EVERYTHING)) == [Unlisted(os.fsencode(tmp_path / "shut"))]
    finally:
        (tmp_path / "shut").chmod(0o700)
