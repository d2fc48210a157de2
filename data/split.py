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
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, Literal, TypeVar

import xxhash

TRAIN: Final = "train"
VALIDATION: Final = "validation"

_HEAD_BYTES: Final = 16 << 20
_HEAD_BLOCKS: Final = 1 << 17  # a head of very short documents ends here, so that it fits into memory
_LEAST_BYTES: Final = 4 << 10
_LARGE_PIECE_BYTES: Final = 256 << 10
_FLOOR_BYTES: Final = 64 << 10
_HASH_RANGE: Final = 1 << 64

_Item = TypeVar("_Item")
RuleName = Literal["off", "all train", "small corpus", "large corpus"]


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive bytes of a document, as they were read.

    Attributes:
        data: At least one byte.
        document: Number of the document in the corpus; blocks of one document follow each other.
        last: The document ends with them.
        source: Index of the source that the document comes from.
        kind: Index of the document's kind.
    """

    data: bytes
    document: int
    last: bool
    source: int
    kind: int


@dataclass(frozen=True, slots=True)
class CutPiece:
    """A document, or a part of one that is cut off for the split.

    Attributes:
        data: At least one byte, at most ``SplitRule.piece_bytes``.
        document: Number of the document in the corpus.
        number: Number of the piece in the document; 0 begins it.
        last: The piece ends the document.
        source: Index of the source that the document comes from.
        kind: Index of the document's kind.
    """

    data: bytes
    document: int
    number: int
    last: bool
    source: int
    kind: int

    @property
    def hash(self) -> int:
        """64 bits that decide; the number is in them, lest a periodic document go one way as a whole."""
        return xxhash.xxh3_64_intdigest(self.data, seed=self.number)


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
            head_bytes: Bytes of its head.
            whole: The head is all of the corpus.
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


def split(blocks: Iterable[Block], fraction: float) -> tuple[SplitRule, Iterator[tuple[str, CutPiece]]]:
    """Cut documents into pieces and decide for each where it goes; at most 16 MiB are held at a time.

    Args:
        blocks: All documents, in order.
        fraction: Share to hold out, in [0, 0.5].

    Returns:
        The rule, and every piece in order with its split: ``TRAIN`` or ``VALIDATION``.
    """
    stream = iter(blocks)
    head: list[Block] = []
    head_bytes = 0
    for block in stream:
        head.append(block)
        head_bytes += len(block.data)
        if head_bytes >= _HEAD_BYTES or len(head) >= _HEAD_BLOCKS:
            break
    following = next(stream, None)
    rule = SplitRule.choose(head_bytes, whole=following is None, fraction=fraction)
    rest = () if following is None else chain((following,), stream)
    return rule, _decide(cut(chain(_emptying(head), rest), rule.piece_bytes), rule)


def cut(blocks: Iterable[Block], piece_bytes: int) -> Iterator[CutPiece]:
    """Join the blocks of each document and cut it into pieces of at most ``piece_bytes``."""
    pending = b""
    number = 0
    for block in blocks:
        pending = pending + block.data if pending else block.data
        begin = 0
        while len(pending) - begin > piece_bytes:
            newline = pending.rfind(b"\n", begin + piece_bytes // 2, begin + piece_bytes)
            end = begin + piece_bytes if newline < 0 else newline + 1
            yield CutPiece(pending[begin:end], block.document, number, False, block.source, block.kind)
            number += 1
            begin = end
        pending = pending[begin:]
        if block.last:
            yield CutPiece(pending, block.document, number, True, block.source, block.kind)
            pending = b""
            number = 0


def _decide(pieces: Iterator[CutPiece], rule: SplitRule) -> Iterator[tuple[str, CutPiece]]:
    head: list[CutPiece] = []
    head_bytes = 0
    for piece in pieces:
        head.append(piece)
        head_bytes += len(piece.data)
        if head_bytes >= _HEAD_BYTES or len(head) >= _HEAD_BLOCKS:
            break
    held_out = _held_out_of_head(head, head_bytes, rule)
    for number, piece in enumerate(_emptying(head)):
        yield (VALIDATION if number in held_out else TRAIN), piece
    threshold = rule.threshold
    for piece in pieces:
        yield (VALIDATION if piece.hash < threshold else TRAIN), piece


def _held_out_of_head(head: list[CutPiece], head_bytes: int, rule: SplitRule) -> set[int]:
    hashes = [piece.hash for piece in head]
    held_out: set[int] = set()
    held_out_bytes = 0
    for number in sorted(range(len(head)), key=lambda number: (hashes[number], number)):
        if hashes[number] >= rule.threshold and held_out_bytes >= rule.floor_bytes:
            break
        if held_out_bytes + len(head[number].data) <= head_bytes // 2:
            held_out.add(number)
            held_out_bytes += len(head[number].data)
    return held_out


def _emptying(items: list[_Item]) -> Iterator[_Item]:
    """The items in order, each let go once it was taken."""
    items.reverse()
    while items:
        yield items.pop()
