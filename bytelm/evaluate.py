"""Evaluation: bits per byte of every head on held-out bytes.

Bits per byte are counted from the raw bytes, never from ids: the sum of -log2 of what the model gave each byte, over
their number. The context that a byte had decides much of the result, so the rule is part of it (``BitsPerByte.rule``).

Shapes: K prediction heads.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from bytelm.errors import CorpusError
from bytelm.model import ByteLM
from bytelm.scoring import agreement, batches, check_stride, default_stride, score, windows

_EXCERPT_WINDOWS: Final = 8


@dataclass(frozen=True, kw_only=True)
class BitsPerByte:
    """Bits per byte of every head.

    Attributes:
        by_head: Of head k over the bytes that it can predict; None where there is none. Length K.
        scored_bytes: Bytes that head 0 scored: every byte, once.
        scored_ids: Ids that they were read as: as many, but in a vocabulary whose ids stand for several bytes.
        documents: Documents that they came from.
        context_bytes: Bytes of a window.
        stride: Bytes that a window advances.
        agreement_by_head: For head k the share of places at which heads 1 … k all name the ids that head 0 names once
            it has read that far: an estimate of ``Generation.acceptance_by_head`` on this very text. 1 for head 0;
            None where there is no such place. Length K.
    """

    by_head: tuple[float | None, ...]
    scored_bytes: int
    scored_ids: int
    documents: int
    context_bytes: int
    stride: int
    agreement_by_head: tuple[float | None, ...]

    @property
    def bytes_per_step_estimate(self) -> float | None:
        """Bytes of a pass of greedy self-speculative decoding, were its text like this one."""
        first, *others = self.agreement_by_head
        ids = None if first is None else first + sum(share or 0.0 for share in others)
        return None if ids is None else ids * self.scored_bytes / self.scored_ids

    @property
    def rule(self) -> str:
        """How much context each byte had, in words."""
        several = (
            ""
            if self.scored_ids == self.scored_bytes
            else "; ids stand for several bytes: a window holds those whose bytes lie in it whole, and what is scored "
            "is the one way in which the vocabulary writes a document"
        )
        return (
            f"each document begins with an end-of-document id and is read alone, in windows of {self.context_bytes} "
            f"bytes that advance by {self.stride}; a byte is scored once, by the first window that reads the id before "
            f"it: with {self.context_bytes - self.stride} before that one, or the document's start; head k reads "
            f"k ids less; specials count neither as bytes nor in the sum{several}"
        )


@torch.no_grad()
def bits_per_byte(
    model: ByteLM,
    documents: Iterable[bytes],
    *,
    context_bytes: int,
    stride: int | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> BitsPerByte:
    """Score documents with every head.

    The rule is that of ``bytelm.scoring``; head k scores the bytes from k on.

    Args:
        model: On any device; under autocast if the caller wants that.
        documents: Raw bytes; taken one by one.
        context_bytes: Bytes of a window, ``EOD`` counted as one, at least 1; the window that the model was trained
            with is the natural choice.
        stride: Bytes that a window advances, 1 … ``context_bytes``; half the window where None.
        before_batch: Called again and again meanwhile; what it raises ends the evaluation.

    Raises:
        ConfigError: The stride is impossible.
        CorpusError: There is not one byte.

    Example:
        A document of 4 bytes, context 3, stride 1: the windows read p = 0 1 2 and 1 2 3. Head 0 scores bytes 0, 1, 2
        in the first and byte 3 in the second; head 1 bytes 1, 2, 3 in the first and none in the second.
    """
    stride = check_stride(default_stride(context_bytes) if stride is None else stride, context_bytes)
    heads = model.heads.count
    nats_K = torch.zeros(heads, dtype=torch.float64, device=model.embedding.device)
    count_K = torch.zeros(heads, dtype=torch.int64, device=model.embedding.device)
    agreed_K = torch.zeros_like(count_K)
    counted, scored_ids = Counted(documents), 0
    for batch in batches(windows(counted, model.vocabulary, context=context_bytes, stride=stride, heads=heads)):
        before_batch()
        scores = score(model, batch, heads)
        nats_K += torch.where(scores.scored_kBL, scores.nats_kBL.double(), 0.0).sum((1, 2))
        count_K += scores.bytes_kBL.sum((1, 2))
        agreed_K += agreement(scores).sum((1, 2))
        scored_ids += sum(window.reads - window.first for window in batch)
    if counted.raw_bytes == 0:
        raise CorpusError(f"there is no byte to score in {counted.documents} documents; choose another split or file")
    bits = (nats_K / math.log(2)).tolist()
    counts = count_K.tolist()
    agreed = agreed_K.tolist()
    assert counts[0] == counted.raw_bytes, "a byte was scored twice or not at all"
    return BitsPerByte(
        by_head=tuple(total / count if count else None for total, count in zip(bits, counts, strict=True)),
        scored_bytes=counts[0],
        scored_ids=scored_ids,
        documents=counted.documents,
        context_bytes=context_bytes,
        stride=stride,
        agreement_by_head=tuple(count / agreed[0] if agreed[0] else None for count in agreed),
    )


class Document(Protocol):
    """Bytes, or what gives pieces of them without holding them all."""

    def __len__(self) -> int:
        """Bytes in all."""
        ...

    def __getitem__(self, place: slice, /) -> bytes:
        """A piece."""
        ...


def excerpts(documents: Iterable[Document], total_bytes: int, *, count: int, length: int) -> Iterator[bytes]:
    """Pieces from places evenly spread over documents, always the same ones.

    Args:
        documents: Raw bytes; taken one by one.
        total_bytes: Of all documents together.
        count: Pieces, at most; places that fall into one piece give one.
        length: Bytes of a piece, at most; a piece does not leave its document.

    Yields:
        Pieces in order, non-empty and not overlapping. If ``count * length`` is all there is, or more, the whole
        documents.

    Example:
        >>> list(excerpts([b"abcdefgh", b"ij"], 10, count=2, length=3))
        [b'abc', b'fgh']
    """
    if count * length >= total_bytes:
        yield from (document[:] for document in documents if len(document))
        return
    place, start = 0, 0
    for document in documents:
        taken = 0  # bytes of this document that are behind the last piece
        while place < count and place * total_bytes // count < start + len(document):
            begin = max(taken, min(place * total_bytes // count - start, len(document) - length))
            place += 1
            if begin < len(document):
                yield document[begin : begin + length]
                taken = begin + length
        start += len(document)


def some_bytes(
    documents: Iterable[Document], total_bytes: int, *, limit_bytes: int, window_bytes: int
) -> Iterator[bytes]:
    """Documents if they are small, else pieces of some windows from evenly spread places, in all what is asked for.

    A piece begins at its place, or so far before it that its document holds it whole. One that is longer than its
    document goes on in the documents behind it: each document's part is a piece of its own.

    Args:
        documents: Raw bytes; taken one by one.
        total_bytes: Of all documents together.
        limit_bytes: Bytes to give, at least 1; all there are where that is less.
        window_bytes: Of the model; a piece is long enough for the full context and short enough for many places.

    Yields:
        Pieces in order, not overlapping, ``min(limit_bytes, total_bytes)`` bytes in all.

    Example:
        >>> list(some_bytes([b"abc", b"defghijkl", b"mnop"], 16, limit_bytes=5, window_bytes=99))
        [b'abc', b'de']
    """
    if total_bytes <= limit_bytes:
        yield from (document[:] for document in documents)
        return
    count = max(1, limit_bytes // (_EXCERPT_WINDOWS * window_bytes))
    place = start = owed = 0
    for document in documents:
        taken, size = 0, len(document)  # bytes of this document that are behind the last piece, and all
        while True:
            reached = place < count and place * total_bytes // count < start + size
            if owed and taken < size:  # of the piece before
                begin = taken
            elif reached:
                at = place * total_bytes // count - start
                owed += (place + 1) * limit_bytes // count - place * limit_bytes // count
                begin = max(taken, min(at, size - owed))
                place += 1
            else:
                break
            end = min(size, begin + owed)
            if begin < end:
                yield document[begin:end]
                owed -= end - begin
                taken = end
        start += size
        if place == count and not owed:
            return


class Counted:
    """Documents as they pass by, with their number and size."""

    def __init__(self, documents: Iterable[bytes]) -> None:
        self._source = documents
        self.documents = 0
        self.raw_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for document in self._source:
            self.documents += 1
            self.raw_bytes += len(document)
            yield document
