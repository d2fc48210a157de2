"""What is held out for validation: decided by content, piece by piece, so that the decision outlives the corpus.

A document of at most ``piece_bytes`` is one piece; a longer one is cut into pieces behind a newline where there is
one in the second half, else at ``piece_bytes``. A piece goes to validation when the hash of its bytes (keyed by its
number within the document) is below ``fraction`` of the range. No byte stands in both splits; equal documents go the
same way; a document decides alike in every corpus that is cut in the same way.

Small corpora need care: one per cent of a megabyte is nothing, or is one unlucky file. So the beginning of a corpus,
its head, gets a floor: when its hashes leave less than ``floor_bytes`` for validation, the pieces with the next
smallest hashes follow until it is reached. The floor makes the bar a single number that only sinks when a corpus of
the same rule grows: what was trained on never becomes validation.

    rule                   corpus               piece_bytes       floor_bytes
    ``off``                fraction is 0        –                 –                all of it is train
    ``all train``          below 4 KiB          –                 –                too small to hold anything out
    ``small corpus``       below 16 MiB         floor / 8         10 %, from 1 KiB to 64 KiB
    ``large corpus``       from 16 MiB on       256 KiB           64 KiB in the first 16 MiB

Never more than half of the head is held out, and never all of it.

What is appended to a corpus later is cut and decided by the corpus's own rule, without a floor: ``off`` stays off.
Only behind ``all train``, where nothing could be decided yet, it is decided as if it were a corpus of its own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import xxhash

TRAIN: Final = "train"
VALIDATION: Final = "validation"

HEAD_BYTES: Final = 16 << 20
"""Bytes of a corpus's head."""

HEAD_DOCUMENTS: Final = 1 << 17
"""A head of very short documents has this many, and as many pieces, so that it fits into memory."""

_LEAST_BYTES: Final = 4 << 10
_LARGE_PIECE_BYTES: Final = 256 << 10
_FLOOR_BYTES: Final = 64 << 10
_HASH_RANGE: Final = 1 << 64

RuleName = Literal["off", "all train", "small corpus", "large corpus"]


class CutPiece(NamedTuple):
    """A document, or a part of one that is cut off for the split."""

    data: bytes
    """At least one byte, at most ``SplitRule.piece_bytes``."""
    number: int
    """Number of the piece in the document; 0 begins it."""
    last: bool
    """The piece ends the document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """The rule that a corpus is split by; every number of it stands in the index.

    Attributes:
        name: Which row of the table above.
        fraction: Share of the hashes that is held out.
        piece_bytes: Longest piece.
        floor_bytes: Least bytes that are held out of the head.
    """

    name: RuleName
    fraction: float
    piece_bytes: int
    floor_bytes: int

    @classmethod
    def choose(cls, head_bytes: int, *, whole: bool, fraction: float) -> "SplitRule":
        """The rule for a corpus.

        Args:
            head_bytes: Bytes of its first ``HEAD_DOCUMENTS`` documents, at most ``HEAD_BYTES``.
            whole: The corpus has no more documents, and less than ``HEAD_BYTES``.
            fraction: Share to hold out, in [0, 0.5].
        """
        if not fraction:
            return cls(name="off", fraction=0.0, piece_bytes=_LARGE_PIECE_BYTES, floor_bytes=0)
        if whole and head_bytes < _LEAST_BYTES:
            return cls(name="all train", fraction=0.0, piece_bytes=_LARGE_PIECE_BYTES, floor_bytes=0)
        floor_bytes = min(_FLOOR_BYTES, max(head_bytes // 10, min(2 << 10, head_bytes // 4)))
        if whole:
            return cls(name="small corpus", fraction=fraction, piece_bytes=floor_bytes // 8, floor_bytes=floor_bytes)
        return cls(name="large corpus", fraction=fraction, piece_bytes=_LARGE_PIECE_BYTES, floor_bytes=floor_bytes)

    @property
    def threshold(self) -> int:
        """Hashes below this are held out."""
        return int(self.fraction * _HASH_RANGE)


@dataclass(frozen=True, slots=True)
class Decision:
    """Which pieces of a corpus are held out.

    Attributes:
        threshold: Hashes below this are, behind the head.
        head_end: Document and number of the first piece behind the head.
        held_out: Documents and numbers of the pieces of the head that are.
    """

    threshold: int
    head_end: tuple[int, int] = (0, 0)
    held_out: frozenset[tuple[int, int]] = frozenset()

    def holds_out(self, document: int, number: int, data: bytes) -> bool:
        """Whether a piece goes to validation.

        Args:
            document: Number of its document in the corpus.
            number: Its number in the document.
            data: Its bytes.
        """
        if (document, number) < self.head_end:
            return (document, number) in self.held_out
        return piece_hash(data, number) < self.threshold


def piece_hash(data: bytes, number: int) -> int:
    """64 bits that decide; the number is in them, lest a periodic document go one way as a whole."""
    return xxhash.xxh3_64_intdigest(data, seed=number)


def cut(blocks: Iterable[bytes], piece_bytes: int) -> Iterator[CutPiece]:
    """Join the blocks of a document and cut it into pieces of at most ``piece_bytes``."""
    pending = b""
    number = 0
    for block in blocks:
        pending = pending + block if pending else block
        begin = 0
        while len(pending) - begin > piece_bytes:
            newline = pending.rfind(b"\n", begin + piece_bytes // 2, begin + piece_bytes)
            end = begin + piece_bytes if newline < 0 else newline + 1
            yield CutPiece(pending[begin:end], number, False)
            number += 1
            begin = end
        if begin:
            pending = pending[begin:]
    if pending:
        yield CutPiece(pending, number, True)


def decide(documents: Iterable[tuple[int, Iterable[bytes]]], rule: SplitRule) -> Decision:
    """Decide what is held out of the head of a corpus, and with that of all of it.

    Args:
        documents: Number and blocks of each document, in order; only as many as the head has are taken.
        rule: The rule, a name of which decides: without a floor there is no head.
    """
    if not rule.floor_bytes:
        return Decision(rule.threshold)
    places: list[tuple[int, int]] = []
    hashes: list[int] = []
    sizes: list[int] = []
    head_bytes = 0
    for document, piece in _pieces(documents, rule.piece_bytes):
        places.append((document, piece.number))
        hashes.append(piece_hash(piece.data, piece.number))
        sizes.append(len(piece.data))
        head_bytes += len(piece.data)
        if head_bytes >= HEAD_BYTES or len(places) >= HEAD_DOCUMENTS:
            break
    held_out: set[tuple[int, int]] = set()
    held_out_bytes = 0
    for index in sorted(range(len(places)), key=lambda index: (hashes[index], index)):
        if hashes[index] >= rule.threshold and held_out_bytes >= rule.floor_bytes:
            break
        if held_out_bytes + sizes[index] <= head_bytes // 2:
            held_out.add(places[index])
            held_out_bytes += sizes[index]
    document, number = places[-1] if places else (0, -1)
    return Decision(rule.threshold, (document, number + 1), frozenset(held_out))


def _pieces(documents: Iterable[tuple[int, Iterable[bytes]]], piece_bytes: int) -> Iterator[tuple[int, CutPiece]]:
    for document, blocks in documents:
        for piece in cut(blocks, piece_bytes):
            yield document, piece
