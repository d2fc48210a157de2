"""Where documents come from, listed as units and read in blocks; any bytes at all, in constant memory.

A source is a file, a folder, a pattern that a shell would expand (``'logs/*.txt'``), an fsspec address of one of these
(``s3://bucket/x``), a Hugging Face data set (``hf:NAME[:config[:split]]``), or standard input (``-``). A folder gives
every regular file below it, hidden ones too, in the order of their path bytes; symbolic links, sockets, pipes and
devices are passed over and named, and so are version control, caches and byte code (``bytelm.data.clutter``) unless
everything is asked for. What is itself named as a source is read whatever it is, a symbolic link too.

The name of a file says what it is taken for, and its first bytes must agree:

    .gz .bz2 .xz .lzma .zst           one document, decompressed
    .tar .tar.* .tgz .tbz2 .txz …     a document for each file in it
    .zip                              the same
    .jsonl .json .csv .parquet …      a document for each row, where a field is named; compressed and in archives, too
    everything else                   one document, as it is; archives in archives, too

``bytelm.data.forms`` has all of these names.

Listing and reading are apart: ``find_units`` says what there is, in order, and hardly reads; ``read_unit`` reads one
unit, in any process, and gives the same documents each time.
"""

import glob
import itertools
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from bytelm.data import tables
from bytelm.data.addresses import is_web, opened
from bytelm.data.clutter import clutter_above
from bytelm.data.documents import (
    SKIP_REASONS,
    Document,
    ReadOptions,
    Skipped,
    SkipReason,
    Unit,
    name_of,
    shown_path,
    unreadable,
)
from bytelm.data.forms import TABLES, form_of, is_archive
from bytelm.data.path_filter import PathFilter, below
from bytelm.data.reading import WHOLE, read_unit, read_whole
from bytelm.data.storage import file_system_of, is_remote, retried
from bytelm.data.walk import FileIdentity, Unlisted, walk
from bytelm.errors import ConfigError, SourceError

__all__ = [
    "SKIP_REASONS",
    "STANDARD_INPUT",
    "Document",
    "FileIdentity",
    "ReadOptions",
    "SkipReason",
    "Skipped",
    "Unit",
    "check_sources",
    "find_units",
    "name_of",
    "read_unit",
    "read_whole",
    "shown_path",
    "stdin_form",
]

STANDARD_INPUT: Final = "-"
"""The source that is standard input."""


def find_units(
    sources: Sequence[str],
    options: ReadOptions,
    *,
    without: Collection[FileIdentity] = (),
    stdin: Path | None = None,
) -> Iterator[Unit | Skipped]:
    """Everything below the sources, source after source, in the order of path bytes.

    Args:
        sources: What to read, in the order that is wanted.
        options: How.
        without: Folders that are left out as if they were not there, as (device, inode).
        stdin: File that holds what was read from standard input, for the source ``-``.

    Yields:
        A ``Unit`` for everything that is to be read, empty files and folders that cannot be listed too (``read_unit``
        then says why), and a ``Skipped`` for everything else but folders.

    Raises:
        ConfigError: An option is impossible.
        SourceError: A source is missing, cannot be reached, or is neither a file nor a folder.
    """
    listing = _Listing(options, without)
    for number, source in enumerate(sources):
        if source == STANDARD_INPUT:
            assert stdin is not None, "standard input is kept in a file by who asks for it"
            yield Unit(number, os.fsencode(stdin), stdin_form(options), stdin.stat().st_size)
        elif source.startswith(tables.DATASET):
            whole_name, parts = tables.dataset_parts(source)
            for part in range(parts):
                yield Unit(number, os.fsencode(whole_name), "hf", 0, part, parts)
        elif is_remote(source):
            yield from listing.remote(number, source)
        else:
            for path in _named_paths(source):
                yield from listing.local(number, path)


def stdin_form(options: ReadOptions) -> str:
    """How standard input is read, which has no name: as one document, or as JSON or Parquet for its rows."""
    return "file" if options.field is None else "json"


def check_sources(sources: Sequence[str], options: ReadOptions) -> None:
    """See that every source of this machine exists, and that the options make sense, before anything is written.

    Raises:
        ConfigError: An option is impossible.
        SourceError: A source is missing or is neither a file nor a folder, or there is none.
    """
    _check_options(options)
    if not sources:
        raise SourceError("nothing to ingest: name at least one file or folder")
    for source in sources:
        if source != STANDARD_INPUT and not source.startswith(tables.DATASET) and not is_remote(source):
            for path in _named_paths(source):
                _status(path)


def _check_options(options: ReadOptions) -> None:
    PathFilter(options.include, options.exclude)
    if options.raw and options.field is not None:
        raise ConfigError(f"raw and field = {options.field!r} contradict each other: raw opens no table; drop one")
    if options.field == "":
        raise ConfigError("field = '': this names no column; leave it out to read tables as they are")
    if not options.most_expansion >= 1:
        raise ConfigError(f"most_expansion = {options.most_expansion}: at least 1 is needed; 1000 is the default")


class _Listing:
    """How files become units."""

    def __init__(self, options: ReadOptions, without: Collection[FileIdentity]) -> None:
        _check_options(options)
        self._options = options
        self._without = without
        self._paths = PathFilter(options.include, options.exclude)

    def local(self, source: int, path: bytes) -> Iterator[Unit | Skipped]:
        """Units of a file or folder of this machine.

        Raises:
            SourceError: It is neither, or cannot be listed.
        """
        status = _status(path)
        if not stat.S_ISDIR(status.st_mode):
            yield from self._file(source, path, path.rpartition(b"/")[2], status.st_size)
            return
        follow_links = self._options.follow_links
        found = walk(
            path,
            self._paths,
            gitignore=self._options.gitignore,
            follow_links=follow_links,
            everything=self._options.everything,
            without=self._without,
        )
        begin = below(path)
        for one in found:
            if isinstance(one, Skipped):
                yield one
            elif isinstance(one, Unlisted):
                yield Unit(source, one.path, "folder", 0, in_folder=True)
            else:
                try:
                    size = one.stat(follow_symlinks=follow_links).st_size
                except OSError:
                    size = 0  # whoever reads it finds out what is wrong
                yield from self._file(source, one.path, one.path[begin:], size, in_folder=True)

    def remote(self, source: int, address: str) -> Iterator[Unit | Skipped]:
        """Units of a file, a folder or a pattern behind an fsspec address.

        Raises:
            ConfigError: The scheme is unknown.
            SourceError: There is nothing, or it cannot be reached.
        """
        files, path = file_system_of(address)
        try:
            found = retried(partial(_remote_files, files, path))
        except OSError as error:
            raise unreadable(os.fsencode(address), error) from error
        # As a person would write it: memory://x, where unstrip_protocol says memory:///x.
        prefix = address.rstrip("/").removesuffix(path.strip("/"))
        for name, begin, size, in_folder in found:
            url = os.fsencode(prefix + name.lstrip("/") if prefix.endswith("://") else files.unstrip_protocol(name))
            # What stands behind a question mark is no part of the name of a file on the web.
            path_below = name[begin:].partition("?")[0] if is_web(url) else name[begin:]
            below_bytes = os.fsencode(path_below)
            clutter = clutter_above(below_bytes) if in_folder and not self._options.everything else None
            if clutter is not None and not self._paths.names(below_bytes, is_folder=False):
                yield Skipped(url, clutter)
            else:
                yield from self._file(source, url, below_bytes, size, in_folder=in_folder)

    def _file(
        self, source: int, address: bytes, path_below: bytes, size: int, *, in_folder: bool = False
    ) -> Sequence[Unit | Skipped]:
        form = "file" if self._options.raw else form_of(path_below, has_field=self._options.field is not None)
        if is_archive(form):
            whole = self._paths.keeps(path_below)
            if not self._paths.enters(path_below) or (in_folder and not whole):
                return (Skipped(address, "excluded"),)
            return (Unit(source, address, form + WHOLE if whole else form, size, in_folder=in_folder),)
        if not self._paths.keeps(path_below):
            return (Skipped(address, "excluded"),)
        if form in TABLES:
            return _parts(source, address, form, size, in_folder=in_folder)
        return (Unit(source, address, form, size, in_folder=in_folder),)


def _parts(source: int, address: bytes, form: str, size: int, *, in_folder: bool) -> Sequence[Unit]:
    """A table in parts: the lines that begin in each ``PART_BYTES``, or some row groups each."""
    if form == "parquet":
        parts = _parquet_parts(address, size)
        edges = [size * part // parts for part in range(parts + 1)]
    elif form != "jsonl" or is_web(address):
        edges = [0, size]
    else:
        edges = [*range(0, max(size, 1), tables.PART_BYTES), size]
    return [
        Unit(source, address, form, end - begin, part, len(edges) - 1, in_folder)
        for part, (begin, end) in enumerate(itertools.pairwise(edges))
    ]


def _parquet_parts(address: bytes, size: int) -> int:
    try:
        with opened(address) as file:
            return tables.parquet_parts(file, address, size)
    except SourceError:
        return 1  # whoever reads it finds out what is wrong


def _named_paths(source: str) -> list[bytes]:
    """The path that a source is, or those that it matches as a pattern if there is no such path.

    Raises:
        SourceError: There is neither.
    """
    scheme, _, rest = source.partition("://")
    name = rest if rest and scheme.lower() in ("file", "local") else source
    path = os.fsencode(name)
    if os.path.lexists(path) or not glob.has_magic(name):
        return [path]
    # In this order what a folder holds follows it; it is read with the folder, not once more.
    matches = sorted(os.fsencode(match).rstrip(b"/") + b"/" for match in glob.glob(name, recursive=True))  # noqa: PTH207
    found: list[bytes] = []
    for match in matches:
        if not (found and match.startswith(found[-1])):
            found.append(match)
    if not found:
        raise SourceError(f"cannot read {shown_path(path)}: no file or folder matches this pattern; check it")
    return [match.rstrip(b"/") or b"/" for match in found]


def _remote_files(files: Any, path: str) -> list[tuple[str, int, int, bool]]:
    """Every file of an fsspec file system that a path stands for, in the order of names.

    Returns:
        Its name, where the part below the path begins in it, its size, 0 if that is not known, and whether it was
        found in a folder.
    """
    files.invalidate_cache()  # what others have written since counts
    try:
        named = [files.info(path)]
    except FileNotFoundError:
        named = list(files.glob(path, detail=True).values()) if glob.has_magic(path) else []
        if not named:
            raise
    found: dict[str, tuple[int, int, bool]] = {}
    for about in named:
        name = about["name"]
        if about["type"] == "directory":
            root = name.rstrip("/")
            for inner, inner_about in files.find(root, detail=True).items():
                found.setdefault(inner, (len(root) + 1, inner_about["size"] or 0, True))
        else:
            found.setdefault(name, (name.partition("?")[0].rfind("/") + 1, about["size"] or 0, False))
    return [(name, *found[name]) for name in sorted(found, key=os.fsencode)]


def _status(path: bytes) -> os.stat_result:
    try:
        status = os.stat(path)  # noqa: PTH116  a bytes path is no Path
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise SourceError(
            f"cannot ingest {shown_path(path)}: it is neither a file nor a folder; name one of these, "
            "or send it to standard input and name that: -"
        )
    return status
