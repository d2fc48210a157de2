"""Which paths are read: what the caller includes and excludes, and what ``.gitignore`` files leave out."""

import os
from pathlib import Path

import pytest

from bytelm.data.documents import Skipped
from bytelm.data.path_filter import PathFilter
from bytelm.data.walk import Unlisted, walk
from bytelm.errors import ConfigError

EVERYTHING = PathFilter((), ())


def walked(folder: Path) -> list[str]:
    """Files that are walked with ``.gitignore`` files honoured, relative to the folder."""
    begin = len(os.fsencode(folder)) + 1
    found = walk(os.fsencode(folder), EVERYTHING, gitignore=True)
    return [os.fsdecode(one.path[begin:]) for one in found if not isinstance(one, Skipped | Unlisted)]


def test_rules_above_the_source_hold_in_a_repository(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "inner" / "deep").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("/inner/deep/anchored\n*.o\nkeep.*\n")
    (tmp_path / "inner" / ".gitignore").write_text("!keep.me\n")
    for name in ("anchored", "a.o", "a.c", "keep.me", "keep.out"):
        (tmp_path / "inner" / "deep" / name).write_text("x")
    assert walked(tmp_path / "inner" / "deep") == ["a.c", "keep.me"]
    (tmp_path / "away").symlink_to("inner/deep")
    assert walked(tmp_path / "away") == ["a.c", "keep.me"]


def test_without_a_repository_only_rules_in_the_source_hold(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / ".gitignore").write_text("*\n")
    (tmp_path / "inner" / "file").write_text("x")
    assert walked(tmp_path / "inner") == ["file"]
    assert walked(tmp_path) == []


def test_what_git_keeps_for_itself_is_no_source_and_left_out_names_are_told(tmp_path: Path) -> None:
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    (tmp_path / ".git" / "objects" / "x").write_text("x")
    (tmp_path / ".gitignore").write_text("*.o\nbuild/\n")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "x").write_text("x")
    (tmp_path / "a.o").write_text("x")
    skipped = [one for one in walk(os.fsencode(tmp_path), EVERYTHING, gitignore=True) if isinstance(one, Skipped)]
    assert skipped == [Skipped(os.fsencode(tmp_path / name), "excluded") for name in (".git", "a.o", "build")]


def test_lines_that_are_no_patterns_a_mark_in_front_and_names_that_are_no_utf8_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_bytes(b"\xef\xbb\xbf*.o\r\n!\n\\\na[\n\xff*\n")
    for name in (b"a.o", b"b", b"\xffc", b"a["):
        (tmp_path / os.fsdecode(name)).write_text("x")
    assert walked(tmp_path) == [".gitignore", "a[", "b"]


def test_a_gitignore_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("*\n")
    (tmp_path / ".gitignore").symlink_to("rules")
    assert walked(tmp_path) == ["rules"]


def kept(names: list[bytes], include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[bytes]:
    paths = PathFilter(include, exclude)
    return [name for name in names if paths.keeps(name)]


NAMES = [b"a.py", b"docs/a.py", b"docs/b.md", b"src/docs/c.md", b"\xff.py"]


def test_only_what_is_included_is_read() -> None:
    assert kept(NAMES) == NAMES
    assert kept(NAMES, ("*.py",)) == [b"a.py", b"docs/a.py", b"\xff.py"]
    assert kept(NAMES, ("/docs/",)) == [b"docs/a.py", b"docs/b.md"]
    assert kept(NAMES, ("docs/", "!*.md")) == [b"docs/a.py"]


def test_what_is_excluded_is_not_read_whatever_is_included() -> None:
    assert kept(NAMES, (), ("*.py",)) == [b"docs/b.md", b"src/docs/c.md"]
    assert kept(NAMES, ("*.py",), ("docs",)) == [b"a.py", b"\xff.py"]
    assert kept(NAMES, (), ("*", "!a.py")) == [b"a.py"]
    assert not PathFilter((), ("docs",)).enters(b"src/docs")
    assert not PathFilter((), ("docs/",)).enters(b"docs")
    assert PathFilter(("*.py",), ()).enters(b"docs")


@pytest.mark.parametrize("pattern", ["", "   ", "# comment", "!", "\\", "a[", "/"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    for include, exclude in (((pattern,), ()), ((), ("*.c", pattern))):
        with pytest.raises(ConfigError, match=r"give a pattern as in \.gitignore files"):
            PathFilter(include, exclude)


def test_patterns_that_only_take_back_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"include = \['!a'\]: these only take back"):
        PathFilter(("!a",), ())
