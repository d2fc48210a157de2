"""Which paths are read: patterns as in ``.gitignore``, given by the caller or lying in the folders themselves.

The matching is pathspec's. What it leaves to us is what git does with the answers: a folder that is left out is not
looked into, so nothing below it can be taken back; among several ``.gitignore`` files the deepest one that has
anything to say about a path decides.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.data.documents import unreadable
from bytelm.errors import ConfigError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern


class PathFilter:
    """What the caller includes and excludes, by paths below a source.

    Args:
        include: Patterns; where there are any, only what matches one is read.
        exclude: Patterns; what matches is left out, whatever is included.

    Raises:
        ConfigError: A pattern is none.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = _given(include, "include") if include else None
        self._exclude = _given(exclude, "exclude") if exclude else None

    def keeps(self, path: bytes) -> bool:
        """Whether a file is read. Archives count as folders: ask ``enters`` for them, and this for their members."""
        if self._include is None and self._exclude is None:
            return True
        name = os.fsdecode(path)
        if self._exclude is not None and self._exclude.match_file(name):
            return False
        return self._include is None or self._include.match_file(name)

    def enters(self, path: bytes) -> bool:
        """Whether a folder or an archive is looked into: what is included may be anywhere, what is excluded is not."""
        return self._exclude is None or not self._exclude.match_file(os.fsdecode(path) + "/")


@dataclass(frozen=True, slots=True)
class Gitignore:
    """One ``.gitignore`` file.

    Attributes:
        spec: Its patterns.
        begin: Where in a path that is walked the part below the file's folder begins.
        above: What stands before that part, if the file lies above the folder where the walk began.
    """

    spec: "GitIgnoreSpec"
    begin: int
    above: str = ""


def ignored(path: bytes, gitignores: Sequence[Gitignore], *, is_folder: bool) -> bool:
    """Whether git would leave a path out; folders that it leaves out must not be looked into.

    Args:
        path: Path that is walked.
        gitignores: Those of all folders that it lies in, the outermost first.
        is_folder: It is a folder.
    """
    for one in reversed(gitignores):
        name = one.above + os.fsdecode(path[one.begin :]) + ("/" if is_folder else "")
        verdict = one.spec.check_file(name).include
        if verdict is not None:
            return verdict
    return False


def gitignores_above(folder: bytes) -> tuple[Gitignore, ...]:
    """The ``.gitignore`` files from the root of the repository that a folder lies in down to it, without its own.

    Raises:
        SourceError: One cannot be read.
    """
    whole = Path(os.path.realpath(os.fsdecode(folder)))
    chain = [whole, *whole.parents]
    depth = next((depth for depth, place in enumerate(chain) if (place / ".git").exists()), 0)
    found: list[Gitignore] = []
    for place in reversed(chain[1 : depth + 1]):
        spec = _spec_in(place)
        if spec is not None:
            found.append(Gitignore(spec, below(folder), above=f"{whole.relative_to(place)}/"))
    return tuple(found)


def gitignore_in(folder: bytes) -> Gitignore | None:
    """The ``.gitignore`` file of a folder that is walked, if it has one. As git does, a symbolic link is not read.

    Raises:
        SourceError: It cannot be read.
    """
    spec = _spec_in(Path(os.fsdecode(folder)))
    return None if spec is None else Gitignore(spec, below(folder))


def below(folder: bytes) -> int:
    """Where the part below a folder begins in a path in it."""
    return len(folder) + (not folder.endswith(b"/"))


def _spec_in(folder: Path) -> "GitIgnoreSpec | None":
    place = folder / ".gitignore"
    if place.is_symlink() or not place.is_file():
        return None
    try:
        content = place.read_bytes()
    except OSError as error:
        raise unreadable(os.fsencode(place), error) from error
    lines = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).split("\n")
    return _parsed(line.removesuffix("\r") for line in lines)


def _parsed(lines: Iterable[str]) -> "GitIgnoreSpec":
    """Patterns of a file; a line that is none matches nothing, as for git."""
    from pathspec import GitIgnoreSpec

    patterns: list[GitIgnoreSpecPattern] = []
    for line in lines:
        try:
            patterns += GitIgnoreSpec.from_lines([line]).patterns
        except ValueError:
            continue
    return GitIgnoreSpec(patterns)


def _given(patterns: Sequence[str], setting: str) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec

    meant: list[GitIgnoreSpecPattern] = []
    for pattern in patterns:
        try:
            spec = GitIgnoreSpec.from_lines([pattern])
        except ValueError as error:
            raise ConfigError(f"{setting} = {pattern!r}: {error}; give a pattern as in a .gitignore file") from error
        if all(one.include is None for one in spec.patterns):
            raise ConfigError(f"{setting} = {pattern!r}: this matches nothing; give a pattern as in a .gitignore file")
        meant += spec.patterns
    if not any(one.include for one in meant):
        raise ConfigError(f"{setting} = {list(patterns)!r}: these only take back; give a pattern without '!' first")
    return GitIgnoreSpec(meant)
