"""Where a corpus lies: a folder of this machine, or one behind an fsspec address, with the same few operations.

A local file is written beside its place, flushed and renamed over it; an object store puts an object whole by itself.
So a reader sees the old file or the new one, never a part of one, and a folder needs no more than the six operations
of ``Folder``. What a network breaks is tried again, with a pause that doubles; what it refuses is not.
"""

import contextlib
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from bytelm.errors import ConfigError, StorageError
from bytelm.files import refusals_named, write_file

_Result = TypeVar("_Result")

PAUSES_S: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""How long to wait after the first, second, … failure of a remote operation; the one after the last is final."""

_SCHEME: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_WEIGHTED: Final = re.compile(r"(?P<address>.*[^:/]|.*[^:]/):(?P<weight>[0-9.]+(/[0-9]+)?)", re.DOTALL)
_OBJECT_STORES: Final = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "tos", "http", "https"}
_FINAL: Final = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_FOREIGN: Final = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
"""What the libraries behind fsspec raise that is no ``OSError``, by the module that must be loaded for it."""


class Folder(ABC):
    """The files of one folder, by name; names may hold slashes. Picklable, and cheap to make anew."""

    address: str
    """How a person would write it."""
    local: Path | None
    """Its path, if it is a folder of this machine."""
    is_shared: bool
    """Another process sees the same files."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be read.
        """

    def read_small(self, name: str, most_bytes: int) -> bytes | None:
        """All bytes of a file, or None where there are too many; it is asked how many before any is read.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be read.
        """
        size = self.size(name)
        if size > most_bytes:
            return None
        # A device says that it has no bytes, and may never end.
        return self.read(name) if size else self.read_range(name, 0, 1)

    @abstractmethod
    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Some bytes of a file; fewer where it ends before ``offset + length``.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be read.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: The folder cannot be read.
        """

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name.

        Raises:
            OSError: The folder cannot be read.
        """
        try:
            self.size(name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    @abstractmethod
    def names(self, below: str = "") -> list[str]:
        """What lies directly in this folder, or in one below it, sorted; none if it is not there.

        Folders below it are named with a slash at the end; an object store has them only while something is in them.

        Raises:
            OSError: The folder cannot be read.
        """

    @abstractmethod
    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Write a file whole or not at all, over what was there, and make the folders that it needs.

        Args:
            name: Of the file.
            content: All of its bytes.
            durable: A power cut must not take it back. Without, one may, or may leave it damaged; a kill may not.

        Raises:
            StorageError: The disk or the server refuses.
        """

    @abstractmethod
    def put(self, file: Path, name: str) -> None:
        """Move a complete local file here, over what was there.

        Its bytes are safe from a power cut after a ``flush``, its name with the next durable ``write`` to this folder.

        Args:
            file: Of the same disk, if this folder is local.
            name: Where it goes.

        Raises:
            StorageError: The disk or the server refuses.
        """

    @abstractmethod
    def flush(self, name: str) -> None:
        """Wait until the bytes of a file that was put here are safe from a power cut.

        Raises:
            StorageError: The disk refuses.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            StorageError: The disk or the server refuses.
        """


class StoredFile:
    """One file of a folder, read in parts.

    Args:
        folder: Where it is.
        file: What it is called there.

    Attributes:
        name: Its whole address, for messages.
    """

    def __init__(self, folder: Folder, file: str) -> None:
        self._folder = folder
        self._file = file
        self.name = f"{folder.address}/{file}"

    def size(self) -> int:
        """Its bytes; see ``Folder.size``."""
        return self._folder.size(self._file)

    def read(self, offset: int, length: int) -> bytes:
        """Some of its bytes; see ``Folder.read_range``."""
        return self._folder.read_range(self._file, offset, length)

    def read_into(self, offset: int, out: memoryview) -> int:
        """See ``RangeReader``."""
        found = self.read(offset, len(out))
        out[: len(found)] = found
        return len(found)

    def read_anew(self, offset: int, length: int) -> bytes:
        """The same once more, where what came over the network was damaged."""
        return self._folder.read_range(self._file, offset, length)


def folder_at(address: str | Path) -> Folder:
    """The folder that a path or an address (``s3://bucket/corpus``, ``memory://x``) names; it need not exist.

    Raises:
        ConfigError: The scheme is unknown, or needs a package that is not installed.
    """
    if isinstance(address, Path) or not is_remote(address):
        return LocalFolder(local_path(address))
    folder = RemoteFolder(address)
    file_system_of(folder.address)
    return folder


def local_path(address: str | Path) -> Path:
    """The path that an address without a scheme, or with ``file://``, is."""
    found = None if isinstance(address, Path) else _SCHEME.fullmatch(address)
    return Path(address if found is None else found["rest"])


def is_remote(address: str) -> bool:
    """Whether an address is for fsspec; everything else is a path, ``file://`` too."""
    found = _SCHEME.fullmatch(address)
    return found is not None and found["scheme"].lower() not in ("file", "local")


class LocalFolder(Folder):
    """A folder of this machine, or one that its kernel makes look so.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.local = path
        self.is_shared = True
        self._path = path

    def read(self, name: str) -> bytes:
        """See ``Folder``."""
        return (self._path / name).read_bytes()

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """See ``Folder``."""
        descriptor = os.open(self._path / name, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int:
        """See ``Folder``."""
        return (self._path / name).stat().st_size

    def names(self, below: str = "") -> list[str]:
        """See ``Folder``."""
        try:
            with os.scandir(self._path / below) as entries:
                return sorted(entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "") for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """See ``Folder``."""
        place = self._path / name
        with refusals_named(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            if not durable:
                beside = place.with_name(f".{place.name}.{os.getpid()}.part")
                beside.write_bytes(content)
                beside.replace(place)
                return
        write_file(place, content)

    def put(self, file: Path, name: str) -> None:
        """See ``Folder``."""
        place = self._path / name
        with refusals_named(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)

    def flush(self, name: str) -> None:
        """See ``Folder``."""
        with refusals_named(self._path / name):
            _flush_file(self._path / name)

    def remove(self, name: str) -> None:
        """See ``Folder``."""
        with refusals_named(self._path / name):
            (self._path / name).unlink(missing_ok=True)


class RemoteFolder(Folder):
    """A folder behind an fsspec address.

    Args:
        address: It.
        pauses_s: How long to wait before each new try of an operation that has failed.
    """

    def __init__(self, address: str, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self.address = address
        self.local = None
        self.is_shared = not address.startswith("memory:")
        self._pauses_s = tuple(pauses_s)

    def read(self, name: str) -> bytes:
        """See ``Folder``."""
        return self._try(lambda files, root: files.cat_file(f"{root}/{name}"))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """See ``Folder``."""
        content = self._try(lambda files, root: files.cat_file(f"{root}/{name}", start=offset, end=offset + length))
        if len(content) > length:
            raise OSError(f"{self.address}/{name}: the server cannot send a part of a file")
        return content

    def size(self, name: str) -> int:
        """See ``Folder``."""
        found = self._try(lambda files, root: files.info(f"{root}/{name}"))
        if found["type"] != "file":
            raise FileNotFoundError(f"{self.address}/{name}")
        return found["size"]

    def names(self, below: str = "") -> list[str]:
        """See ``Folder``."""

        def listed(files: Any, root: str) -> list[str]:
            place = f"{root}/{below}".rstrip("/")
            try:
                entries = files.ls(place, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            # A store may have an object for the folder itself, and lists a file as if it were in itself.
            inside = [entry for entry in entries if entry["name"].strip("/") != place.strip("/")]
            return [_last_part(entry["name"]) + ("/" if entry["type"] == "directory" else "") for entry in inside]

        return sorted(self._try(listed))

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """See ``Folder``."""
        del durable  # what a server has taken it keeps

        def put(files: Any, root: str) -> None:
            self._make_folders(files, f"{root}/{name}")
            files.pipe_file(f"{root}/{name}", content)

        self._change(name, put)

    def flush(self, name: str) -> None:
        """See ``Folder``: an object is safe when it is there."""

    def put(self, file: Path, name: str) -> None:
        """See ``Folder``."""

        def put(files: Any, root: str) -> None:
            self._make_folders(files, f"{root}/{name}")
            files.put_file(str(file), f"{root}/{name}")

        self._change(name, put)
        file.unlink()

    def remove(self, name: str) -> None:
        """See ``Folder``."""

        def remove(files: Any, root: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(f"{root}/{name}")

        self._change(name, remove)

    def _make_folders(self, files: Any, path: str) -> None:
        # An object store has none, and would make a bucket out of a misspelt name.
        if self.address.partition("://")[0].lower() not in _OBJECT_STORES:
            files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _try(self, work: Callable[[Any, str], _Result]) -> _Result:
        def once() -> _Result:
            files, root = file_system_of(self.address)
            files.invalidate_cache()  # what others have written since counts
            return work(files, root.rstrip("/"))

        return retried(once, self._pauses_s)

    def _change(self, name: str, work: Callable[[Any, str], None]) -> None:
        try:
            self._try(work)
        except OSError as error:
            raise StorageError(
                f"cannot write {self.address}/{name}: {_cause(error)}; "
                "check the address, the permissions and the network, then run the same command again"
            ) from error


def file_system_of(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address (one for each process and kind of address), and the path within it.

    Raises:
        ConfigError: The scheme is unknown, or needs a package that is not installed.
    """
    scheme = address.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(address)
    except ImportError as error:
        remedy = "pip install 'bytelm[s3]'" if scheme in ("s3", "s3a") else str(error)
        raise ConfigError(f"{address} needs a package that is not installed: {remedy}") from error
    except ValueError as error:
        raise ConfigError(
            f"{address} names no storage that fsspec knows: {error}; check the part before ://"
        ) from error


def retried(work: Callable[[], _Result], pauses_s: Sequence[float] = PAUSES_S) -> _Result:
    """Do remote work, again after each pause where it fails; what every file system calls final is not tried again.

    Returns:
        What the work gave.

    Raises:
        OSError: What the last try raised; errors of the libraries behind fsspec are turned into one.
    """
    for pause_s in (*pauses_s, None):
        try:
            return work()
        except _FINAL:
            raise
        except remote_errors() as error:
            if pause_s is None or type(error).__name__ == "NoCredentialsError":
                raise error if isinstance(error, OSError) else OSError(_cause(error)) from error
        time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def remote_errors() -> tuple[type[Exception], ...]:
    """What can be raised when storage is reached through a network: ``OSError`` and what its libraries add."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in _FOREIGN)
    return (OSError, *(error for error in found if error is not None))


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _cause(error: Exception) -> str:
    said = (getattr(error, "strerror", None) or str(error)).strip()
    return " ".join(said.split()) or type(error).__name__


def _flush_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_weighted(text: str) -> tuple[str, str]:
    """Address and weight of a corpus; the weight is 1 where none is given, or where a folder has that very name.

    What stands behind the last colon is a weight, too, where what stands before it is a folder: a wrong one is then
    found by ``whole_weights``, and no folder is looked for that nobody meant.

    Example:
        >>> parse_weighted("a/:0.7"), parse_weighted("s3://bucket/b:2/3"), parse_weighted("c")
        (('a/', '0.7'), ('s3://bucket/b', '2/3'), ('c', '1'))
    """
    if not is_remote(text) and Path(text).exists():
        return text, "1"
    if (found := _WEIGHTED.fullmatch(text)) is not None:
        return found["address"], found["weight"]
    address, _, weight = text.rpartition(":")
    if address and not is_remote(text) and Path(address).is_dir():
        return address, weight
    return text, "1"
