"""Members of tar and zip archives as documents: read where they are, in constant memory, nothing extracted to disk.

Names are only names: ``..`` and absolute paths lead nowhere, for nothing is written. Links and devices are passed over
and named. What ends before its end mark, or cannot be told from damage, is an error and never a shorter archive.
"""

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import BinaryIO, Final

from bytelm.data.compression import Allowance, Forward, decompress
from bytelm.data.documents import BLOCK_BYTES, Document, Skipped, damaged, shown_path, unreadable
from bytelm.errors import SourceError

SEPARATOR: Final = b"!/"
"""Stands between an archive's path and the name of a member."""

TAR_BLOCK_BYTES: Final = 512

_MOST_HEADER_BYTES: Final = 1 << 20  # a name or a map of holes is that long only to fill the memory
_METHODS: Final = {0: "", 8: "deflate", 12: "bz2", 93: "zst", 95: "xz"}
_MANY_ENTRIES: Final = 0xFFFF  # also says: look elsewhere for the number
_MOST_END_BYTES: Final = 22 + (64 << 10)
_UNIX: Final = (3, 19)  # only these systems put the kind of file there
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_READ_BYTES: Final = 256 << 10
_PLAIN_TYPES: Final = b"\x000125xg"  # file, links, folder, headers of the pax format
_PLAIN_FIELDS: Final = struct.Struct("<100s8s8s8s12s12s8sc100s88x155s12x")


def is_tar(beginning: bytes) -> bool:
    """Whether the first 512 bytes are those of a tar archive, an empty one too."""
    if len(beginning) < TAR_BLOCK_BYTES:
        return False
    try:
        tarfile.TarInfo.frombuf(beginning[:TAR_BLOCK_BYTES], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return not beginning[:TAR_BLOCK_BYTES].strip(b"\0")
    except ValueError:
        return False
    return True


def is_zip(beginning: bytes) -> bool:
    """Whether the first bytes are those of a zip archive, an empty one too."""
    return beginning.startswith((b"PK\3\4", b"PK\5\6"))


def tar_members(content: Forward, name: bytes, allowance: Allowance) -> Iterator[Document | Skipped]:
    """The members of a tar archive, in order. Several archives one after another are read as one.

    Args:
        content: The archive, not compressed.
        name: What it is called.
        allowance: What holes in sparse members may make of it.

    Yields:
        A ``Document`` for every file, valid until the next one is asked for, and a ``Skipped`` for everything else but
        folders.

    Raises:
        SourceError: It is damaged or cut off.
    """
    while True:
        yield from _one_tar(content, name, allowance)
        while (block := content.peek(TAR_BLOCK_BYTES)) and not block.strip(b"\0"):
            content.read(TAR_BLOCK_BYTES)
        if not block:
            return


def zip_members(file: BinaryIO, name: bytes, allowance: Allowance) -> Iterator[Document | Skipped]:
    """The members of a zip archive, in the order of its directory.

    Args:
        file: The archive, open and seekable.
        name: What it is called.
        allowance: How much its members may give together.

    Yields:
        A ``Document`` for every file, and a ``Skipped`` for everything else but folders.

    Raises:
        SourceError: Its directory is damaged or missing.
    """
    try:
        members = zipfile.ZipFile(file).infolist()
        expected = _zip_entries(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, OverflowError, struct.error) as error:
        raise damaged(name, f"its zip directory cannot be read ({_said(error)})") from error
    except OSError as error:
        raise unreadable(name, error) from error
    if expected not in (len(members) & _MANY_ENTRIES, _MANY_ENTRIES):
        raise damaged(name, f"its zip directory has {len(members)} entries and should have {expected}")
    for member in members:
        member_name = name + SEPARATOR + _zip_name(member)
        mode = member.external_attr >> 16 if member.create_system in _UNIX else 0
        if stat.S_ISLNK(mode):
            yield Skipped(member_name, "link")
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield Skipped(member_name, "special")
        elif not member.is_dir():
            yield Document(member_name, partial(_zip_blocks, file, member, member_name, allowance))


class _Headers:
    """The archive as ``tarfile`` sees it: it reads headers, but not without end."""

    def __init__(self, content: Forward, name: bytes) -> None:
        self._content = content
        self._name = name
        self.left_bytes = _MOST_HEADER_BYTES
        self.tell = content.tell
        self.seek = content.seek

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end."""
        self.left_bytes -= size
        if self.left_bytes < 0:
            raise damaged(self._name, f"a tar header is longer than {_MOST_HEADER_BYTES >> 20} MiB")
        return self._content.read(size)


class _BadHeaderError(Exception):
    """A header that tarfile would take for the end of the archive."""


class Header(tarfile.TarInfo):
    """A header that is whole, or an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """Read a header; only a block of zeros ends an archive."""
        if (plain := cls._plain(bytes(buf), encoding, errors)) is not None:
            return plain
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]  typeshed does not know it
            raise
        except tarfile.HeaderError as error:
            raise _BadHeaderError(
                "it ends before its end mark" if len(buf) < TAR_BLOCK_BYTES else str(error)
            ) from error
        if header.size < 0:
            raise _BadHeaderError("a size is negative")
        return header

    @classmethod
    def _plain(cls, block: bytes, encoding: str, errors: str) -> "Header | None":
        """The same for nearly all headers in half of the time, with the fields that are needed; None for the others."""
        if len(block) != TAR_BLOCK_BYTES or block[156] not in _PLAIN_TYPES:
            return None
        name, *numbers, checksum, kind, link, prefix = _PLAIN_FIELDS.unpack(block)
        try:
            mode, uid, gid, size, mtime = [int(number.partition(b"\0")[0], 8) for number in numbers]
            if int(checksum.partition(b"\0")[0], 8) != sum(block) - sum(checksum) + 8 * ord(" ") or size < 0:
                return None
        except ValueError:  # numbers that are written in another way, or damage
            return None
        header = cls(name.partition(b"\0")[0].decode(encoding, errors))
        header.mode, header.uid, header.gid, header.size, header.mtime = mode, uid, gid, size, mtime
        header.type = kind
        header.linkname = link.partition(b"\0")[0].decode(encoding, errors)
        if kind == tarfile.AREGTYPE and header.name.endswith("/"):
            header.type = tarfile.DIRTYPE  # as it was written before there was a type for folders
        if header.isdir():
            header.name = header.name.rstrip("/")
        if parent := prefix.partition(b"\0")[0].decode(encoding, errors):
            header.name = f"{parent}/{header.name}"
        return header


def _one_tar(content: Forward, name: bytes, allowance: Allowance) -> Iterator[Document | Skipped]:
    headers = _Headers(content, name)
    try:
        archive = tarfile.TarFile(
            fileobj=headers,  # pyright: ignore[reportArgumentType]  what it needs of a file
            tarinfo=Header,
            encoding="utf-8",
            errors="surrogateescape",
        )
        while member := archive.next():
            # Else it remembers every header.
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            if member.size < 0 or _length(archive.pax_headers) > _MOST_HEADER_BYTES:
                raise _BadHeaderError("a size is negative, or global headers do not end")
            headers.left_bytes = _MOST_HEADER_BYTES
            member_name = name + SEPARATOR + member.name.encode("utf-8", "surrogateescape")
            if member.isreg():
                blocks = _sparse_blocks if member.issparse() else _tar_blocks
                yield Document(member_name, partial(blocks, content, member, member_name, allowance))
            elif member.islnk() or member.issym():
                yield Skipped(member_name, "link")
            elif not member.isdir():
                yield Skipped(member_name, "special")
    except (_BadHeaderError, tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError) as error:
        raise damaged(name, f"at byte {content.tell():,} of the tar archive: {_said(error)}") from error


def _tar_blocks(content: Forward, member: tarfile.TarInfo, name: bytes, _: Allowance) -> Iterator[bytes]:
    assert content.tell() == member.offset_data, "the archive was read on"
    return _exactly(content, member.size, name)


def _sparse_blocks(content: Forward, member: tarfile.TarInfo, name: bytes, allowance: Allowance) -> Iterator[bytes]:
    assert content.tell() == member.offset_data, "the archive was read on"
    return allowance.giving(_with_holes(content, member, name))


def _with_holes(content: Forward, member: tarfile.TarInfo, name: bytes) -> Iterator[bytes]:
    position = 0
    # Entries without bytes say nothing; some are only what fills a header up.
    islands: list[tuple[int, int]] = member.sparse  # pyright: ignore[reportAssignmentType]
    entries = [(begin, size) for begin, size in islands if size]
    for begin, size in (*entries, (member.size, 0)):
        if begin < position or size < 0:
            raise damaged(name, "its map of holes contradicts itself")
        yield from _zeros(begin - position)
        yield from _exactly(content, size, name)
        position = begin + size


def _zeros(size: int) -> Iterator[bytes]:
    block = bytes(min(size, BLOCK_BYTES))
    for begin in range(0, size, BLOCK_BYTES):
        yield block[: size - begin]


def _exactly(content: Forward, size: int, name: bytes) -> Iterator[bytes]:
    while size:
        data = content.some(min(size, BLOCK_BYTES))
        if not data:
            raise damaged(name, "the archive is cut off in it")
        size -= len(data)
        yield data


def _zip_entries(file: BinaryIO) -> int:
    """How many entries a zip directory should have, modulo 65,536: zipfile does not ask."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MOST_END_BYTES))
    tail = file.read(_MOST_END_BYTES)
    (entries,) = struct.unpack_from("<H", tail, tail.rfind(b"PK\5\6") + 10)
    return entries


def _zip_name(member: zipfile.ZipInfo) -> bytes:
    """The bytes of a name as they are stored."""
    return member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")


def _zip_blocks(file: BinaryIO, member: zipfile.ZipInfo, name: bytes, allowance: Allowance) -> Iterator[bytes]:
    if member.flag_bits & 1:
        raise SourceError(f"cannot read {shown_path(name)}: it is encrypted; decrypt it or leave it out")
    method = _METHODS.get(member.compress_type)
    if method is None:
        raise SourceError(
            f"cannot read {shown_path(name)}: it is compressed by method {member.compress_type}, which bytelm does not "
            "know; pack the archive anew"
        )
    stored = _zip_stored(file, member, name)
    checksum = size = 0
    for block in allowance.giving(decompress(method, stored, name) if method else stored):
        checksum = zlib.crc32(block, checksum)
        size += len(block)
        if size > member.file_size:
            break
        yield block
    if size != member.file_size or checksum != member.CRC:
        raise damaged(name, "its size or checksum is not that of the directory")


def _zip_stored(file: BinaryIO, member: zipfile.ZipInfo, name: bytes) -> Iterator[bytes]:
    try:
        file.seek(max(0, member.header_offset))
        header = file.read(_LOCAL_HEADER.size)
        if member.header_offset < 0 or len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise damaged(name, "it does not lie where the zip directory says")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        position = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        left = member.compress_size
        while left:
            file.seek(position)  # the caller may have read another member in between
            data = file.read(min(left, _READ_BYTES))
            if not data:
                raise damaged(name, "the archive is cut off in it")
            position += len(data)
            left -= len(data)
            yield data
    except OSError as error:
        raise unreadable(name, error) from error


def _length(headers: Mapping[str, str]) -> int:
    return sum(len(key) + len(value) for key, value in headers.items()) if headers else 0


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
