"""Patterns: what git would say."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bytelm.data.documents import Skipped
from bytelm.data.path_filter import PathFilter
from bytelm.data.patterns import NoPattern, Pattern, Patterns
from bytelm.data.walk import Unlisted, walk

EVERYTHING = PathFilter((), ())


def walked(folder: Path) -> list[str]:
    """Files that are walked with ``.gitignore`` files honoured, relative to the folder."""
    begin = len(os.fsencode(folder)) + 1
    found = walk(os.fsencode(folder), EVERYTHING, gitignore=True)
    return [os.fsdecode(one.path[begin:]) for one in found if not isinstance(one, Skipped | Unlisted)]


def kept_by_git(repository: Path, folder: Path) -> list[str]:
    command = ["git", "-C", folder, "ls-files", "--others", "--exclude-standard", "-z"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", "init", "-q", repository], check=True, env=environment)
    listed = subprocess.run(command, check=True, env=environment, capture_output=True).stdout
    return sorted((os.fsdecode(name) for name in listed.split(b"\0") if name), key=os.fsencode)


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git to compare with")
words = st.sampled_from(["a", "b", "c", "a.x", "b.y", "é", "-", "]", "a b", "a ", "*", "\\", "[a]"])
atoms = st.sampled_from(
    [
        "a",
        "b",
        "c",
        "a.x",
        "*",
        "**",
        "***",
        "*.x",
        "?",
        "??",
        "a*",
        "a**",
        "**a",
        "*b*",
        "[ab]",
        "[!a]",
        "[^a-b]",
        "[a-c]",
        "[--a]",
        "[]a]",
        "[!]]",
        "[]-a]",
        "[b-]",
        "[a-\\c]",
        "[\\]]",
        "[a",
        "[a-",
        "[[:alpha:]]",
        "[[:punct:]]",
        "[[:foo:]]",
        "[[:alpha:]",
        "\\a",
        "\\*",
        "\\[",
        "\\\\",
        "a\\",
        "é",
        "[é]",
        "#",
    ]
) | st.sampled_from(["a ", "a\\ ", " "])
patterns = st.builds(
    lambda negated, anchored, anywhere, parts, end: (
        ("!" if negated else "") + ("/" if anchored else "**/" if anywhere else "") + "/".join(parts) + end
    ),
    st.sampled_from([False, False, True]),
    st.booleans(),
    st.booleans(),
    st.lists(atoms, min_size=1, max_size=3),
    st.sampled_from(["", "", "/", "/**", " ", "\r"]),
)
trees = st.sets(st.lists(words, min_size=1, max_size=4).map("/".join), max_size=12)
rules = st.dictionaries(st.lists(words, max_size=2).map("/".join), st.lists(patterns, max_size=4), max_size=2)


@needs_git
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(trees, rules)
def test_what_git_ignores_is_left_out(files: set[str], ignoring: dict[str, list[str]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name in sorted(files, reverse=True):  # the longest first: a file cannot be a folder
            if not (root / name).exists() and not any((root / above).is_file() for above in Path(name).parents):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text("x")
        for folder, lines in ignoring.items():
            if (root / folder).is_dir():
                (root / folder / ".gitignore").write_text("\n".join(lines))
        assert walked(root) == kept_by_git(root, root)


def verdict(*lines: bytes, path: bytes, is_folder: bool = False) -> bool | None:
    return Patterns(map(Pattern, lines)).verdict(path, is_folder=is_folder)


def test_the_last_pattern_that_matches_decides_and_otherwise_nothing_is_said() -> None:
    assert verdict(b"*.o", b"!keep.o", path=b"a/keep.o") is False
    assert verdict(b"!keep.o", b"*.o", path=b"a/keep.o") is True
    assert verdict(b"*.o", path=b"a/keep.c") is None
    assert verdict(b"out/", path=b"out") is None
    assert verdict(b"out/", path=b"out", is_folder=True) is True
    assert verdict(b"out/", path=b"out/file") is None


def test_paths_are_compared_byte_for_byte() -> None:
    assert verdict(b"caf\xe9", path=b"caf\xe9") is True
    assert verdict(b"??", path="é".encode()) is True
    assert verdict(b"A", path=b"a") is None


@pytest.mark.parametrize("line", [b"", b"   ", b"# comment", b"!", b"/", b"\\", b"a\\", b"[a", b"[[:foo:]]", b"[\\"])
def test_a_line_that_can_match_nothing_is_no_pattern(line: bytes) -> None:
    with pytest.raises(NoPattern):
        Pattern(line)
