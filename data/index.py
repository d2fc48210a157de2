"""The index of a corpus: what it holds, as one JSON file that is written last and carries a checksum of itself.

It names every shard with its hash, so that every byte of a corpus is covered, and tells what each ingestion has read
and left out. The fingerprint covers the content alone: raw bytes, document boundaries, split and order; neither
names and times nor the compression level change it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import xxhash

from bytelm.errors import CorpusError
from bytelm.own_files import ANYTHING, TEXT, WHOLE, Fields, FormError, ListOf, Number, Text, parse_json

INDEX: Final = "index.json"
SHARD_NAME: Final = re.compile(r"(?P<split>train|validation)-(?P<number>\d{5,})\.zst")
DIGESTS_NAME: Final = re.compile(r"documents-(?P<number>\d{5,})\.xxh128")

FILES_NAME: Final = re.compile(r"documents-(?P<number>\d{5,})\.files\.zst")

DIGEST_BYTES: Final = 16
"""Bytes of a document's digest: XXH3, 128 bits."""

_FORMAT: Final = "bytelm corpus"
_VERSION: Final = 2
_CONTENT_VERSION: Final = 1  # of what the fingerprint covers; the index may change without it
REMEDY: Final = "ingest the sources again"
MOST_INDEX_BYTES: Final = 256 << 20
"""An index of a hundred thousand shards has less."""

_BYTES: Final = Number(least=1, most=1 << 50, whole=True)
_COUNTS: Final = Fields(others=Fields({"documents": WHOLE, "raw_bytes": WHOLE}))
SHARD_SCHEMA: Final = Fields(
    {
        "name": TEXT,
        "split": Text(("train", "validation")),
        "raw_bytes": _BYTES,
        "packed_bytes": _BYTES,
        "pieces": _BYTES,
        "documents": WHOLE,
        "hash": TEXT,
        "content": TEXT,
        "kinds": _COUNTS,
    }
)
"""An entry of a shard as JSON."""
_FRACTION: Final = Number(least=0, most=0.5)
_SCHEMA: Final = Fields(
    {
        "format": Text((_FORMAT,)),
        "version": WHOLE,
        "fingerprint": TEXT,
        "documents": WHOLE,
        "raw_bytes": WHOLE,
        "packed_bytes": WHOLE,
        "frame_bytes": Number(least=1, most=64 << 20, whole=True),
        "split": Fields({"name": TEXT, "fraction": _FRACTION, "piece_bytes": _BYTES, "floor_bytes": WHOLE}),
        "kinds": ListOf(TEXT, least=1),
        "ingestions": ListOf(
            Fields(
                {
                    "made_by": TEXT,
                    "settings": Fields({"validation_fraction": _FRACTION, "frame_bytes": WHOLE}, others=ANYTHING),
                    "sources": ListOf(Fields({"name": TEXT, "documents": WHOLE, "raw_bytes": WHOLE})),
                    "skipped": _COUNTS,
                }
            ),
            least=1,
        ),
        "digests": ListOf(Fields({"name": TEXT, "documents": WHOLE, "hash": TEXT})),
        "shards": ListOf(SHARD_SCHEMA, least=1),
        "checksum": TEXT,
    },
    {"files": ListOf(Fields({"name": TEXT, "packed_bytes": _BYTES, "hash": TEXT}))},
    others=ANYTHING,  # what a later bytelm of the same version adds
)


@dataclass(frozen=True, slots=True)
class Count:
    """How many documents, and their bytes."""

    documents: int
    raw_bytes: int


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
        kinds: What is in it by the name of the kind: documents that begin in it, and bytes.
    """

    name: str
    split: str
    raw_bytes: int
    packed_bytes: int
    pieces: int
    documents: int
    hash: str
    content: str
    kinds: dict[str, Count]

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "ShardEntry":
        """The entry that ``dataclasses.asdict`` made this tree of."""
        return cls(**{**tree, "kinds": _counts(tree["kinds"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestEntry:
    """What the index says of a file of digests.

    Attributes:
        name: File name within the corpus.
        documents: Digests in it, one for each document of an ingestion, in order.
        hash: Hash of the file.
    """

    name: str
    documents: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesEntry:
    """What the index says of a file that says which files documents come from.

    Attributes:
        name: File name within the corpus.
        packed_bytes: Bytes of the file.
        hash: Hash of the file.
    """

    name: str
    packed_bytes: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingestion:
    """One of the ingestions that a corpus is made of.

    Attributes:
        made_by: Program and version.
        settings: What it was asked for.
        sources: For each source its name, documents and bytes.
        skipped: What was left out, by reason.
    """

    made_by: str
    settings: dict[str, Any]
    sources: tuple[dict[str, Any], ...]
    skipped: dict[str, Count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What the index says.

    Attributes:
        frame_bytes: Raw bytes of a full frame.
        all_shards: Every shard, train before validation.
        digests: Files with the digests of its documents.
        ingestions: What it was made of, in order.
        kinds: Names of the kinds of documents.
        split_rule: How the splits were decided.
        files: Files that say which source each document comes from, one for each ingestion; a corpus of an earlier
            bytelm has none.
    """

    frame_bytes: int
    all_shards: tuple[ShardEntry, ...]
    digests: tuple[DigestEntry, ...]
    ingestions: tuple[Ingestion, ...]
    kinds: tuple[str, ...]
    split_rule: dict[str, Any]
    files: tuple[FilesEntry, ...] = ()

    @classmethod
    def from_text(cls, content: bytes, place: str) -> "Index":
        """The index that ``to_text`` made this of.

        Args:
            content: All of the file.
            place: What messages call it.

        Raises:
            CorpusError: It is damaged, of an unknown version, or no index.
        """
        tree = _checked(content, place)
        index = cls(
            frame_bytes=tree["frame_bytes"],
            all_shards=tuple(map(ShardEntry.from_json, tree["shards"])),
            digests=tuple(DigestEntry(**entry) for entry in tree["digests"]),
            ingestions=tuple(map(_ingestion, tree["ingestions"])),
            kinds=tuple(tree["kinds"]),
            split_rule=tree["split"],
            files=tuple(FilesEntry(**entry) for entry in tree.get("files", ())),
        )
        fingerprint = tree["fingerprint"]
        if fingerprint != index.fingerprint:
            raise CorpusError(f"{place} names a fingerprint that its shards do not have; {REMEDY}")
        names = [(shard.name, SHARD_NAME) for shard in index.all_shards]
        names += [(entry.name, DIGESTS_NAME) for entry in index.digests]
        names += [(entry.name, FILES_NAME) for entry in index.files]
        for name, pattern in names:
            if not pattern.fullmatch(name):
                raise CorpusError(f"{place} names the file {name!r}, which is no name of a corpus's file; {REMEDY}")
        if len({name for name, _ in names}) < len(names):
            raise CorpusError(f"{place} names a file twice; {REMEDY}")
        return index

    def to_text(self) -> bytes:
        """The file, with its checksum."""
        shards = self.all_shards
        tree: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "fingerprint": self.fingerprint,
            "documents": sum(shard.documents for shard in shards),
            "raw_bytes": sum(shard.raw_bytes for shard in shards),
            "packed_bytes": sum(shard.packed_bytes for shard in shards),
            "frame_bytes": self.frame_bytes,
            "split": self.split_rule,
            "kinds": list(self.kinds),
            "ingestions": [asdict(ingestion) for ingestion in self.ingestions],
            "digests": [asdict(entry) for entry in self.digests],
            **({"files": [asdict(entry) for entry in self.files]} if self.files else {}),
            "shards": [asdict(shard) for shard in shards],
        }
        return _text({**tree, "checksum": _checksum(tree)})

    @property
    def fingerprint(self) -> str:
        """Hash of the content, hexadecimal."""
        return fingerprint_of(self.all_shards, self.frame_bytes)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold anything."""
        return tuple(dict.fromkeys(shard.split for shard in self.all_shards))

    @property
    def sources(self) -> tuple[dict[str, Any], ...]:
        """For each source of all ingestions its name, documents and bytes."""
        return tuple(source for ingestion in self.ingestions for source in ingestion.sources)

    @property
    def skipped(self) -> dict[str, Count]:
        """What all ingestions left out, by reason."""
        return added_counts(ingestion.skipped for ingestion in self.ingestions)

    def raw_bytes(self, split: str) -> int:
        """Bytes of a split's documents; 0 where the corpus has no such split."""
        return sum(shard.raw_bytes for shard in self.all_shards if shard.split == split)

    def document_count(self, split: str) -> int:
        """How many pieces a split has: a document that was cut counts once for each of its pieces."""
        return sum(shard.pieces for shard in self.all_shards if shard.split == split)

    def kind_counts(self, split: str) -> dict[str, Count]:
        """What is in a split, by the name of the kind."""
        return added_counts(shard.kinds for shard in self.all_shards if shard.split == split)


def fingerprint_of(shards: Sequence[ShardEntry], frame_bytes: int) -> str:
    """Hash of a corpus's content: what windows and documents can come from it, and nothing else.

    Args:
        shards: All shards, in order.
        frame_bytes: Raw bytes of a full frame.

    Returns:
        32 hexadecimal digits.
    """
    content = [[shard.split, shard.raw_bytes, shard.content] for shard in shards]
    return xxhash.xxh3_128_hexdigest(json.dumps([_FORMAT, _CONTENT_VERSION, frame_bytes, content]).encode())


def added_counts(counts: Iterable[Mapping[str, Count]]) -> dict[str, Count]:
    """Counts added up by name."""
    total: dict[str, Count] = {}
    for one in counts:
        for name, count in one.items():
            before = total.get(name, Count(0, 0))
            total[name] = Count(before.documents + count.documents, before.raw_bytes + count.raw_bytes)
    return total


def _counts(tree: dict[str, dict[str, int]]) -> dict[str, Count]:
    return {name: Count(**count) for name, count in tree.items()}


def _ingestion(tree: dict[str, Any]) -> Ingestion:
    return Ingestion(**{**tree, "sources": tuple(tree["sources"]), "skipped": _counts(tree["skipped"])})


def _text(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2) + "\n").encode("ascii")


def _checksum(tree: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(_text(tree))


def _checked(content: bytes, place: str) -> dict[str, Any]:
    if len(content) > MOST_INDEX_BYTES:
        raise too_large(place)
    try:
        tree = parse_json(content)
    except FormError as error:
        raise CorpusError(f"{place} is damaged: {error}; {REMEDY}") from error
    if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
        raise CorpusError(f"{place} is damaged, or no index of a corpus; {REMEDY}")
    if tree.get("version") != _VERSION:
        raise CorpusError(
            f"{place} has version {tree.get('version')!r}, this bytelm reads {_VERSION}; "
            f"use the bytelm that made it, or {REMEDY}"
        )
    # Compared as text: what is not exactly as it was written is refused, down to the last space.
    unsigned = {key: value for key, value in tree.items() if key != "checksum"}
    if content != _text({**unsigned, "checksum": _checksum(unsigned)}):
        raise CorpusError(f"{place} is damaged: its checksum does not hold; {REMEDY}")
    try:
        _SCHEMA.check(tree)
    except FormError as error:
        raise CorpusError(f"{place} is damaged: {error}; {REMEDY}") from error
    return tree


def too_large(place: str) -> CorpusError:
    """An index that is not even read."""
    return CorpusError(f"{place} has more than {MOST_INDEX_BYTES >> 20} MiB, which no index has; {REMEDY}")
