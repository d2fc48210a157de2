"""A corpus: a folder with shards, and an index that names them and is written last.

    corpus/
      index.json             version, totals, fingerprint, sources, split, every shard with its sizes and hashes
      train-00000.zst …      shards, each of one split
      validation-00000.zst …

A reader opens what the index names and nothing else; a folder without an index is no corpus, whatever lies in it.
The index carries a checksum of itself and the hash of each shard, so that every byte of a corpus is covered. The
fingerprint covers the content alone: raw bytes, document boundaries, split and order; neither names and times nor
the compression level change it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from bytelm.data.shard_file import ShardReader
from bytelm.errors import CorpusError
from bytelm.files import write_file

INDEX: Final = "index.json"
SHARD_NAME: Final = re.compile(r"(?P<split>train|validation)-(?P<number>\d{5,})\.zst")

_FORMAT: Final = "bytelm corpus"
_VERSION: Final = 1
_REMEDY: Final = "ingest the sources again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """What the index says of a shard.

    Attributes:
        name: File name within the corpus.
        split: ``train`` or ``validation``.
        raw_bytes: Bytes of its documents.
        packed_bytes: Bytes of the file.
        pieces: Whole documents and parts of documents in it.
        documents: Pieces that begin their document.
        hash: Hash that covers every byte of the file.
        content: Hash of raw bytes and document boundaries.
    """

    name: str
    split: str
    raw_bytes: int
    packed_bytes: int
    pieces: int
    documents: int
    hash: str
    content: str


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
class Corpus:
    """A corpus that was opened. Its shards are opened when they are read.

    Attributes:
        path: Its folder.
        fingerprint: Hash of the content, hexadecimal.
        frame_bytes: Raw bytes of a full frame.
        all_shards: Every shard, train before validation.
        sources: For each source its name, documents and bytes, as the index has them.
        skipped: Paths that gave no document, counted by reason.
        kinds: Names of the kinds of documents.
        split_rule: How the splits were decided.
    """

    path: Path
    fingerprint: str
    frame_bytes: int
    all_shards: tuple[ShardEntry, ...]
    sources: tuple[dict[str, Any], ...]
    skipped: dict[str, int]
    kinds: tuple[str, ...]
    split_rule: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> "Corpus":
        """Open a corpus.

        Args:
            path: Its folder.

        Raises:
            CorpusError: There is none, it was not finished, its index is damaged or of an unknown version.
        """
        folder = Path(path)
        place = folder / INDEX
        try:
            content = place.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            what = f"has no {INDEX}" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
            raise CorpusError(f"no corpus at {folder}: it {what}; make one with bytelm ingest SRC --out DIR") from error
        except OSError as error:
            raise CorpusError(f"cannot read {place}: {error.strerror}; check the disk and the permissions") from error
        tree = _checked(content, place)
        try:
            corpus = cls(
                path=folder,
                fingerprint=tree["fingerprint"],
                frame_bytes=tree["frame_bytes"],
                all_shards=tuple(ShardEntry(**shard) for shard in tree["shards"]),
                sources=tuple(tree["sources"]),
                skipped=tree["skipped"],
                kinds=tuple(tree["kinds"]),
                split_rule=tree["split"],
            )
        except (KeyError, TypeError) as error:
            raise CorpusError(f"{place} lacks or misnames {error}; {_REMEDY}") from error
        if corpus.fingerprint != fingerprint_of(corpus.all_shards, corpus.frame_bytes):
            raise CorpusError(f"{place} names a fingerprint that its shards do not have; {_REMEDY}")
        for shard in corpus.all_shards:
            if not SHARD_NAME.fullmatch(shard.name):
                raise CorpusError(f"{place} names the shard {shard.name!r}, which is no name of a shard; {_REMEDY}")
        return corpus

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold anything."""
        return tuple(dict.fromkeys(shard.split for shard in self.all_shards))

    def shards(self, split: str) -> tuple[ShardEntry, ...]:
        """Shards of a split, in order.

        Raises:
            CorpusError: The corpus has no such split.
        """
        found = tuple(shard for shard in self.all_shards if shard.split == split)
        if not found:
            raise CorpusError(
                f"corpus {self.path} has no {split!r} split, only {', '.join(map(repr, self.splits))}; "
                "ingest again with another --validation-fraction or more sources"
            )
        return found

    def raw_bytes(self, split: str) -> int:
        """Bytes of a split's documents; 0 where the corpus has no such split."""
        return sum(shard.raw_bytes for shard in self.all_shards if shard.split == split)

    def document_count(self, split: str) -> int:
        """How many ``documents(split)`` gives: a document that was cut counts once for each piece."""
        return sum(shard.pieces for shard in self.all_shards if shard.split == split)

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
        return ShardReader(self.path / shard.name, expected_hash=shard.hash)

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


def fingerprint_of(shards: Sequence[ShardEntry], frame_bytes: int) -> str:
    """Hash of a corpus's content: what windows and documents can come from it, and nothing else.

    Args:
        shards: All shards, in order.
        frame_bytes: Raw bytes of a full frame.

    Returns:
        32 hexadecimal digits.
    """
    content = [[shard.split, shard.raw_bytes, shard.content] for shard in shards]
    return xxhash.xxh3_128_hexdigest(json.dumps([_FORMAT, _VERSION, frame_bytes, content]).encode())


def write_index(
    folder: Path,
    shards: Sequence[ShardEntry],
    *,
    frame_bytes: int,
    made_by: str,
    sources: Sequence[dict[str, Any]],
    skipped: dict[str, int],
    kinds: Sequence[str],
    split_rule: dict[str, Any],
) -> str:
    """Write the index, which makes the folder a corpus; its shards must be complete.

    Args:
        folder: The corpus.
        shards: All shards, train before validation.
        frame_bytes: Raw bytes of a full frame.
        made_by: Program and version.
        sources: For each source its name, documents and bytes.
        skipped: Paths that gave no document, counted by reason.
        kinds: Names of the kinds of documents.
        split_rule: How the splits were decided.

    Returns:
        The fingerprint.

    Raises:
        StorageError: The disk refuses.
    """
    fingerprint = fingerprint_of(shards, frame_bytes)
    tree: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "made_by": made_by,
        "fingerprint": fingerprint,
        "documents": sum(shard.documents for shard in shards),
        "raw_bytes": sum(shard.raw_bytes for shard in shards),
        "packed_bytes": sum(shard.packed_bytes for shard in shards),
        "frame_bytes": frame_bytes,
        "split": split_rule,
        "kinds": list(kinds),
        "sources": list(sources),
        "skipped": skipped,
        "shards": [asdict(shard) for shard in shards],
    }
    write_file(folder / INDEX, _text({**tree, "checksum": _checksum(tree)}))
    return fingerprint


def _text(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2) + "\n").encode("ascii")


def _checksum(tree: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(_text(tree))


def _checked(content: bytes, place: Path) -> dict[str, Any]:
    try:
        tree = json.loads(content)
    except ValueError as error:
        raise CorpusError(f"{place} is damaged: it is not valid JSON; {_REMEDY}") from error
    if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
        raise CorpusError(f"{place} is damaged, or no index of a corpus; {_REMEDY}")
    if tree.get("version") != _VERSION:
        raise CorpusError(
            f"{place} has version {tree.get('version')!r}, this bytelm reads {_VERSION}; "
            f"use the bytelm that made it, or {_REMEDY}"
        )
    # Compared as text: what is not exactly as it was written is refused, down to the last space.
    unsigned = {key: value for key, value in tree.items() if key != "checksum"}
    if content != _text({**unsigned, "checksum": _checksum(unsigned)}):
        raise CorpusError(f"{place} is damaged: its checksum does not hold; {_REMEDY}")
    return tree


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
