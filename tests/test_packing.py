"""Packing against a slow twin that walks the bytes one by one."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.packing import PackedBatch, pack, plain_batch
from bytelm.vocab import EOD

Boundary = tuple[bool, bool]
"""Whether a document begins at a byte, and whether one ends in front of it."""
START, JOIN = (True, True), (False, False)


def packed(
    rows: list[bytes], boundaries: list[dict[int, Boundary]], heads: int, data_bytes: list[int] | None = None
) -> PackedBatch:
    flat = [(row, offset, *flags) for row, found in enumerate(boundaries) for offset, flags in sorted(found.items())]
    columns = [np.array([one[column] for one in flat]) for column in range(4)]
    return pack(
        torch.tensor([list(row) for row in rows], dtype=torch.uint8),
        columns[0].astype(np.int64),
        columns[1].astype(np.int64),
        columns[2].astype(bool),
        columns[3].astype(bool),
        None if data_bytes is None else np.array(data_bytes),
        prediction_heads=heads,
    )


def walked(
    row: bytes, boundaries: dict[int, Boundary], heads: int, data_bytes: int
) -> tuple[list[int], list[int], list[list[int | None]]]:
    """Inputs, documents and targets (None where invalid) of one window, by the words of the definition."""
    slots: list[tuple[int, int, int | None]] = []  # id, document as input, document as target
    document = 0
    for offset, byte in enumerate(row):
        if offset in boundaries:
            starts, ends = boundaries[offset]
            if offset:
                document += 1
            if starts or (ends and offset):
                slots.append((EOD, document if starts else document - 1, document - 1 if ends else document))
        slots.append((byte, document, document) if offset < data_bytes else (EOD, document, None))
    slots = slots[: len(row)]
    length = len(row) - heads
    targets: list[list[int | None]] = []
    for t in range(length):
        futures = [slots[t + 1 + k] for k in range(heads)]
        targets.append([identity if owner == slots[t][1] else None for identity, _, owner in futures])
    return [slot[0] for slot in slots[:length]], [slot[1] for slot in slots[:length]], targets


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[bytes], list[dict[int, Boundary]], int, list[int] | None]:
    heads = draw(st.integers(1, 6))
    width = heads + draw(st.integers(1, 20))
    count = draw(st.integers(1, 3))
    rows = [draw(st.binary(min_size=width, max_size=width)) for _ in range(count)]
    kinds = st.tuples(st.booleans(), st.booleans())
    boundaries = [draw(st.dictionaries(st.integers(0, width - 1), kinds, max_size=6)) for _ in range(count)]
    padded = st.lists(st.integers(1, width), min_size=count, max_size=count)
    return rows, boundaries, heads, draw(st.none() | padded)


@settings(max_examples=300, deadline=None)
@given(windows())
def test_packing_equals_a_walk_over_the_bytes(
    example: tuple[list[bytes], list[dict[int, Boundary]], int, list[int] | None],
) -> None:
    rows, boundaries, heads, data_bytes = example
    batch = packed(rows, boundaries, heads, data_bytes)
    inside = any(offset > 0 for found in boundaries for offset in found)
    assert (batch.documents_BT is not None) == inside
    for index, (row, found) in enumerate(zip(rows, boundaries, strict=True)):
        data = len(row) if data_bytes is None else data_bytes[index]
        inputs, documents, targets = walked(row, found, heads, data)
        assert batch.inputs_BT[index].tolist() == inputs
        if batch.documents_BT is not None:
            changes = (batch.documents_BT[index].diff() != 0).tolist()
            assert changes == [left != right for left, right in itertools.pairwise(documents)]
        for t, row_targets in enumerate(targets):
            valid = batch.valid_BTK[index, t].tolist()
            assert valid == [target is not None for target in row_targets]
            expected = [target for target in row_targets if target is not None]
            assert batch.targets_BTK[index, t][batch.valid_BTK[index, t]].tolist() == expected


def test_the_end_of_a_document_is_a_target_and_what_lies_behind_is_not() -> None:
    batch = packed([b"abXY..."], [{2: START}], 3)
    assert batch.inputs_BT[0].tolist() == [*b"ab", EOD, *b"X"]
    assert batch.targets_BTK[0, 0].tolist() == [*b"b", EOD, *b"X"]
    assert batch.valid_BTK[0, 0].tolist() == [True, True, False]  # from a: b, the end, but not X
    assert batch.targets_BTK[0, 2].tolist() == [*b"XY."]
    assert batch.valid_BTK[0, 2].tolist() == [True, True, True]  # from the EOD slot: the next document
    assert batch.documents_BT is not None
    assert batch.documents_BT[0].tolist() == [0, 0, 1, 1]


def test_a_join_is_crossed_by_no_target_and_teaches_no_end() -> None:
    batch = packed([b"abXY..."], [{2: JOIN}], 3)
    assert EOD not in batch.inputs_BT
    assert EOD not in batch.targets_BTK
    assert batch.valid_BTK[0, 0].tolist() == [True, False, False]
    assert batch.documents_BT is not None
    assert batch.documents_BT[0].tolist() == [0, 0, 1, 1]


def test_an_end_without_a_beginning_is_predicted_and_predicts_nothing() -> None:
    batch = packed([b"abXY..."], [{2: (False, True)}], 2)
    assert batch.inputs_BT[0].tolist() == [*b"ab", EOD, *b"XY"]
    assert batch.targets_BTK[0, 1].tolist() == [EOD, ord("X")]
    assert batch.valid_BTK[0, 1].tolist() == [True, False]
    assert batch.valid_BTK[0, 2].tolist() == [False, False]  # from the EOD slot: what follows is something else


def test_a_beginning_without_an_end_predicts_and_is_predicted_by_nothing() -> None:
    batch = packed([b"abXY..."], [{2: (True, False)}], 2)
    assert batch.inputs_BT[0].tolist() == [*b"ab", EOD, *b"XY"]
    assert batch.valid_BTK[0, 1].tolist() == [False, False]
    assert batch.targets_BTK[0, 2].tolist() == [*b"XY"]
    assert batch.valid_BTK[0, 2].tolist() == [True, True]


def test_what_is_no_data_is_no_target_but_the_end_in_front_of_it_is() -> None:
    batch = packed([b"abcdefg"], [{4: (False, True)}], 2, [4])
    assert batch.targets_BTK[0, 3].tolist() == [EOD, EOD]
    assert batch.valid_BTK[0].tolist() == [[True, True]] * 3 + [[True, False], [False, False]]


def test_a_window_that_begins_with_a_document_begins_with_its_slot() -> None:
    batch = packed([b"abcd"], [{0: START}], 1)
    assert batch.inputs_BT[0].tolist() == [EOD, *b"ab"]
    assert batch.valid_BTK.all()
    assert batch.documents_BT is None


def test_targets_are_a_view_of_the_ids() -> None:
    for batch in (packed([b"abcdefgh"], [{3: START}], 4), plain_batch(torch.arange(8).unsqueeze(0), 4)):
        assert batch.targets_BTK.untyped_storage().data_ptr() == batch.inputs_BT.untyped_storage().data_ptr()
        assert batch.targets_BTK.shape == (1, 4, 4)


def test_windows_without_boundaries_are_plain() -> None:
    batch, plain = packed([b"abcdefgh"], [], 2), plain_batch(torch.tensor([list(b"abcdefgh")]), 2)
    assert torch.equal(batch.inputs_BT, plain.inputs_BT)
    assert torch.equal(batch.targets_BTK, plain.targets_BTK)
    assert batch.valid_BTK.all()
    assert batch.documents_BT is None
    assert plain.targets_BTK[0, 0].tolist() == list(b"bc")
