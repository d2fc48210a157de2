"""What a corpus holds: counts from its index, lengths from its piece tables, bytes and samples from its frames.

The index says what is in each split, at once. The rest is read, and a corpus may be long: so by default it is read from
places spread evenly over it, and what was read is said beside what was found. Memory does not grow with the corpus.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import zstandard

from bytelm.data.documents import name_of
from bytelm.data.file_names import names_in
from bytelm.data.index import FILES_NAME, SHARD_NAME, added_counts
from bytelm.data.kinds import KINDS, group_of
from bytelm.data.measures import ByteCounts, Lengths, is_utf8
from bytelm.data.shard_file import PieceTable, ShardReader
from bytelm.data.shards import Corpus, ShardEntry
from bytelm.utf8 import decode_text

SHARDS_READ: Final = 64
"""Shards whose piece tables are read, unless all are wanted: a corpus of up to 16 GiB is read whole."""
FRAMES_READ: Final = 256
"""Frames whose bytes are counted, unless all are wanted: 64 MiB."""
SAMPLE_BYTES: Final = 1024
"""The beginning of a sample that is kept."""
QUANTILES: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The beginning of a piece.

    Attributes:
        split: Where it is.
        number: Which of the split's pieces it is.
        kind: Name of its kind.
        source: Name of its source.
        file: Name of the file that it comes from; None where the corpus does not say.
        raw_bytes: Its length.
        whole: It is a document from beginning to end, and not a part of one.
        beginning: Its first bytes, ``SAMPLE_BYTES`` at most.
    """

    split: str
    number: int
    kind: str
    source: str
    file: str | None
    raw_bytes: int
    whole: bool
    beginning: bytes


@dataclass(slots=True, kw_only=True)
class Contents:
    """What was read of a corpus.

    Attributes:
        shards: How many there are in the splits that were asked for.
        shards_read: Of these, those whose piece tables were read.
        frames: How many there are.
        parts: Pieces read that are parts of documents.
        lengths: Of the pieces in those shards.
        bytes: In some frames of those shards.
        samples: From those shards.
    """

    shards: int
    shards_read: int
    frames: int
    parts: int = 0
    lengths: Lengths = field(default_factory=Lengths)
    bytes: ByteCounts = field(default_factory=ByteCounts)
    samples: list[Sample] = field(default_factory=list)


def read_contents(
    corpus: Corpus,
    splits: Sequence[str],
    *,
    samples: int = 0,
    seed: int = 0,
    most_shards: int | None = SHARDS_READ,
    most_frames: int | None = FRAMES_READ,
    on_frame: Callable[[int], None] = lambda _: None,
) -> Contents:
    """Read lengths, bytes and samples of a corpus.

    Args:
        corpus: An open corpus.
        splits: Which of its splits.
        samples: How many pieces to show the beginnings of, from places spread evenly over the shards that are read.
        seed: Decides which; the same seed gives the same samples.
        most_shards: Shards to read the piece tables of, spread evenly; None for all.
        most_frames: Frames of those shards to count the bytes of, spread evenly; None for all.
        on_frame: Called after each frame with its raw bytes.

    Raises:
        CorpusError: The corpus has no such split.
        ShardError: A shard is missing or damaged.
    """
    entries = [entry for split in splits for entry in corpus.shards(split)]
    first_pieces = _first_pieces(entries)
    chosen = [entries[place] for place in spread(len(entries), most_shards)]
    frames_of = [-(-entry.raw_bytes // corpus.frame_bytes) for entry in chosen]
    frames = spread(sum(frames_of), most_frames)
    pieces = spread(sum(entry.pieces for entry in chosen), samples, seed=seed)
    found = Contents(
        shards=len(entries),
        shards_read=len(chosen),
        frames=sum(-(-entry.raw_bytes // corpus.frame_bytes) for entry in entries),
    )
    decompressor = zstandard.ZstdDecompressor()
    sources = [source["name"] for source in corpus.sources]
    frames_before = pieces_before = 0
    for entry, frame_count in zip(chosen, frames_of, strict=True):
        reader = corpus.open_shard(entry)
        table = reader.read_pieces()
        found.lengths.add(table.lengths_P)
        found.parts += int((~(table.starts_P & table.ends_P)).sum())
        for frame in _within(frames, frames_before, frame_count):
            on_frame(_count_frame(found.bytes, reader, frame, decompressor))
        shown = list(_within(pieces, pieces_before, entry.pieces))
        files = _file_names(corpus, entry) if shown else None
        for piece in shown:
            found.samples.append(
                Sample(
                    split=entry.split,
                    number=first_pieces[entry.name] + piece,
                    kind=corpus.kinds[table.kinds_P[piece]],
                    source=sources[table.sources_P[piece]],
                    file=None if files is None else files[piece],
                    raw_bytes=int(table.lengths_P[piece]),
                    whole=bool(table.starts_P[piece] and table.ends_P[piece]),
                    beginning=_beginning(reader, table, piece, decompressor),
                )
            )
        frames_before += frame_count
        pieces_before += entry.pieces
    return found


def spread(count: int, wanted: int | None, *, seed: int | None = None) -> list[int]:
    """Some of ``count`` places, evenly spread, ascending; all of them where as many are wanted.

    Args:
        count: Places there are.
        wanted: Places to choose; None for all.
        seed: Moves each within its part; None takes the first of each part.

    Example:
        >>> spread(100, 4), spread(3, 10)
        ([0, 25, 50, 75], [0, 1, 2])
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    return [
        begin + (_chance(f"{seed}:{number}") % (end - begin) if seed is not None else 0)
        for number in range(wanted)
        for begin, end in [(number * count // wanted, (number + 1) * count // wanted)]
    ]


def index_facts(corpus: Corpus, splits: Sequence[str]) -> dict[str, Any]:
    """What the index says, as JSON values: totals and kinds of these splits, and of the whole corpus what made it."""
    entries = [entry for split in splits for entry in corpus.shards(split)]
    return {
        "corpus": name_of(corpus.folder.address),
        "fingerprint": corpus.fingerprint,
        **_totals(entries),
        "splits": {split: _totals(corpus.shards(split)) for split in splits},
        "kinds": _kinds(corpus, splits),
        "skipped": {
            reason: {"documents": count.documents, "raw_bytes": count.raw_bytes}
            for reason, count in corpus.skipped.items()
            if count.documents
        },
        "sources": list(corpus.sources),
        "ingestions": [
            {"made_by": ingestion.made_by, "settings": ingestion.settings} for ingestion in corpus.ingestions
        ],
        "frame_bytes": corpus.frame_bytes,
        "split_rule": corpus.split_rule,
    }


def content_facts(contents: Contents) -> dict[str, Any]:
    """What was read, as JSON values, with how much was read."""
    lengths, found = contents.lengths, contents.bytes
    return {
        "lengths": {
            "shards": contents.shards,
            "shards_read": contents.shards_read,
            "pieces": lengths.pieces,
            "parts": contents.parts,
            "least": lengths.least,
            "mean": round(lengths.raw_bytes / max(1, lengths.pieces), 1),
            "most": lengths.most,
            "quantiles": {str(share): lengths.quantile(share) for share in QUANTILES},
            "histogram": [{"from": least, "pieces": pieces} for least, pieces in lengths.doublings()],
        },
        "bytes": {
            "frames": contents.frames,
            "frames_read": found.frames,
            "raw_bytes": found.raw_bytes,
            "entropy_bits_per_byte": round(found.entropy, 4),
            "order": 0,
            "utf8_share": round(found.utf8_bytes / max(1, found.raw_bytes), 6),
            "counts": found.counts.tolist(),
        },
        "samples": [
            {
                "split": sample.split,
                "piece": sample.number,
                "kind": sample.kind,
                "source": sample.source,
                "file": sample.file,
                "raw_bytes": sample.raw_bytes,
                "whole": sample.whole,
                "shown_bytes": len(sample.beginning),
                "beginning": decode_text(sample.beginning, "escape"),
            }
            for sample in contents.samples
        ],
    }


def _totals(entries: Sequence[ShardEntry]) -> dict[str, Any]:
    raw_bytes = sum(entry.raw_bytes for entry in entries)
    packed_bytes = sum(entry.packed_bytes for entry in entries)
    return {
        "documents": sum(entry.documents for entry in entries),
        "pieces": sum(entry.pieces for entry in entries),
        "raw_bytes": raw_bytes,
        "packed_bytes": packed_bytes,
        "ratio": round(raw_bytes / packed_bytes, 4),
        "shards": len(entries),
    }


def _kinds(corpus: Corpus, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The kind with the most bytes first."""
    counts = added_counts(corpus.kind_counts(split) for split in splits)
    ordered = sorted(counts.items(), key=lambda item: (-item[1].raw_bytes, item[0]))
    return {
        name: {
            "group": group_of(KINDS.index(name)) if name in KINDS else "binary",  # of a later bytelm
            "documents": count.documents,
            "raw_bytes": count.raw_bytes,
        }
        for name, count in ordered
    }


def _count_frame(found: ByteCounts, reader: ShardReader, frame: int, decompressor: zstandard.ZstdDecompressor) -> int:
    raw = bytearray(reader.frame_size(frame))
    pieces = reader.read_frame(frame, memoryview(raw), decompressor)
    found.counts += np.bincount(np.frombuffer(raw, np.uint8), minlength=256)
    found.frames += 1
    begins = [*pieces.offsets_P.tolist(), len(raw)]
    for number, begin in enumerate(begins[:-1]):
        part = bytes(raw[begin : begins[number + 1]])
        cut_before = number == 0 and pieces.continues
        cut_behind = number == len(begins) - 2 and not pieces.ends_document
        if is_utf8(part, cut_before=cut_before, cut_behind=cut_behind):
            found.utf8_bytes += len(part)
    return len(raw)


def _beginning(reader: ShardReader, table: PieceTable, piece: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    begin = int(table.begins_P[piece])
    end = begin + min(SAMPLE_BYTES, int(table.lengths_P[piece]))
    gathered = bytearray()
    for frame in range(begin // reader.frame_bytes, (end - 1) // reader.frame_bytes + 1):
        raw = bytearray(reader.frame_size(frame))
        reader.read_frame(frame, memoryview(raw), decompressor)
        frame_begin = frame * reader.frame_bytes
        gathered += raw[max(0, begin - frame_begin) : end - frame_begin]
    return bytes(gathered)


def _file_names(corpus: Corpus, shard: ShardEntry) -> list[str] | None:
    """The file of each piece of a shard, if the corpus says it."""
    number = SHARD_NAME.fullmatch(shard.name)
    assert number, "the index was checked"
    for entry in reversed(corpus.files):  # each ingestion has numbers from its first shard on
        found = FILES_NAME.fullmatch(entry.name)
        if found and int(found["number"]) <= int(number["number"]):
            return names_in(corpus.files_of(entry), shard.name, shard.pieces)
    return None


def _first_pieces(entries: Sequence[ShardEntry]) -> dict[str, int]:
    """Number of each shard's first piece within its split."""
    before: dict[str, int] = {}
    first: dict[str, int] = {}
    for entry in entries:
        first[entry.name] = before.get(entry.split, 0)
        before[entry.split] = first[entry.name] + entry.pieces
    return first


def _within(places: Sequence[int], before: int, count: int) -> Iterator[int]:
    return (place - before for place in places if before <= place < before + count)


def _chance(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
