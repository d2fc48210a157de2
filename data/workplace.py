"""The folder that an ingestion writes to: who may, what is there already, and what goes when it is done.

A folder on this machine is locked while it is written to; the kernel lets go of the lock however the process ends.
A remote one cannot be locked: there the journal of the first writer refuses the second, who has to say ``--resume``
or ``--overwrite``; two that resume the same ingestion write the same bytes.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from bytelm.data.index import DIGESTS_NAME, FILES_NAME, SHARD_NAME
from bytelm.data.journal import JOURNAL
from bytelm.data.pack import PART
from bytelm.data.storage import Folder
from bytelm.errors import CorpusError, StorageError
from bytelm.files import refusals_named

_LOCK: Final = ".ingest.lock"
_FILE: Final = re.compile(rf"(?:{SHARD_NAME.pattern})(?:{re.escape(PART)})?")
_OF_DOCUMENTS: Final = (DIGESTS_NAME, FILES_NAME)
_BESIDE: Final = re.compile(rf"\..+\.\d+{re.escape(PART)}")
"""Files that were not renamed any more."""


@contextlib.contextmanager
def sole_writer(folder: Folder) -> Iterator[None]:
    """Make a local folder and hold its lock; a folder that was made and stayed empty goes again.

    Raises:
        CorpusError: Another process writes there.
        StorageError: The disk refuses.
    """
    if folder.local is None:
        yield
        return
    path = folder.local
    if path.exists() and not path.is_dir():
        raise StorageError(f"cannot write {path}: it is a file, not a folder; choose another --out")
    made = not path.exists()
    place = path / _LOCK
    with refusals_named(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _locked(lock, place):
            raise CorpusError(
                f"another process is ingesting into {path}; wait until it has finished, or choose another --out"
            )
        try:
            yield
        finally:
            place.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # not empty: there is a corpus in it, or one that can be resumed
                    path.rmdir()
    finally:
        os.close(lock)


def check_foreign(folder: Folder) -> None:
    """See that a folder without a corpus holds nothing that is not ours.

    Raises:
        CorpusError: It does.
    """
    for name in folder.names():
        if not (is_ours(name) or name in (_LOCK, f"{JOURNAL}/")):
            raise CorpusError(
                f"{folder.address} is not empty and holds no corpus, but {name!r}; "
                "choose a new or empty folder for --out"
            )


def is_ours(name: str) -> bool:
    """Whether an ingestion may have written a file of this name; the index is no such file."""
    return any(pattern.fullmatch(name) for pattern in (_FILE, *_OF_DOCUMENTS, _BESIDE))


def free_number(names: Iterable[str]) -> int:
    """The first number above those of all shards and digests among some files."""
    found = [_numbered(name) for name in names]
    return max((int(match["number"]) for match in found if match), default=-1) + 1


def remove_ours(folder: Folder, *, from_number: int = 0, keep: Collection[str] = (), only_parts: bool = False) -> None:
    """Remove what ingestions have written.

    Args:
        folder: Where.
        from_number: Number of the first shard or digests that go.
        keep: Names that stay.
        only_parts: Only what was not complete.

    Raises:
        StorageError: The disk or the server refuses.
    """
    for name in folder.names():
        match = _numbered(name)
        stays = name in keep or (match and int(match["number"]) < from_number) or (only_parts and not _is_part(name))
        if is_ours(name) and not stays:
            folder.remove(name)


def _numbered(name: str) -> re.Match[str] | None:
    return next((match for pattern in (SHARD_NAME, *_OF_DOCUMENTS) if (match := pattern.match(name))), None)


def _is_part(name: str) -> bool:
    return name.endswith(PART)


def _locked(lock: int, place: Path) -> bool:
    """Take the lock if nobody has it; the kernel lets go of it however this process ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), place.stat())  # else its last holder has just taken it away
    except (BlockingIOError, FileNotFoundError):
        return False
