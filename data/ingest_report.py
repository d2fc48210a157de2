"""What an ingestion tells: how far it is, and what it has made."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from bytelm.data.documents import name_of
from bytelm.data.index import Count
from bytelm.data.kinds import KINDS, group_of


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestProgress:
    """How far an ingestion is.

    Attributes:
        phase: ``survey``: every document is read once; ``write``: those that stay are read again and written.
        documents: Documents of the phase that are done.
        raw_bytes: Bytes of them.
        packed_bytes: Bytes written.
        total_bytes: Bytes that the phase will come to; None while nobody knows.
        elapsed_s: Seconds since the beginning.
        phase_s: Seconds since the beginning of the phase.
        phase_bytes: Bytes that were done since then, without what was there before.
    """

    phase: Literal["survey", "write"]
    documents: int
    raw_bytes: int
    packed_bytes: int
    total_bytes: int | None
    elapsed_s: float
    phase_s: float
    phase_bytes: int

    @property
    def left_s(self) -> float | None:
        """Seconds that the phase will still take, if it goes on as so far; None while nobody knows."""
        if self.total_bytes is None or self.phase_bytes <= 0 or self.phase_s <= 0:
            return None
        return (self.total_bytes - self.raw_bytes) * self.phase_s / self.phase_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """What an ingestion has made.

    Attributes:
        corpus: Its folder or address.
        fingerprint: Hash of the content, hexadecimal.
        documents: Documents in the corpus.
        raw_bytes: Their bytes.
        packed_bytes: Bytes of all shards.
        train_bytes: Bytes of the train split.
        validation_bytes: Bytes of the validation split.
        shards: Number of shards.
        kinds: What is in the corpus, by the name of the kind.
        split_rule: Name of the rule that decided the splits.
        new: What this ingestion has put in; all of it unless it was appended.
        skipped: What this ingestion left out, by reason.
        faults: What could not be read or was damaged and was left out, one line each: a few of each file, and no more
            in all than can be shown. ``skipped`` counts all.
        largest_binary: The files with the most binary bytes that were put in: name, kind, bytes.
        no_rows: Documents that were put in as they are though a column was asked for: they are no rows of a table.
        was_complete: It was finished before; nothing was left to do, and nothing of the three above is known any more.
        elapsed_s: Seconds from beginning to end.
    """

    corpus: str
    fingerprint: str
    documents: int
    raw_bytes: int
    packed_bytes: int
    train_bytes: int
    validation_bytes: int
    shards: int
    kinds: dict[str, Count]
    split_rule: str
    new: Count
    skipped: dict[str, Count]
    was_complete: bool
    elapsed_s: float
    faults: tuple[str, ...] = ()
    largest_binary: tuple[tuple[str, str, int], ...] = ()
    no_rows: Count | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Share of the corpus's bytes that is text, code and binary; text is everything that is neither of the two."""
        sizes = {"text": 0, "code": 0, "binary": 0}
        for name, count in self.kinds.items():
            group = group_of(KINDS.index(name)) if name in KINDS else "binary"  # of a later bytelm
            sizes[group if group in sizes else "text"] += count.raw_bytes
        return {name: size / max(1, self.raw_bytes) for name, size in sizes.items()}

    @property
    def ratio(self) -> float:
        """Raw bytes for each packed byte."""
        return self.raw_bytes / self.packed_bytes

    @property
    def bytes_per_second(self) -> float:
        """Raw bytes that were put in, in a second."""
        return self.new.raw_bytes / self.elapsed_s

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            **asdict(self),
            "corpus": name_of(self.corpus),
            "ratio": round(self.ratio, 4),
            "shares": {name: round(share, 6) for name, share in self.shares.items()},
            "largest_binary": [
                {"file": name, "kind": kind, "raw_bytes": raw_bytes} for name, kind, raw_bytes in self.largest_binary
            ],
            "elapsed_s": round(self.elapsed_s, 3),
            "bytes_per_second": round(self.bytes_per_second),
        }
