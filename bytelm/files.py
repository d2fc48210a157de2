"""Writing that a power cut, a full disk, a kill or a second writer cannot leave half done.

A file is written beside its place, flushed to the disk and renamed over it; the folder's entry is flushed too.
A reader therefore sees the old file or the new one, never a part. A disk that refuses becomes ``StorageError``.
A lock keeps a second process out; the kernel lets go of it however the first one ends. Who writes a part locks it, too:
what a killed process has left of one is known by that, and the next writer of the file takes it away.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from bytelm.errors import BytelmError, StorageError

_PART: Final = ".part"
_NAME_OF_PART: Final = re.compile(r"\.(.+)\.\d+\.part", re.DOTALL)
_REFUSALS = {
    errno.ENOSPC: ("no space is left on the disk", "free some space and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EFBIG: ("the file would be larger than this system allows", "raise the file size limit (ulimit -f)"),
    errno.EROFS: ("the disk is read-only", "choose another --out"),
    errno.EACCES: ("permission is denied", "choose another --out or change the folder's permissions"),
    errno.EPERM: ("the system does not permit it", "choose another --out or change the folder's permissions"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another --out"),
    errno.ENOENT: ("the system makes no such file or folder there", "choose another --out"),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "choose a shorter --out"),
    errno.ELOOP: ("its links lead in a circle", "choose another --out"),
    errno.EEXIST: ("something else is in its place", "choose another --out"),
    errno.EIO: ("the disk reports an input/output error", "check the disk, then choose another --out"),
}


@contextlib.contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Turn a disk's refusal inside the block into ``StorageError`` that names the path and the remedy.

    Args:
        path: What is being written, for the message.

    Raises:
        StorageError: The disk is full, read-only or over quota, permission is denied, or the path cannot be.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        cause, remedy = _REFUSALS[error.errno]
        raise StorageError(f"cannot write {path}: {cause}; {remedy}") from error


def user_cache() -> Path:
    """The folder of this user's cache that is bytelm's, as the XDG specification places it; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bytelm"


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside its place, flushed, then renamed over it.

    Args:
        path: Where the file goes; its folder must exist.
        content: All of its bytes.

    Raises:
        StorageError: The disk refuses.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    with refusals_named(path):
        try:
            with _opened_alone(beside) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                beside.replace(path)
            flush_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)
        clear_parts(path.parent, path.name)


def is_part(name: str, of: str | None = None) -> bool:
    """Whether a file name is that of a part of ``write_file``: of any file, or of one."""
    found = _NAME_OF_PART.fullmatch(name)
    return found is not None and of in (None, found[1])


def clear_parts(folder: Path, of: str | None = None) -> None:
    """Remove what killed processes have left of files that they were writing.

    Args:
        folder: Folder that holds the parts.
        of: Name of the file whose parts are removed; None removes those of all files.

    Raises:
        OSError: The folder cannot be listed.
    """
    for part in folder.iterdir():
        if is_part(part.name, of):
            with contextlib.suppress(OSError), part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its writer lives, wherever that is
                part.unlink()


def _opened_alone(part: Path) -> BinaryIO:
    """A new file that is locked as long as it is open."""
    while True:
        file = part.open("wb")
        with contextlib.suppress(OSError):  # a file system without locks: nobody can take the part for a dead one's
            fcntl.flock(file, fcntl.LOCK_EX)
        if _is_at(file, part):
            return file
        file.close()  # taken for a dead one's part in the instant before it was locked


def _is_at(file: BinaryIO, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(place: Path, busy: Callable[[str], BytelmError]) -> Iterator[None]:
    """Hold a lock file, which is there as long as the block runs.

    Args:
        place: Of the lock file; its folder must exist.
        busy: Makes the error from who holds the lock: "process 17 on this-machine".

    Raises:
        BytelmError: What ``busy`` makes, where another process holds the lock.
        StorageError: The disk refuses.
    """
    with refusals_named(place):
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _taken(lock, place):
            raise busy(os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process")
        try:
            with contextlib.suppress(OSError):  # a full disk: the lock holds, only its holder has no name
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            yield
        finally:
            place.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _taken(lock: int, place: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), place.stat())  # else its last holder has just taken it away
    except (BlockingIOError, FileNotFoundError):
        return False
