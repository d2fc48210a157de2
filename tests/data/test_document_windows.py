"""Windows of documents: against a slow twin, and by the rule that every id is an input once and every byte a target."""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.batches import WindowBatch
from bytelm.data.document_windows import DocumentWindows, best_fit
from bytelm.data.frames import Frames
from bytelm.data.loader import WindowLoader
from bytelm.data.shards import Corpus, Piece
from bytelm.errors import ShardError
from bytelm.packing import pack
from bytelm.vocab import EOD

MakeCorpus = Callable[..., Corpus]
T, K = 32, 3

Window = tuple[bytes, list[tuple[int, bool, bool]]]
"""The data of a window, and its boundaries: offset, whether a document begins there, whether one ends before it."""


def naive_windows(pieces: list[Piece], shard_bytes: list[int], span_bytes: int) -> list[list[Window]]:
    """The windows of every span, by the words of the rule."""
    units: dict[tuple[int, int], list[tuple[bytes, bool, bool, bool]]] = {}
    ends = list(itertools.accumulate(shard_bytes))
    place = 0
    for piece in pieces:
        shard = next(number for number, end in enumerate(ends) if place < end)
        begin = place - (ends[shard] - shard_bytes[shard])
        ids = [None, *range(len(piece.data))] if piece.starts else [*range(len(piece.data))]
        for first in range(0, len(ids), T):
            fills = len(ids) - first >= T
            shown = [one for one in ids[first : first + (T + K if fills else T)] if one is not None]
            data = bytes(piece.data[one] for one in shown)
            units.setdefault((shard, (begin + shown[0]) // span_bytes), []).append(
                (data, ids[first] is None, piece.ends and shown[-1] == len(piece.data) - 1, fills)
            )
        place += len(piece.data)
    spans = []
    for shard, raw_bytes in enumerate(shard_bytes):
        for number in range(-(-raw_bytes // span_bytes)):
            mine = units.get((shard, number), [])
            sharing = [unit for unit in mine if not unit[3]]
            rows = [[unit] for unit in mine if unit[3]]
            rows += [[sharing[one] for one in row] for row in naive_best_fit([len(unit[0]) + 1 for unit in sharing], T)]
            spans.append([window_of(row) for row in rows])
    return spans


def naive_best_fit(costs: list[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    for item in sorted(range(len(costs)), key=lambda one: (-costs[one], one)):
        fits = [one for one in bins if sum(costs[other] for other in one) + costs[item] <= capacity]
        if fits:
            min(fits, key=lambda one: capacity - sum(costs[other] for other in one)).append(item)
        else:
            bins.append([item])
    return bins


def window_of(row: list[tuple[bytes, bool, bool, bool]]) -> Window:
    data, marks, ended = b"", [], False
    for part, starts, ends, _ in row:
        if data or starts:
            marks.append((len(data), starts, ended))
        data += part
        ended = ends
    if ended and len(data) < T + K:
        marks.append((len(data), False, True))
    return data, marks


def windows_in(batch: WindowBatch) -> list[Window]:
    assert batch.data_bytes_B is not None
    marks = list(
        zip(
            batch.rows_N.tolist(),
            batch.offsets_N.tolist(),
            batch.document_start_N.tolist(),
            batch.document_end_N.tolist(),
            strict=True,
        )
    )
    return [
        (bytes(window.tolist()[:data]), [(offset, start, end) for at, offset, start, end in marks if at == row])
        for row, (window, data) in enumerate(zip(batch.windows_BW, batch.data_bytes_B.tolist(), strict=True))
    ]


def loader_of(corpus: Corpus, **changes: Any) -> WindowLoader:
    defaults: dict[str, Any] = {"window_bytes": T, "prediction_heads": K, "batch_windows": 5, "seed": 3}
    return WindowLoader(corpus, **{**defaults, "packing": "document", **changes})


def take(loader: WindowLoader, windows: int) -> list[Window]:
    found: list[Window] = []
    while len(found) < windows:
        found += windows_in(next(loader))
    return found[:windows]


@pytest.fixture
def corpus(make_corpus: MakeCorpus) -> Corpus:
    """Short, long and cut documents in several shards; some have lengths of just a window, or one more or less."""
    chance = random.Random(11)
    lengths = [1, 2, T - 3, T - 2, T - 1, T, T + 1, 2 * T - 1, 2 * T, T + K, T + K - 1, 3 * T + 5, 900, 5000]
    documents = [chance.randbytes(chance.choice(lengths)) for _ in range(70)]
    corpus = make_corpus(documents, validation_fraction=0.1, shard_bytes=4000)
    assert len(corpus.shards("train")) > 2
    assert any(not piece.starts for piece in corpus.pieces("train"))
    assert any(not piece.ends for piece in corpus.pieces("train"))
    return corpus


@pytest.fixture(params=[600, 1 << 20], ids=["many spans", "one span a shard"])
def span_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How large spans are."""
    defaults = {**(DocumentWindows.__init__.__kwdefaults__ or {}), "span_bytes": request.param}
    monkeypatch.setattr(DocumentWindows.__init__, "__kwdefaults__", defaults)
    return max(-(-max(request.param, 32 * (T + K)) // 512) * 512, 512)


def test_windows_are_those_of_the_slow_twin_in_every_epoch(corpus: Corpus, span_bytes: int) -> None:
    shards = [shard.raw_bytes for shard in corpus.shards("train")]
    spans = naive_windows(list(corpus.pieces("train")), shards, span_bytes)
    expected = sorted(window for span in spans for window in span)
    with loader_of(corpus, batch_windows=1) as loader:
        assert loader.windows_per_epoch == len(expected)
        epochs = [take(loader, len(expected)) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_every_id_is_an_input_once_and_every_byte_and_end_a_target(corpus: Corpus, span_bytes: int) -> None:
    del span_bytes
    inputs: Counter[int] = Counter()
    targets = [Counter[int]() for _ in range(K)]
    with loader_of(corpus, batch_windows=1) as loader:
        for _ in range(loader.windows_per_epoch):
            batch = next(loader)
            packed = pack(
                batch.windows_BW,
                batch.rows_N,
                batch.offsets_N,
                batch.document_start_N,
                batch.document_end_N,
                batch.data_bytes_B,
                prediction_heads=K,
            )
            learnt = packed.valid_BTK.any(2)
            inputs.update(packed.inputs_BT[learnt].tolist())
            for head in range(K):
                targets[head].update(packed.targets_BTK[..., head][packed.valid_BTK[..., head]].tolist())
    expected_inputs: Counter[int] = Counter()
    expected = [Counter[int]() for _ in range(K)]
    for piece in corpus.pieces("train"):
        ids = [*([EOD] if piece.starts else []), *piece.data]
        with_end = [*ids, *([EOD] if piece.ends else [])]
        expected_inputs.update(ids if piece.ends else ids[:-1])  # the last byte of a cut piece has no target
        for head in range(K):
            expected[head].update(with_end[1 + head :])
    assert inputs == expected_inputs
    assert targets == expected


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 40), st.data())
def test_bins_are_filled_as_the_slow_twin_fills_them(capacity: int, data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(2, capacity), max_size=40))
    bins = best_fit(costs, capacity)
    assert sorted(item for one in bins for item in one) == list(range(len(costs)))
    assert all(sum(costs[item] for item in one) <= capacity for one in bins)
    slow = naive_best_fit(costs, capacity)
    assert sorted(map(sorted, bins)) == sorted(map(sorted, slow)) or len(bins) == len(slow)


def test_windows_begin_with_documents_and_little_stays_empty(make_corpus: MakeCorpus) -> None:
    chance = random.Random(1)
    documents = [chance.randbytes(int(chance.lognormvariate(6, 1.2)) + 1) for _ in range(600)]
    corpus = make_corpus(documents, frame_bytes=64 << 10)
    with WindowLoader(
        corpus, window_bytes=2048, prediction_heads=4, batch_windows=1, seed=0, packing="document"
    ) as loader:
        batches = [next(loader) for _ in range(loader.windows_per_epoch)]
    data = sum(int(batch.data_bytes_B[0]) for batch in batches if batch.data_bytes_B is not None)
    assert data / (2048 * len(batches)) > 0.95
    short = [document for document in documents if len(document) < 2047]
    held = Counter()
    for batch in batches:
        row, marks = batch.windows_BW[0].numpy().tobytes(), [*batch.offsets_N.tolist(), None]
        for begin, end, starts in zip(marks, marks[1:], batch.document_start_N.tolist(), strict=False):
            held[row[begin:end]] += starts
    assert all(held[document] == short.count(document) for document in short), "no short document is cut"


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_the_ranks_together_read_what_one_process_reads(corpus: Corpus, span_bytes: int, ranks: int) -> None:
    del span_bytes
    with loader_of(corpus) as loader:
        count = loader.windows_per_epoch * 3 // 2 // (5 * ranks) * 5 * ranks
        expected = take(loader, count)
    by_rank = []
    for rank in range(ranks):
        with loader_of(corpus, rank=rank, ranks=ranks, threads=2) as loader:
            by_rank.append(take(loader, count // ranks))
    assert [by_rank[window % ranks][window // ranks] for window in range(count)] == expected


def test_resuming_goes_on_where_it_stopped_and_not_with_the_other_policy(corpus: Corpus, span_bytes: int) -> None:
    del span_bytes
    with loader_of(corpus) as loader:
        whole = take(loader, 400)
    with loader_of(corpus) as loader:
        take(loader, 100)
        state = loader.state_dict()
    with loader_of(corpus, batch_windows=9, threads=2) as loader:
        loader.load_state_dict(state)
        assert take(loader, 300) == whole[100:]
    with (
        loader_of(corpus, packing="stream") as loader,
        pytest.raises(Exception, match="belongs to packing = document, found stream"),
    ):
        loader.load_state_dict(state)


def test_windows_that_are_longer_than_a_document_and_a_corpus_of_one_byte(make_corpus: MakeCorpus) -> None:
    with loader_of(make_corpus([b"x"]), batch_windows=2) as loader:
        assert loader.windows_per_epoch == 1
        assert take(loader, 1) == [(b"x", [(0, True, False), (1, False, True)])]


def test_a_document_longer_than_many_spans_is_cut_every_t_ids(make_corpus: MakeCorpus) -> None:
    document = random.Random(2).randbytes(20_000)
    corpus = make_corpus([document], shard_bytes=10**6)
    windows = DocumentWindows(Frames(corpus, "train"), seed=0, window_bytes=T, prediction_heads=K, span_bytes=1)
    assert windows.groups > 10
    assert windows.windows_per_epoch == -(-20_001 // T)


def test_damage_is_raised_before_its_bytes_come(corpus: Corpus, span_bytes: int) -> None:
    del span_bytes
    with loader_of(corpus) as loader:
        whole = take(loader, loader.windows_per_epoch)
    shard = corpus.shards("train")[1]
    content = bytearray((corpus.path / shard.name).read_bytes())
    content[len(content) // 4] ^= 1
    (corpus.path / shard.name).write_bytes(content)
    with loader_of(corpus) as loader:
        good: list[Window] = []
        with pytest.raises(ShardError, match=rf"{shard.name}: frame \d+ .* is damaged"):
            while len(good) < len(whole):
                good += windows_in(next(loader))
        assert good == whole[: len(good)]
    content[len(content) // 4] ^= 1
    table = len(content) - 17 - 8 * (-(-shard.raw_bytes // 512) + 2) - 8
    content[table] ^= 1
    (corpus.path / shard.name).write_bytes(content)
    with pytest.raises(ShardError, match="the piece table of frame"):
        loader_of(corpus)


def test_what_is_no_data_is_the_same_for_everyone(corpus: Corpus) -> None:
    batches = []
    for rank in range(2):
        with loader_of(corpus, batch_windows=7 - 2 * rank) as loader:
            batches.append(torch.cat([next(loader).windows_BW for _ in range(35)])[: 5 * 30])
    assert torch.equal(*batches)
    assert batches[0].dtype == torch.uint8
    assert np.all(np.array(batches[0].shape) == (150, T + K))
