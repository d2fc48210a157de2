"""Folders of this machine, walked to the bottom in the order of whole path bytes."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from bytelm.data.clutter import file_clutter, folder_clutter
from bytelm.data.documents import Skipped, unreadable
from bytelm.data.path_filter import Gitignore, PathFilter, below, gitignore_in, gitignores_above, is_ignored
from bytelm.errors import SourceError

FileIdentity = tuple[int, int]
"""Device and inode: what tells that two paths are one folder."""


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder that cannot be listed; ``list_folder`` says why.

    Attributes:
        path: It.
    """

    path: bytes


@dataclass(frozen=True, slots=True)
class _Level:
    """A folder whose entries are being walked."""

    entries: "Iterator[os.DirEntry[bytes]]"
    gitignores: tuple[Gitignore, ...]
    identity: FileIdentity | None


def walk(
    root: bytes,
    paths: PathFilter,
    *,
    gitignore: bool = False,
    follow_links: bool = False,
    everything: bool = False,
    without: Collection[FileIdentity] = (),
) -> "Iterator[os.DirEntry[bytes] | Skipped | Unlisted]":
    """Every entry below a folder but for folders themselves.

    Args:
        root: The folder.
        paths: What is left out; it is asked for folders only.
        gitignore: Leave out what ``.gitignore`` files name, and ``.git``.
        follow_links: Take symbolic links for what they point to. Those that lead nowhere are passed over, and so is
            every folder that the walk is already in.
        everything: Do not leave out version control, caches and byte code; see ``bytelm.data.clutter``.
        without: Folders that are left out as if they were not there.

    Yields:
        Regular files; a ``Skipped`` for links, special files and what is left out; an ``Unlisted`` for folders that
        cannot be listed.

    Raises:
        SourceError: The folder itself cannot be listed.
    """
    begin = below(root)
    needs_identity = follow_links or bool(without)
    identity = _identity(os.stat(root)) if follow_links else None  # noqa: PTH116  a bytes path is no Path
    gitignores = gitignores_above(root) if gitignore else ()
    levels = [_Level(*list_folder(root, gitignores, gitignore=gitignore, follow_links=follow_links), identity)]
    while levels:  # a stack and no recursion: folders may be nested deeper than Python recurses
        level = levels[-1]
        entry = next(level.entries, None)
        if entry is None:
            levels.pop()
            continue
        path = entry.path
        if not follow_links and entry.is_symlink():
            yield Skipped(path, "link")
        elif _is_folder(entry, follow_links):
            try:
                identity = _identity(entry.stat(follow_symlinks=follow_links)) if needs_identity else None
            except OSError:
                yield Unlisted(path)
                continue
            if identity in without:
                continue
            if follow_links and any(identity == one.identity for one in levels):
                yield Skipped(path, "link")
            elif (
                (gitignore and entry.name == b".git")
                or is_ignored(path, level.gitignores, is_folder=True)
                or not paths.enters(path[begin:])
            ):
                yield Skipped(path, "excluded")
            elif (
                not everything
                and (reason := folder_clutter(entry.name, path)) is not None
                and not paths.names(path[begin:], is_folder=True)
            ):
                yield Skipped(path, reason)
            else:
                try:
                    listed = list_folder(path, level.gitignores, gitignore=gitignore, follow_links=follow_links)
                except SourceError:
                    yield Unlisted(path)
                else:
                    levels.append(_Level(*listed, identity))
        elif not _is_file(entry, follow_links):
            yield Skipped(path, "link" if entry.is_symlink() else "special")
        elif level.gitignores and is_ignored(path, level.gitignores, is_folder=False):
            yield Skipped(path, "excluded")
        elif (
            not everything
            and (reason := file_clutter(entry.name)) is not None
            and not paths.names(path[begin:], is_folder=False)
        ):
            yield Skipped(path, reason)
        else:
            yield entry


def list_folder(
    folder: bytes, gitignores: tuple[Gitignore, ...] = (), *, gitignore: bool, follow_links: bool
) -> "tuple[Iterator[os.DirEntry[bytes]], tuple[Gitignore, ...]]":
    """What a folder holds, sorted so that a walk gives whole paths in the order of their bytes, and what rules there.

    Args:
        folder: It.
        gitignores: Those of the folders that it lies in.
        gitignore: Read its own, too.
        follow_links: Symbolic links to folders are folders.

    Raises:
        SourceError: It cannot be listed, or its ``.gitignore`` file cannot be read.
    """
    try:
        with os.scandir(folder) as listing:
            # "a/b" stands behind "a-b" in the order of whole paths, though "a" stands before it: the slash counts.
            entries = sorted(listing, key=lambda entry: entry.name + (b"/" if _is_folder(entry, follow_links) else b""))
    except OSError as error:
        raise unreadable(folder, error) from error
    own = gitignore_in(folder) if gitignore else None
    return iter(entries), gitignores if own is None else (*gitignores, own)


def _is_folder(entry: "os.DirEntry[bytes]", follow_links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except OSError:
        return False  # links in a circle, for example


def _is_file(entry: "os.DirEntry[bytes]", follow_links: bool) -> bool:
    try:
        return entry.is_file(follow_symlinks=follow_links)
    except OSError:
        return False


def _identity(status: os.stat_result) -> FileIdentity:
    return status.st_dev, status.st_ino
