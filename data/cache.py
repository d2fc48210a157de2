"""Blocks of remote shards kept on this machine: read once over the network, then from the disk, up to a limit.

A block is a file of its own, named by the shard's hash and its number, written beside its place and renamed: several
processes share a cache, and none sees a part of a block. What was not read for the longest time goes first. A cache is
never trusted: shards are checked when they are read, and what is damaged here is fetched once more.
"""

import contextlib
import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Final

from bytelm.data.storage import StoredFile
from bytelm.files import refusals_named, user_cache

CACHE_BYTES: Final = 10 << 30
"""How large a cache may grow."""

_BLOCK_BYTES: Final = 256 << 10
_PART: Final = ".part"
_DEAD_AFTER_S: Final = 3600.0  # a block is written in far less


def cache_folder() -> Path:
    """Where shards are kept."""
    return user_cache() / "shards"


class BlockCache:
    """Blocks on this machine's disk, the least recently read of which go when there are too many.

    Args:
        folder: Where they are, made if missing.
        limit_bytes: What they may take together, at least one block.
    """

    def __init__(self, folder: Path, limit_bytes: int = CACHE_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = max(limit_bytes, _BLOCK_BYTES)
        self._lock = threading.Lock()
        self._counted_bytes: int | None = None

    def read(self, name: str) -> bytes | None:
        """A block, or None if it is not here or cannot be read."""
        path = self._folder / name
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Keep a block; a disk that refuses is no reason to stop: it is then read over the network again.

        Raises:
            StorageError: The folder cannot be made.
        """
        path = self._folder / name
        part = self._folder / f".{name}.{os.getpid()}.{threading.get_ident()}{_PART}"
        with refusals_named(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            return
        self._make_room(len(content))

    def _make_room(self, added_bytes: int) -> None:
        with self._lock:
            if self._counted_bytes is not None:
                self._counted_bytes += added_bytes
                if self._counted_bytes <= self._limit_bytes:
                    return
            # What others have added since counts, too; a tenth more goes than must, so that this is not done often.
            found: list[tuple[float, int, str]] = []
            with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        if entry.name.endswith(_PART) and status.st_mtime < time.time() - _DEAD_AFTER_S:
                            os.unlink(entry.path)  # noqa: PTH108  whoever wrote it was killed
                            continue
                        found.append((status.st_mtime, status.st_size, entry.path))
            total = sum(size for _, size, _ in found)
            if total > self._limit_bytes:
                for _, size, path in sorted(found):
                    if total <= self._limit_bytes * 9 // 10:
                        break
                    with contextlib.suppress(OSError):
                        os.unlink(path)  # noqa: PTH108  a path as text
                        total -= size
            self._counted_bytes = total


class CachedFile:
    """A remote file that is read through a cache.

    Args:
        file: Where it comes from.
        identity: What tells its content from any other, such as its hash.
        cache: Where its blocks are kept.

    Attributes:
        name: Its whole address, for messages.
    """

    def __init__(self, file: StoredFile, identity: str, cache: BlockCache) -> None:
        self.name = file.name
        self._file = file
        self._identity = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        self._cache = cache

    def size(self) -> int:
        """See ``RangeReader``."""
        return self._file.size()

    def read(self, offset: int, length: int) -> bytes:
        """See ``RangeReader``."""
        return self._joined(offset, length, anew=False)

    def read_into(self, offset: int, out: memoryview) -> int:
        """See ``RangeReader``."""
        found = self.read(offset, len(out))
        out[: len(found)] = found
        return len(found)

    def read_anew(self, offset: int, length: int) -> bytes:
        """See ``RangeReader``; the blocks that were kept are replaced."""
        return self._joined(offset, length, anew=True)

    def _joined(self, offset: int, length: int, *, anew: bool) -> bytes:
        first, last = offset // _BLOCK_BYTES, (offset + max(length, 1) - 1) // _BLOCK_BYTES
        blocks: dict[int, bytes] = {}
        missing: list[int] = []
        for number in range(first, last + 1):
            kept = None if anew else self._cache.read(self._name_of(number))
            if kept is None:
                missing.append(number)
            else:
                blocks[number] = kept
        if missing:  # in one request, also where some between them are here
            begin, end = missing[0], missing[-1] + 1
            content = self._file.read_anew(begin * _BLOCK_BYTES, (end - begin) * _BLOCK_BYTES)
            for number in range(begin, end):
                place = (number - begin) * _BLOCK_BYTES
                blocks[number] = content[place : place + _BLOCK_BYTES]
                self._cache.write(self._name_of(number), blocks[number])
        joined = b"".join(blocks[number] for number in range(first, last + 1))
        return joined[offset - first * _BLOCK_BYTES :][:length]

    def _name_of(self, block: int) -> str:
        return f"{self._identity}-{block:08d}"
