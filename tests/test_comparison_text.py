"""The two parts of the held-out text have no document in common, tear none, and depend on the documents alone."""

from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from bytelm.comparison_text import SELECTION_SHARE, divide
from bytelm.data.shards import Corpus, Piece

DOCUMENTS = [b"document %d: " % number + bytes([97 + number]) * (50 + 10 * number) for number in range(12)]
ALL: dict[str, int] = {"limit_bytes": 1 << 20, "window_bytes": 64}


class HeldOut:
    """Stands in for a corpus: all that is read of one is its validation split."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces

    def pieces(self, split: str) -> Iterator[Piece]:
        assert split == "validation"
        yield from self._pieces

    def documents(self, split: str) -> Iterator[bytes]:
        return (piece.data for piece in self.pieces(split))


def piece_of(data: bytes, *, starts: bool = True, ends: bool = True) -> Piece:
    return Piece(data=data, starts=starts, ends=ends, source=0, kind=0)


def corpus_of(documents: Sequence[bytes]) -> Corpus:
    return cast("Corpus", HeldOut([piece_of(data) for data in documents]))


def test_each_document_stands_whole_in_one_part() -> None:
    corpus = corpus_of(DOCUMENTS)
    parts = divide(corpus)
    selection, final = parts.selection(corpus, **ALL), parts.final(corpus, **ALL)
    assert sorted(selection + final) == sorted(DOCUMENTS)
    assert sum(map(len, selection)) == parts.selection_bytes
    assert sum(map(len, final)) == parts.final_bytes
    total = parts.selection_bytes + parts.final_bytes
    assert SELECTION_SHARE * total <= parts.selection_bytes < SELECTION_SHARE * total + max(map(len, DOCUMENTS))


def test_the_parts_depend_on_the_documents_and_not_on_their_order() -> None:
    one = corpus_of(DOCUMENTS)
    other = corpus_of(DOCUMENTS[::-1])
    assert set(divide(one).selection(one, **ALL)) == set(divide(other).selection(other, **ALL))


def test_equal_documents_stand_in_the_same_part() -> None:
    corpus = corpus_of([*DOCUMENTS, *DOCUMENTS])
    parts = divide(corpus)
    assert not set(parts.selection(corpus, **ALL)) & set(parts.final(corpus, **ALL))


def test_the_parts_of_a_long_document_stay_together() -> None:
    long = [piece_of(b"a", ends=False), piece_of(b"b", starts=False, ends=False), piece_of(b"c", starts=False)]
    for other in DOCUMENTS:
        corpus = cast("Corpus", HeldOut([*long, piece_of(other)]))
        assert divide(corpus).selected in ({0, 1, 2}, {3})


def test_two_documents_are_one_in_each_part() -> None:
    corpus = corpus_of(DOCUMENTS[:2])
    parts = divide(corpus)
    assert (len(parts.selection(corpus, **ALL)), len(parts.final(corpus, **ALL))) == (1, 1)


def test_one_document_cannot_be_divided_and_both_parts_are_all_of_it() -> None:
    corpus = corpus_of(DOCUMENTS[:1])
    parts = divide(corpus)
    assert not parts.apart
    assert parts.selection(corpus, **ALL) == parts.final(corpus, **ALL) == DOCUMENTS[:1]
    assert parts.selection_bytes == parts.final_bytes == len(DOCUMENTS[0])


@pytest.mark.parametrize("limit", [1, 30, 100])
def test_a_part_gives_no_more_than_is_asked_for(limit: int) -> None:
    corpus = corpus_of(DOCUMENTS)
    found = divide(corpus).final(corpus, limit_bytes=limit, window_bytes=8)
    assert sum(map(len, found)) == limit
