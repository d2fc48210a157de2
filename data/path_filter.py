"""Which paths are read: what the caller includes and excludes, and what ``.gitignore`` files leave out.

A folder that is left out is not looked into, so nothing below it can be taken back. Among several ``.gitignore`` files
the deepest one that has anything to say about a path decides.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bytelm.data.documents import unreadable
from bytelm.data.patterns import NoPattern, Pattern, Patterns
from bytelm.errors import ConfigError, SourceError

_MOST_GITIGNORE_BYTES: Final = 16 << 20
_SLASH: Final = ord("/")


class PathFilter:
    """What the caller includes and excludes, by paths below a source.

    Args:
        include: Patterns; where there are any, only what one matches is read, or what lies in a folder that it matches.
        exclude: Patterns; what one matches is left out, whatever is included.

    Raises:
        ConfigError: A pattern is none.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = _given(include, "include") if include else None
        self._exclude = _given(exclude, "exclude") if exclude else None

    def keeps(self, path: bytes) -> bool:
        """Whether a file is read; of an archive, whether all of it is. Ask ``enters`` whether it is opened at all."""
        if self._exclude is not None and _is_excluded(self._exclude, path, is_folder=False):
            return False
        if self._include is None:
            return True
        verdicts = [self._include.verdict(place, is_folder=is_folder) for place, is_folder in _places(path)]
        return next((verdict for verdict in reversed(verdicts) if verdict is not None), False)

    def names(self, path: bytes, *, is_folder: bool) -> bool:
        """Whether a pattern includes this very path, and not only a folder that it lies in."""
        return self._include is not None and self._include.verdict(path, is_folder=is_folder) is True

    def enters(self, path: bytes) -> bool:
        """Whether a folder or an archive is looked into: what is included may be anywhere, what is excluded is not."""
        return self._exclude is None or not _is_excluded(self._exclude, path, is_folder=True)


@dataclass(frozen=True, slots=True)
class Gitignore:
    """One ``.gitignore`` file.

    Attributes:
        patterns: What it holds.
        begin: Where in a path that is walked the part below the file's folder begins.
        above: What stands before that part, if the file lies above the folder where the walk began.
    """

    patterns: Patterns
    begin: int
    above: bytes = b""


def is_ignored(path: bytes, gitignores: Sequence[Gitignore], *, is_folder: bool) -> bool:
    """Whether git would leave a path out; folders that it leaves out must not be looked into.

    Args:
        path: Path that is walked.
        gitignores: Those of all folders that it lies in, the outermost first.
        is_folder: It is a folder.
    """
    for one in reversed(gitignores):
        verdict = one.patterns.verdict(one.above + path[one.begin :], is_folder=is_folder)
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
        patterns = _patterns_in(place)
        if patterns is not None:
            found.append(Gitignore(patterns, below(folder), above=os.fsencode(whole.relative_to(place)) + b"/"))
    return tuple(found)


def gitignore_in(folder: bytes) -> Gitignore | None:
    """The ``.gitignore`` file of a folder that is walked, if it has one. As git does, a symbolic link is not read.

    Raises:
        SourceError: It cannot be read.
    """
    patterns = _patterns_in(Path(os.fsdecode(folder)))
    return None if patterns is None else Gitignore(patterns, below(folder))


def below(folder: bytes) -> int:
    """Where the part below a folder begins in a path in it."""
    return len(folder) + (not folder.endswith(b"/"))


def _patterns_in(folder: Path) -> Patterns | None:
    place = folder / ".gitignore"
    if place.is_symlink() or not place.is_file():
        return None
    try:
        with place.open("rb") as file:
            content = file.read(_MOST_GITIGNORE_BYTES + 1)
    except OSError as error:
        raise unreadable(os.fsencode(place), error) from error
    if len(content) > _MOST_GITIGNORE_BYTES:
        raise SourceError(f"{place} has more than {_MOST_GITIGNORE_BYTES >> 20} MiB; leave --gitignore out")
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return Patterns(_parsed(line.removesuffix(b"\r") for line in lines))


def _parsed(lines: Iterator[bytes]) -> Iterator[Pattern]:
    for line in lines:
        try:
            yield Pattern(line)
        except NoPattern:
            continue  # as in git, a line that can match nothing is no mistake


def _given(lines: Sequence[str], setting: str) -> Patterns:
    patterns: list[Pattern] = []
    for line in lines:
        try:
            patterns.append(Pattern(os.fsencode(line)))
        except NoPattern as error:
            raise ConfigError(f"{setting} = {line!r}: {error}; give a pattern as in .gitignore files") from error
    if not any(pattern.excludes for pattern in patterns):
        raise ConfigError(f"{setting} = {list(lines)!r}: these only take back; give a pattern without '!' first")
    return Patterns(patterns)


def _is_excluded(patterns: Patterns, path: bytes, *, is_folder: bool) -> bool:
    return any(patterns.verdict(place, is_folder=inner or is_folder) for place, inner in _places(path))


def _places(path: bytes) -> list[tuple[bytes, bool]]:
    """A path and the folders that it lies in, the outermost first, each with whether it is surely a folder."""
    places = [(path[:at], True) for at, byte in enumerate(path) if byte == _SLASH and at]
    return [*places, (path, False)]
