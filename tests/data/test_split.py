"""What is held out: never twice, never nothing, and the same when the corpus grows."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.split import HEAD_BYTES, HEAD_DOCUMENTS, TRAIN, VALIDATION, SplitRule, cut, decide


class Piece(NamedTuple):
    document: int
    number: int
    last: bool
    data: bytes


def blocks_of(document: bytes, block_bytes: int = 1 << 20) -> list[bytes]:
    return [document[begin : begin + block_bytes] for begin in range(0, len(document), block_bytes)]


def splits_of(documents: Sequence[bytes], fraction: float = 0.01) -> tuple[SplitRule, dict[str, list[Piece]]]:
    head_bytes = min(sum(map(len, documents[:HEAD_DOCUMENTS])), HEAD_BYTES)
    whole = len(documents) <= HEAD_DOCUMENTS and head_bytes < HEAD_BYTES
    rule = SplitRule.choose(head_bytes, whole=whole, fraction=fraction)
    decision = decide(enumerate(map(blocks_of, documents)), rule)
    found: dict[str, list[Piece]] = {TRAIN: [], VALIDATION: []}
    for number, document in enumerate(documents):
        for piece in cut(blocks_of(document), rule.piece_bytes):
            held_out = decision.holds_out(number, piece.number, piece.data)
            found[VALIDATION if held_out else TRAIN].append(Piece(number, piece.number, piece.last, piece.data))
    return rule, found


def size_of(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.data) for piece in pieces)


def lines(count: int, seed: int) -> bytes:
    """A document of random lines, about 30 bytes each."""
    chance = random.Random(seed)
    return b"".join(b"%030x\n"[: 30 + 1] % chance.getrandbits(120) for _ in range(count))


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300) | st.just(b"line\n" * 90), st.integers(1, 100), st.integers(1, 64))
def test_pieces_joined_are_the_document_again(document: bytes, piece_bytes: int, block_bytes: int) -> None:
    pieces = list(cut(blocks_of(document, block_bytes), piece_bytes))
    assert b"".join(piece.data for piece in pieces) == document
    assert all(1 <= len(piece.data) <= piece_bytes for piece in pieces)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces == list(cut([document], piece_bytes)), "the size of blocks must not matter"


def test_nothing_is_cut_into_nothing() -> None:
    assert list(cut([], 10)) == []


def test_a_cut_falls_behind_a_newline_where_there_is_one() -> None:
    (first, second) = cut([b"x" * 60 + b"\n" + b"y" * 60], 100)
    assert first.data == b"x" * 60 + b"\n"
    assert second.data == b"y" * 60


@pytest.mark.parametrize(
    "documents",
    [
        [lines(170, 0)],
        [lines(2000, 0)],
        [b"\0" * 6000],
        [bytes(range(256)) * 4000],
        [b"the same document\n" * 20] * 500,
        [lines(3, number) for number in range(100)],
        [lines(600_000, 1)],
        [b"tiny"] * 140_000,
    ],
    ids=["5 kB", "60 kB", "zeros", "periodic", "equal documents", "short documents", "one of 18 MB", "140,000 of 4 B"],
)
@pytest.mark.parametrize("fraction", [0.01, 0.5])
def test_both_splits_hold_something_and_no_byte_twice(documents: list[bytes], fraction: float) -> None:
    rule, found = splits_of(documents, fraction)
    total = sum(map(len, documents))
    assert size_of(found[TRAIN]) + size_of(found[VALIDATION]) == total
    assert size_of(found[VALIDATION]) >= min(rule.floor_bytes, total // 2 - rule.piece_bytes)
    assert size_of(found[VALIDATION]) >= 1024
    assert size_of(found[TRAIN]) >= min(total // 3, 128 << 10)
    places = {(piece.document, piece.number) for piece in found[TRAIN] + found[VALIDATION]}
    assert len(places) == len(found[TRAIN]) + len(found[VALIDATION])


def test_the_floor_is_a_tenth_of_a_small_corpus_and_64_kib_at_most() -> None:
    for count in (1500, 12_000, 60_000):
        documents = [lines(count, 0)]
        rule, found = splits_of(documents)
        floor_bytes = min(len(documents[0]) // 10, 64 << 10)
        assert rule.floor_bytes == floor_bytes
        assert floor_bytes <= size_of(found[VALIDATION]) <= floor_bytes + rule.piece_bytes


def test_a_large_corpus_holds_out_the_fraction_and_whole_documents() -> None:
    documents = [lines(200, number) for number in range(4000)]
    rule, found = splits_of(documents, 0.05)
    assert rule.name == "large corpus"
    assert all(piece.number == 0 and piece.last for piece in found[VALIDATION])
    assert 0.04 < size_of(found[VALIDATION]) / sum(map(len, documents)) < 0.06


def test_equal_documents_go_the_same_way_in_a_large_corpus() -> None:
    documents = [lines(200, number % 1500) for number in range(4500)]
    _, found = splits_of(documents, 0.05)
    held_out = {piece.data for piece in found[VALIDATION]}
    assert held_out
    assert not held_out & {piece.data for piece in found[TRAIN]}


@pytest.mark.parametrize(("before", "after"), [(120, 300), (3000, 4000)])
def test_what_was_trained_on_is_never_validated_on_when_the_corpus_grows(before: int, after: int) -> None:
    documents = [lines(200, number) for number in range(after)]
    rule, small = splits_of(documents[:before])
    grown_rule, grown = splits_of([*documents[before:], *documents[:before]])
    assert rule == grown_rule
    trained_on = {piece.data for piece in small[TRAIN]}
    assert not trained_on & {piece.data for piece in grown[VALIDATION]}


def test_the_decision_does_not_hang_on_the_order_of_documents() -> None:
    documents = [lines(100, number) for number in range(300)]
    _, ours = splits_of(documents)
    _, turned = splits_of(documents[::-1])
    assert {piece.data for piece in ours[VALIDATION]} == {piece.data for piece in turned[VALIDATION]}


def test_a_fraction_of_zero_and_a_corpus_below_4_kib_hold_nothing_out() -> None:
    rule, found = splits_of([lines(2000, 0)], 0.0)
    assert (rule.name, found[VALIDATION]) == ("off", [])
    rule, found = splits_of([lines(100, 0)])
    assert (rule.name, found[VALIDATION]) == ("all train", [])


def test_only_the_head_is_read_to_decide() -> None:
    taken = 0

    def endless() -> Iterator[tuple[int, list[bytes]]]:
        nonlocal taken
        for number in range(200):
            taken += 1
            yield number, [b"%020d\n" % number * (1 << 15)]

    decide(endless(), SplitRule.choose(HEAD_BYTES, whole=False, fraction=0.01))
    assert taken < 40


def test_without_a_floor_nothing_is_read_at_all() -> None:
    def forbidden() -> Iterator[tuple[int, list[bytes]]]:
        raise AssertionError("read")
        yield

    assert not decide(forbidden(), SplitRule.choose(1 << 30, whole=False, fraction=0.0)).held_out


def test_what_is_not_in_the_head_is_decided_by_its_hash_alone() -> None:
    documents = [lines(600, number) for number in range(1200)]
    rule, found = splits_of(documents, 0.05)
    decision = decide([], rule)
    behind = [piece for piece in found[TRAIN] + found[VALIDATION] if piece.document > 1000]
    assert len(behind) > 100
    for piece in behind:
        assert decision.holds_out(0, piece.number, piece.data) == (piece in found[VALIDATION])
