"""A corpus: a folder with shards, and an index that names them and is written last.

    corpus/
      index.json                  version, totals, fingerprint, split, every shard with its sizes and hashes, and
                                  what each ingestion has read and left out
      train-00000.zst …           shards, each of one split
      validation-00000.zst …
      documents-00000.xxh128 …    digests of the documents that an ingestion has put in, 16 bytes each
      documents-00000.files.zst … which files they come from

A reader opens what the index names and nothing else; a folder without an index is no corpus, whatever lies in it.
The folder may be one of this machine or lie behind an address such as ``s3://bucket/corpus``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from bytelm.data.cache import BlockCache, CachedFile
from bytelm.data.index import (
    DIGEST_BYTES,
    DIGESTS_NAME,
    INDEX,
    MOST_INDEX_BYTES,
    REMEDY,
    SHARD_NAME,
    Count,
    DigestEntry,
    FilesEntry,
    Index,
    Ingestion,
    ShardEntry,
    fingerprint_of,
    too_large,
)
from bytelm.data.shard_file import RangeReader, ShardReader
from bytelm.data.storage import Folder, StoredFile, folder_at
from bytelm.errors import CorpusError

__all__ = [
    "DIGESTS_NAME",
    "DIGEST_BYTES",
    "INDEX",
    "SHARD_NAME",
    "Corpus",
    "Count",
    "DigestEntry",
    "Index",
    "Ingestion",
    "Piece",
    "ShardEntry",
    "fingerprint_of",
]


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a consecutive part of one.

    Attributes:
        data: Its bytes.
        starts: Its first byte begins the document.
        ends: Its last byte ends the document.
        source: Index into ``Corpus.sources``.
        kind: Index into ``Corpus.kinds``.
    """

    data: bytes
    starts: bool
    ends: bool
    source: int
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus(Index):
    """A corpus that was opened. Its shards are opened when they are read.

    Attributes:
        folder: Where it is.
        cache: Where blocks of remote shards are kept.
    """

    folder: Folder
    cache: BlockCache | None = None

    @classmethod
    def open(cls, address: Path | str | Folder, *, cache: BlockCache | None = None) -> "Corpus":
        """Open a corpus.

        Args:
            address: Its folder, here or behind an address such as ``s3://bucket/corpus``.
            cache: Where blocks of remote shards are kept; one of this machine needs none.

        Raises:
            CorpusError: There is none, it was not finished, its index is damaged or of an unknown version.
            ConfigError: The address cannot be reached with what is installed.
        """
        folder = address if isinstance(address, Folder) else folder_at(address)
        try:
            content = folder.read_small(INDEX, MOST_INDEX_BYTES)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorpusError(
                f"no corpus at {folder.address}: it {_lack(folder)}; make one with bytelm ingest SRC --out DIR"
            ) from error
        except OSError as error:
            raise CorpusError(
                f"cannot read {folder.address}/{INDEX}: {error.strerror or error}; check the disk and the permissions"
            ) from error
        if content is None:
            raise too_large(f"{folder.address}/{INDEX}")
        index = Index.from_text(content, f"{folder.address}/{INDEX}")
        return cls.of(index, folder, cache=cache)

    @classmethod
    def of(cls, index: Index, folder: Folder, *, cache: BlockCache | None = None) -> "Corpus":
        """The corpus of an index that was read already."""
        return cls(folder=folder, cache=cache, **{field.name: getattr(index, field.name) for field in fields(Index)})

    @property
    def path(self) -> Path:
        """Its folder, for a corpus of this machine; a remote one has none, and ``folder.address`` names both."""
        assert self.folder.local is not None
        return self.folder.local

    @property
    def place(self) -> str:
        """Where it is, whatever the working folder: an absolute path, or its address."""
        return self.folder.address if self.folder.local is None else str(self.folder.local.resolve())

    def shards(self, split: str) -> tuple[ShardEntry, ...]:
        """Shards of a split, in order.

        Raises:
            CorpusError: The corpus has no such split.
        """
        found = tuple(shard for shard in self.all_shards if shard.split == split)
        if not found:
            raise CorpusError(
                f"corpus {self.folder.address} has no {split!r} split, only {', '.join(map(repr, self.splits))}; "
                "ingest again with another --validation-fraction or more sources"
            )
        return found

    def frame_sizes(self, split: str) -> NDArray[np.int64]:
        """Raw bytes of every frame of a split, in order, int64; known without opening a shard."""
        sizes: list[NDArray[np.int64]] = []
        for shard in self.shards(split):
            frames = -(-shard.raw_bytes // self.frame_bytes)
            shard_sizes = np.full(frames, self.frame_bytes, np.int64)
            shard_sizes[-1] = shard.raw_bytes - (frames - 1) * self.frame_bytes
            sizes.append(shard_sizes)
        return np.concatenate(sizes)

    def open_shard(self, shard: ShardEntry) -> ShardReader:
        """Open a shard and check it against the index.

        Raises:
            ShardError: Missing, truncated, damaged, of an unknown version, or not the one that the index names.
        """
        return ShardReader(self._file_of(shard), expected_hash=shard.hash)

    def _file_of(self, shard: ShardEntry) -> Path | RangeReader:
        if self.folder.local is not None:
            return self.folder.local / shard.name
        stored = StoredFile(self.folder, shard.name)
        return stored if self.cache is None else CachedFile(stored, shard.hash, self.cache)

    def read_digests(self) -> bytes:
        """The digests of all documents, ``DIGEST_BYTES`` each, in the order in which they were put in.

        Raises:
            CorpusError: A file of digests is missing or damaged.
        """
        return b"".join(self.digests_of(entry) for entry in self.digests)

    def digests_of(self, entry: DigestEntry) -> bytes:
        """The digests of one file, in order.

        Raises:
            CorpusError: It is missing or damaged.
        """
        place = f"{self.folder.address}/{entry.name}"
        try:
            content = self.folder.read_small(entry.name, entry.documents * DIGEST_BYTES)
        except OSError as error:
            raise CorpusError(f"cannot read {place}: {error.strerror or error}; {REMEDY}") from error
        if (
            content is None
            or len(content) != entry.documents * DIGEST_BYTES
            or xxhash.xxh3_128_hexdigest(content) != entry.hash
        ):
            raise CorpusError(f"{place} is damaged; {REMEDY}")
        return content

    def files_of(self, entry: FilesEntry) -> bytes:
        """What says which files documents come from; see ``bytelm.data.file_names``.

        Raises:
            CorpusError: It is missing or damaged.
        """
        place = f"{self.folder.address}/{entry.name}"
        try:
            content = self.folder.read_small(entry.name, entry.packed_bytes)
        except OSError as error:
            raise CorpusError(f"cannot read {place}: {error.strerror or error}; {REMEDY}") from error
        if content is None or len(content) != entry.packed_bytes or xxhash.xxh3_128_hexdigest(content) != entry.hash:
            raise CorpusError(f"{place} is damaged; {REMEDY}")
        return content

    def pieces(self, split: str) -> Iterator[Piece]:
        """Every piece of a split in order, each frame checked before its bytes are given.

        Raises:
            CorpusError: The corpus has no such split.
            ShardError: A shard is missing or damaged.
        """
        decompressor = zstandard.ZstdDecompressor()
        for shard in self.shards(split):
            yield from _pieces(self.open_shard(shard), decompressor)

    def documents(self, split: str) -> Iterator[bytes]:
        """The bytes of every piece of a split in order.

        Raises:
            CorpusError: The corpus has no such split.
            ShardError: A shard is missing or damaged.
        """
        return (piece.data for piece in self.pieces(split))


def _lack(folder: Folder) -> str:
    if folder.local is None or folder.local.is_dir():
        return f"has no {INDEX}"
    return "is no folder" if folder.local.exists() else "does not exist"


def _pieces(reader: ShardReader, decompressor: zstandard.ZstdDecompressor) -> Iterator[Piece]:
    gathered = bytearray()
    starts = previous_ends = False
    source = kind = 0
    for frame in range(reader.frames):
        raw = bytearray(reader.frame_size(frame))
        found = reader.read_frame(frame, memoryview(raw), decompressor)
        begins = found.offsets_P.tolist()
        for row, (begin, end) in enumerate(zip(begins, [*begins[1:], len(raw)], strict=True)):
            if row or not found.continues:
                if gathered:
                    ends = bool(found.follows_end_P[row]) if row else previous_ends
                    yield Piece(bytes(gathered), starts, ends, source, kind)
                gathered = bytearray()
                starts = bool(found.starts_P[row])
                source, kind = int(found.sources_P[row]), int(found.kinds_P[row])
            gathered += memoryview(raw)[begin:end]
        previous_ends = found.ends_document
    yield Piece(bytes(gathered), starts, previous_ends, source, kind)
