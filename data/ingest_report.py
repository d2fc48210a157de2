"""What an ingestion tells: how far it is, and what it has made."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from bytelm.data.documents import name_of
from bytelm.data.index import Count


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
        was_complete: It was finished before; nothing was left to do.
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
            "elapsed_s": round(self.elapsed_s, 3),
            "bytes_per_second": round(self.bytes_per_second),
        }
