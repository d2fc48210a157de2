"""A BPE vocabulary loses no byte, whatever the bytes, and its windows are those of the byte model."""

import itertools
import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytelm.bpe import BPEVocab, measured_bytes_per_id, read_vocabulary, saved_form, split_places, train_bpe
from bytelm.config import HeadsConfig, ModelConfig
from bytelm.errors import CheckpointError, ConfigError, CorpusError
from bytelm.loss import multi_byte_loss
from bytelm.model import ByteLM
from bytelm.packing import PackedBatch
from bytelm.token_packing import pack_tokens
from bytelm.vocab import BYTE_COUNT, BYTES, EOD, ids_of, vocabulary_size

TEXT = (
    b"def greet(name):\r\n    return 'Hello, ' + name  # it's 12345 times\n\n\n"
    + "größer — 漢字かな混じり文 😀 naïve Москва\n".encode()
    + b"\tx = [1, 22, 333]\n"
) * 20
LOST_BY_OTHERS = [
    b"",
    b"   leading spaces",
    b"\xe2\x96\x81 SentencePiece's own mark",
    b"a\r\nb\rc\n\r\n",
    b"nul \x00 and \x00\x00 again",
    b"\xff\xfe\x80 no UTF-8 \xc3",
    "😀🏳️‍🌈 four bytes".encode(),
    "é as e and accent: e\u0301".encode(),
    b"<|endoftext|><s></s>[UNK]<unk><pad>",
    b"\xef\xbb\xbfa mark of byte order",
    bytes(range(256)),
    b"A" * 5000,
    b" " * 3000 + b"x",
    random.Random(0).randbytes(4096),
]


@pytest.fixture(scope="module")
def vocabulary() -> BPEVocab:
    return train_bpe([TEXT], "bpe:340")


def test_ids_are_bytes_then_the_end_of_documents_then_merges(vocabulary: BPEVocab) -> None:
    assert [vocabulary.bytes_of(value) for value in range(BYTE_COUNT)] == [bytes((value,)) for value in range(256)]
    assert vocabulary.bytes_of(EOD) == b""
    assert vocabulary.count == 340
    assert all(len(vocabulary.bytes_of(merged)) > 1 for merged in range(EOD + 1, 340))
    assert vocabulary.sizes.tolist() == [len(vocabulary.bytes_of(value)) for value in range(vocabulary_size("bpe:340"))]


@pytest.mark.parametrize("data", LOST_BY_OTHERS, ids=lambda data: repr(data[:12]))
def test_nothing_that_other_tools_lose_is_lost(vocabulary: BPEVocab, data: bytes) -> None:
    ids = vocabulary.encode(data)
    assert vocabulary.decode(ids.tolist()) == data
    assert vocabulary.sizes[ids].sum() == len(data)
    assert EOD not in ids


@given(st.binary(max_size=300))
def test_any_bytes_are_the_bytes_of_their_ids(data: bytes) -> None:
    assert _SMALL.decode(_SMALL.encode(data).tolist()) == data


_SMALL = train_bpe([TEXT], "bpe:300")


def test_merges_are_applied(vocabulary: BPEVocab) -> None:
    assert len(vocabulary.encode(TEXT)) < len(TEXT) / 2
    assert vocabulary.bytes_per_id == measured_bytes_per_id(vocabulary, [TEXT])
    assert vocabulary.bytes_per_id > 2


def test_the_same_data_gives_the_same_vocabulary_and_its_file_gives_it_back(vocabulary: BPEVocab) -> None:
    content = saved_form(vocabulary)
    assert saved_form(train_bpe([TEXT], "bpe:340")) == content
    again = read_vocabulary("bpe:340", content, "there")
    assert saved_form(again) == content
    assert again.encode(TEXT).tolist() == vocabulary.encode(TEXT).tolist()
    assert read_vocabulary("bytes", b"", "there") is BYTES


def test_a_vocabulary_may_find_fewer_merges_than_asked_for() -> None:
    small = train_bpe([b"ab ab ab"], "bpe:4096")
    assert small.count < 300
    assert len(small.sizes) == 4096


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"format": "other"}', b'{"format":"bytelm bpe vocabulary","version":9}', b"\xff"]
)
def test_a_file_that_is_no_vocabulary_is_named(content: bytes) -> None:
    with pytest.raises(
        CheckpointError, match=r"there is no vocabulary or a damaged one|there is 'bytelm bpe"
    ) as caught:
        read_vocabulary("bpe:340", content, "there")
    assert "\n" not in str(caught.value)


def test_a_merge_of_what_is_not_there_yet_is_refused(vocabulary: BPEVocab) -> None:
    content = saved_form(vocabulary).replace(b"[[", b"[[339,97],[", 1).replace(b"bpe:340", b"bpe:341")
    with pytest.raises(CheckpointError, match="a merge of an id that is not there yet"):
        read_vocabulary("bpe:341", content, "there")


def test_nothing_to_learn_from_is_one_line() -> None:
    with pytest.raises(CorpusError, match="no byte to learn a vocabulary from"):
        train_bpe([b""], "bpe:340")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'bytelm\[bpe\]'"):
        train_bpe([TEXT], "bpe:340")


def test_names_of_vocabularies() -> None:
    assert [ids_of(name) for name in ("bytes", "bpe:1k", "bpe:32k", "bpe:700")] == [257, 1024, 32768, 700]
    for wrong in ("bpe", "bpe:", "bpe:257", "bpe:1000000", "words", "bpe:4m"):
        with pytest.raises(ConfigError, match="there is no vocabulary"):
            ids_of(wrong)


def test_places_of_splits_do_not_depend_on_what_stands_around(vocabulary: BPEVocab) -> None:
    whole = vocabulary.encode(TEXT).tolist()
    ends = np.cumsum(vocabulary.sizes[whole])
    places = split_places(TEXT)
    assert len(places) > 200
    assert set(places) <= set(ends.tolist())
    for start, stop in itertools.pairwise(places[::7]):
        found = vocabulary.encode(TEXT[start:stop]).tolist()
        first, last = np.searchsorted(ends, [start, stop])
        assert whole[first + 1 : last + 1] == found


# Windows


AHEAD = 40
WINDOW = 64


def windows_of(documents: list[bytes]) -> Iterator[tuple[bytes, list[int]]]:
    """Windows of documents put side by side, each with the places at which documents begin."""
    data = b"".join(documents)
    starts = np.cumsum([0, *map(len, documents)]).tolist()
    for start in range(0, len(data) - WINDOW - AHEAD + 1, WINDOW):
        yield (
            data[start : start + WINDOW + AHEAD],
            [place - start for place in starts if 0 <= place - start < WINDOW + AHEAD],
        )


def packed(
    vocabulary: BPEVocab, rows: list[tuple[bytes, list[int]]], *, heads: int = 1, starts: bool = True
) -> PackedBatch:
    windows_BW = torch.tensor([list(data) for data, _ in rows], dtype=torch.uint8)
    marks = [(row, place) for row, (_, places) in enumerate(rows) for place in places]
    return pack_tokens(
        windows_BW,
        np.array([row for row, _ in marks], np.int64),
        np.array([place for _, place in marks], np.int64),
        np.full(len(marks), starts),
        np.full(len(marks), starts),
        None,
        vocabulary=vocabulary,
        window_bytes=WINDOW,
        prediction_heads=heads,
    )


def test_windows_hold_every_id_of_every_document_once(vocabulary: BPEVocab) -> None:
    documents = [TEXT[start : start + 333] for start in range(0, 3330, 333)]
    rows = list(windows_of(documents))
    batch = packed(vocabulary, rows)
    learnt = [
        identifier
        for inputs, valid in zip(batch.inputs_BT.tolist(), batch.valid_BTK.squeeze(2).tolist(), strict=True)
        for identifier, counts in zip(inputs, valid, strict=True)
        if counts
    ]
    expected = [identifier for document in documents for identifier in [EOD, *vocabulary.encode(document).tolist()]]
    assert learnt == expected[: len(learnt)]
    assert len(vocabulary.decode(learnt)) >= (len(rows) - 1) * WINDOW
    assert (batch.targets_BTK[..., 0][batch.valid_BTK[..., 0]]).tolist() == expected[1 : len(learnt) + 1]


@pytest.mark.parametrize("count", [1, 4, 12])
def test_a_batch_computes_a_place_for_each_id_and_fewer_than_eight_others(vocabulary: BPEVocab, count: int) -> None:
    rows = list(windows_of([TEXT]))[:count]
    assert len(rows) == count
    batch = packed(vocabulary, rows)
    ids = int(batch.valid_BTK[..., 0].sum())
    expected = [EOD, *vocabulary.encode(TEXT).tolist()]
    assert batch.inputs_BT[0, :ids].tolist() == expected[:ids]
    assert (count - 1) * WINDOW <= len(vocabulary.decode(expected[:ids])) <= (count + 1) * WINDOW
    assert 0 <= batch.inputs_BT.numel() - ids < 8


def test_no_target_crosses_a_boundary_and_every_head_sees_its_own_document(vocabulary: BPEVocab) -> None:
    row = (
        b"alpha beta gamma " + b"one two three four five six seven eight nine ten eleven twelve thirteen fourteen " * 2
    )
    batch = packed(vocabulary, [(row[: WINDOW + AHEAD], [17])], heads=3)
    assert batch.documents_BT is not None
    ids, documents = batch.inputs_BT[0].tolist(), batch.documents_BT[0].tolist()
    boundary = ids.index(EOD)
    assert documents[boundary - 1] + 1 == documents[boundary]
    for head in range(3):
        for place in range(boundary):
            assert bool(batch.valid_BTK[0, place, head]) == (place + 1 + head <= boundary)
    assert batch.targets_BTK[0, boundary - 1, 0] == EOD
    assert batch.targets_BTK[0, boundary, 0] == vocabulary.encode(row[17:])[0]


def test_windows_of_a_batch_are_learnt_from_as_if_each_were_alone(vocabulary: BPEVocab) -> None:
    rows = list(windows_of([TEXT[:200], TEXT[200:230], TEXT[230:900]]))
    torch.manual_seed(0)
    shape = ModelConfig(d_model=32, layers=2, attention_heads=2, kv_heads=1, d_ff=48, vocabulary=vocabulary.name)
    model = ByteLM(shape, HeadsConfig(count=3), vocabulary=vocabulary)
    bits, counts = torch.zeros(2, 3, dtype=torch.float64)
    for row in rows:
        output = multi_byte_loss(model, packed(vocabulary, [row], heads=3))
        bits += output.bits_per_byte_K.double() * output.valid_count_K
        counts += output.valid_count_K
    together = multi_byte_loss(model, packed(vocabulary, rows, heads=3))
    assert together.valid_count_K.tolist() == counts.tolist()
    torch.testing.assert_close(together.bits_per_byte_K.double(), bits / counts, rtol=1e-5, atol=0)


def test_pieces_that_only_stand_side_by_side_get_no_end_of_document(vocabulary: BPEVocab) -> None:
    row = (b"alpha beta gamma " * 10)[: WINDOW + AHEAD]
    batch = packed(vocabulary, [(row, [17])], starts=False)
    assert EOD not in batch.inputs_BT[batch.valid_BTK[..., 0]]
    assert batch.documents_BT is not None
    before = int((batch.documents_BT[0] == 0).sum())
    assert not batch.valid_BTK[0, before - 1].any()


def test_bytes_without_a_split_are_cut_at_the_window(vocabulary: BPEVocab) -> None:
    row = b"A" * (WINDOW + AHEAD)
    batch = packed(vocabulary, [(row, [])])
    assert batch.documents_BT is None
    inputs = batch.inputs_BT[0][: int(batch.valid_BTK[0, :, 0].sum()) + 1]
    assert WINDOW - 8 <= vocabulary.sizes[inputs].sum() <= WINDOW + 8
