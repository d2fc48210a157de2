"""The loader against its slow twin: every window and every boundary, for any ranks, threads, batches and restarts."""

import itertools
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bytelm.data.loader import WindowBatch, WindowLoader
from bytelm.data.order import WindowOrder
from bytelm.data.shards import Corpus
from bytelm.data.window_pool import WindowPool
from bytelm.errors import CorpusError, ShardError

MakeCorpus = Callable[..., Corpus]
T, K = 48, 4

Window = tuple[bytes, list[tuple[int, bool, bool]]]
"""Raw bytes of a window, and its boundaries: offset, whether a document begins there, whether one ends before it."""


@dataclass(frozen=True)
class RawByte:
    """One byte of a split and what the piece table says about its place."""

    value: int
    first_of_piece: bool
    first_of_document: bool
    last_of_document: bool


def naive_windows(corpus: Corpus, seed: int, split: str = "train") -> Iterator[Window]:
    """The specification: byte by byte, one window at a time, everything in memory."""
    stream = [
        RawByte(
            value,
            first_of_piece=place == 0,
            first_of_document=place == 0 and piece.starts,
            last_of_document=place == len(piece.data) - 1 and piece.ends,
        )
        for piece in corpus.pieces(split)
        for place, value in enumerate(piece.data)
    ]
    sizes = [shard.raw_bytes for shard in corpus.shards(split)]
    shards = [stream[end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    order = WindowOrder(
        np.array(sizes),
        frame_bytes=corpus.frame_bytes,
        fingerprint=f"{corpus.fingerprint}:{split}",
        seed=seed,
        window_bytes=T,
        prediction_heads=K,
    )
    for epoch in itertools.count():
        at = order.epoch(epoch)
        places = at.places(np.arange(order.windows_per_epoch))
        for number, place in zip(places.groups_N.tolist(), places.indices_N.tolist(), strict=True):
            group = at.group(number)
            joined = [
                (offset == 0, byte)
                for run in group.runs
                for offset, byte in enumerate(shards[run.shard][run.first_frame * corpus.frame_bytes :][: run.bytes])
            ]
            start = int(group.starts_N[place])
            window = joined[start : start + T + K]
            boundaries = []
            for offset, (joins, byte) in enumerate(window):
                if joins or byte.first_of_piece:
                    ended = offset > 0 and window[offset - 1][1].last_of_document
                    boundaries.append((offset, byte.first_of_document, ended))
            yield bytes(byte.value for _, byte in window), boundaries


def windows_in(batch: WindowBatch) -> list[Window]:
    assert batch.windows_BW.dtype == torch.uint8
    assert batch.windows_BW.is_contiguous()
    assert batch.rows_N.dtype == batch.offsets_N.dtype == np.int64
    assert batch.document_start_N.dtype == batch.document_end_N.dtype == np.bool_
    assert batch.data_bytes_B is None
    assert batch.corpora_B.tolist() == [0] * len(batch.windows_BW)
    places = list(zip(batch.rows_N.tolist(), batch.offsets_N.tolist(), strict=True))
    assert places == sorted(set(places))
    flags = list(zip(batch.document_start_N.tolist(), batch.document_end_N.tolist(), strict=True))
    return [
        (
            bytes(row.tolist()),
            [(offset, *flag) for (at, offset), flag in zip(places, flags, strict=True) if at == number],
        )
        for number, row in enumerate(batch.windows_BW)
    ]


def loader_of(corpus: Corpus, **words: Any) -> WindowLoader:
    defaults: dict[str, Any] = {"window_bytes": T, "prediction_heads": K, "batch_windows": 5, "seed": 3}
    return WindowLoader(corpus, **{**defaults, **words})


def take(loader: WindowLoader, windows: int) -> list[Window]:
    found: list[Window] = []
    while len(found) < windows:
        found += windows_in(next(loader))
    return found[:windows]


@pytest.fixture
def corpus(make_corpus: MakeCorpus) -> Corpus:
    """Short, long and cut documents in several shards of small frames."""
    chance = random.Random(11)
    documents = [bytes(chance.choices(b"abcdefgh\n", k=chance.choice([1, 3, 40, 200, 700, 2000]))) for _ in range(60)]
    corpus = make_corpus(documents, validation_fraction=0.1, shard_bytes=4000)
    assert len(corpus.shards("train")) > 2
    assert any(not piece.starts for piece in corpus.pieces("train"))
    return corpus


@pytest.fixture
def naive(corpus: Corpus) -> list[Window]:
    """As many windows of the slow twin as any test wants."""
    return list(itertools.islice(naive_windows(corpus, seed=3), 2000))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_windows", [1, 7, 300])
def test_batches_are_those_of_the_naive_reference_over_epochs(corpus: Corpus, batch_windows: int, threads: int) -> None:
    with loader_of(corpus, batch_windows=batch_windows, threads=threads) as loader:
        count = 2 * loader.windows_per_epoch + 10
        expected = list(itertools.islice(naive_windows(corpus, seed=3), count))
        assert take(loader, count) == expected
    kinds = {tuple(flags) for _, boundaries in expected for _, *flags in boundaries}
    assert len(kinds) == 4, "the corpus shows documents that begin and end, only begin, only end, and joins"


def test_the_validation_split_has_an_order_of_its_own(corpus: Corpus) -> None:
    with WindowLoader(
        corpus, split="validation", window_bytes=T, prediction_heads=K, batch_windows=4, seed=3
    ) as loader:
        assert take(loader, 50) == list(itertools.islice(naive_windows(corpus, 3, "validation"), 50))


def test_a_batch_tells_its_window_and_epoch(corpus: Corpus) -> None:
    with loader_of(corpus, rank=1, ranks=3) as loader:
        per_epoch = loader.windows_per_epoch
        for step in range(2 * per_epoch // 15 + 2):
            batch = next(loader)
            assert batch.first_window == 15 * step + 1
            assert batch.epoch == batch.first_window // per_epoch


@pytest.mark.parametrize("ranks", [1, 3])
def test_batches_end_where_they_are_told_to_and_nothing_behind_that_is_decoded(
    corpus: Corpus, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = WindowPool._decode

    def counting(self: WindowPool, work: Any, keys: list[int]) -> None:
        decoded.extend(keys)
        decode(self, work, keys)

    monkeypatch.setattr(WindowPool, "_decode", counting)
    with loader_of(corpus) as loader:
        per_epoch = loader.windows_per_epoch
    end = per_epoch // (5 * ranks) * 5 * ranks
    with loader_of(corpus, rank=ranks - 1, ranks=ranks, end_window=end) as loader:
        found = [window for batch in loader for window in windows_in(batch)]
        assert len(found) == end // ranks
        assert next(loader, None) is None
        assert loader.state_dict()["window"] == end
    expected = itertools.islice(naive_windows(corpus, seed=3), end)
    assert found == list(expected)[ranks - 1 :: ranks]
    assert len(decoded) == len(set(decoded)), "each group once"
    groups = WindowOrder(
        np.array([shard.raw_bytes for shard in corpus.shards("train")]),
        frame_bytes=corpus.frame_bytes,
        fingerprint=f"{corpus.fingerprint}:train",
        seed=3,
        window_bytes=T,
        prediction_heads=K,
    ).groups
    assert set(decoded) <= set(range(groups)), "none of the second epoch"


def test_an_end_within_a_batch_ends_behind_that_batch(corpus: Corpus) -> None:
    with loader_of(corpus, end_window=11) as loader:
        assert [batch.first_window for batch in loader] == [0, 5, 10]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_the_ranks_together_read_what_one_process_reads(corpus: Corpus, ranks: int) -> None:
    with loader_of(corpus) as loader:
        count = loader.windows_per_epoch * 3 // 2 // (5 * ranks) * 5 * ranks
        expected = take(loader, count)
    by_rank = []
    for rank in range(ranks):
        with loader_of(corpus, rank=rank, ranks=ranks) as loader:
            by_rank.append(take(loader, count // ranks))
    assert [by_rank[window % ranks][window // ranks] for window in range(count)] == expected


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_chunk_of_windows_is_that_of_the_naive_reference(
    corpus: Corpus, naive: list[Window], data: st.DataObject
) -> None:
    ranks = data.draw(st.sampled_from([1, 2, 3, 7]))
    rank = data.draw(st.integers(0, ranks - 1))
    begin, count = data.draw(st.integers(0, 1500)), data.draw(st.integers(1, 60))
    batch_windows, threads = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 3))
    with loader_of(corpus, rank=rank, ranks=ranks, batch_windows=batch_windows, threads=threads) as loader:
        loader.load_state_dict({**loader.state_dict(), "window": begin})
        found = take(loader, count)
    first = begin + (rank - begin) % ranks
    assert found == naive[first : first + count * ranks : ranks]


@pytest.mark.parametrize("stop_after", [0, 1, 13, 40])
def test_resuming_goes_on_where_it_stopped(corpus: Corpus, stop_after: int) -> None:
    with loader_of(corpus) as loader:
        whole = take(loader, 5 * (stop_after + 60))
    with loader_of(corpus) as loader:
        take(loader, 5 * stop_after)
        state = loader.state_dict()
        assert state["window"] == 5 * stop_after
    with loader_of(corpus, threads=2) as loader:
        next(loader)
        loader.load_state_dict(state)
        assert take(loader, 5 * 60) == whole[5 * stop_after :]


def test_a_run_goes_on_with_another_number_of_ranks_and_another_batch_size(corpus: Corpus) -> None:
    with loader_of(corpus) as loader:
        whole = take(loader, 200)
    with loader_of(corpus, rank=0, ranks=3) as loader:
        next(loader)
        next(loader)
        state = loader.state_dict()
    assert state["window"] == 30
    found: dict[int, Window] = {}
    for rank in range(4):
        with loader_of(corpus, rank=rank, ranks=4, batch_windows=3) as loader:
            loader.load_state_dict(state)
            for _ in range(5):
                batch = next(loader)
                for row, window in enumerate(windows_in(batch)):
                    found[batch.first_window + 4 * row] = window
    assert [found[window] for window in sorted(found)] == whole[30:90]
    assert sorted(found) == list(range(30, 90))


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 4), ("window_bytes", 49), ("prediction_heads", 5), ("fingerprint", "0"), ("order", 0)]
)
def test_a_state_of_something_else_is_refused(corpus: Corpus, name: str, value: int | str) -> None:
    with loader_of(corpus) as loader:
        next(loader)
        state = loader.state_dict()
        with pytest.raises(CorpusError, match=f"belongs to {name} = {value}, found {state[name]}; resume with"):
            loader.load_state_dict({**state, name: value})
        assert loader.state_dict() == state


def test_batches_that_were_given_are_not_written_to_again(corpus: Corpus) -> None:
    with loader_of(corpus) as loader:
        batches = [next(loader) for _ in range(100)]
        copies = [batch.windows_BW.clone() for batch in batches]
        for _ in range(200):
            next(loader)
    assert all(torch.equal(batch.windows_BW, copy) for batch, copy in zip(batches, copies, strict=True))


def test_600_bytes_are_one_window_of_512_and_8(make_corpus: MakeCorpus) -> None:
    document = random.Random(0).randbytes(600)
    corpus = make_corpus([document])
    with WindowLoader(corpus, window_bytes=512, prediction_heads=8, batch_windows=3, seed=0) as loader:
        assert loader.windows_per_epoch == 1
        batch = next(loader)
        assert batch.epoch == 0
        assert all(bytes(row.tolist()) in document for row in batch.windows_BW)
        assert next(loader).epoch == 3


def test_a_corpus_shorter_than_one_window_says_what_it_has_and_what_is_needed(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([b"x" * 300, b"y" * 219])
    with pytest.raises(
        CorpusError, match=r"has 519 bytes, and one window needs 512 \+ 8; lower data\.window_bytes, or ingest more"
    ):
        WindowLoader(corpus, window_bytes=512, prediction_heads=8, batch_windows=1, seed=0)


def test_a_split_that_is_missing_is_refused(make_corpus: MakeCorpus) -> None:
    with pytest.raises(CorpusError, match="no 'validation' split"):
        WindowLoader(
            make_corpus([b"x" * 999]), split="validation", window_bytes=T, prediction_heads=K, batch_windows=1, seed=0
        )


def test_damage_is_raised_before_its_bytes_come_and_the_state_stays(corpus: Corpus) -> None:
    with loader_of(corpus) as loader:
        whole = take(loader, 5 * (loader.windows_per_epoch // 5))
    shard = corpus.shards("train")[1]
    place = corpus.path / shard.name
    content = bytearray(place.read_bytes())
    content[len(content) // 4] ^= 1
    place.write_bytes(content)
    with loader_of(corpus, threads=2) as loader:
        good: list[Window] = []
        with pytest.raises(ShardError, match=rf"{shard.name}: frame \d+ \(bytes \d+-\d+\) is damaged; ingest"):
            while len(good) < loader.windows_per_epoch:
                good += windows_in(next(loader))
        assert good == whole[: len(good)]
        assert loader.state_dict()["window"] == len(good)
        with pytest.raises(ShardError):
            next(loader)
        assert loader.state_dict()["window"] == len(good)


@pytest.mark.parametrize("packing", ["stream", "document"])
def test_damage_is_replaced_on_request_by_the_same_windows_for_everyone_and_counted(
    make_corpus: MakeCorpus, packing: str
) -> None:
    chance = random.Random(3)
    documents = [chance.randbytes(chance.choice([50, 700, 3000])) for _ in range(90)]
    corpus = make_corpus(documents, shard_bytes=9000)
    assert len(corpus.shards("train")) > 8
    with loader_of(corpus, packing=packing) as loader:
        count = loader.windows_per_epoch
        whole = [bytes(row.tolist()) for _ in range(count) for row in next(loader).windows_BW][: 5 * count]
    wrong = corpus.path / corpus.shards("train")[2].name
    content = bytearray(wrong.read_bytes())
    content[40] ^= 1
    wrong.write_bytes(content)
    found: dict[int, bytes] = {}
    counts = set()
    for ranks, threads in ((1, 1), (1, 3), (3, 2)):
        replaced = 0
        for rank in range(ranks):
            with loader_of(
                corpus, packing=packing, rank=rank, ranks=ranks, threads=threads, on_damage="replace"
            ) as loader:
                for _ in range(count // 15 * 3 // ranks):
                    batch = next(loader)
                    for row, window in enumerate(batch.windows_BW):
                        number = batch.first_window + ranks * row
                        assert found.setdefault(number, bytes(window.tolist())) == bytes(window.tolist())
                replaced += loader.replaced_windows
                assert all("is damaged" in line for line in loader.damage)
                assert loader.damage
        counts.add(replaced)
    others = [number for number, window in found.items() if window != whole[number]]
    assert len(counts) == 1
    assert 0 < len(others) <= counts.pop() < count
    assert {found[number] for number in others} <= set(whole)


def test_a_missing_shard_is_replaced_on_request(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([random.Random(number).randbytes(900) for number in range(60)], shard_bytes=4000)
    (corpus.path / corpus.shards("train")[1].name).unlink()
    with loader_of(corpus, on_damage="replace") as loader:
        windows = take(loader, loader.windows_per_epoch)
        assert len(windows) == loader.windows_per_epoch
        assert 0 < loader.replaced_windows < loader.windows_per_epoch
        assert len(loader.damage) == 1
        assert "is missing" in loader.damage[0]


def test_where_nothing_is_sound_nothing_is_replaced(corpus: Corpus) -> None:
    for shard in corpus.shards("train"):
        (corpus.path / shard.name).unlink()
    with loader_of(corpus, on_damage="replace") as loader, pytest.raises(ShardError, match="is missing"):
        next(loader)


def test_a_shard_that_goes_missing_is_named(corpus: Corpus) -> None:
    (corpus.path / corpus.shards("train")[0].name).unlink()
    with loader_of(corpus) as loader, pytest.raises(ShardError, match="is missing; restore it"):
        take(loader, loader.windows_per_epoch)


def test_memory_does_not_grow_from_epoch_to_epoch(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([random.Random(0).randbytes(1_500_000)], frame_bytes=16 << 10)
    with WindowLoader(corpus, window_bytes=504, prediction_heads=8, batch_windows=64, seed=0) as loader:
        steps = loader.windows_per_epoch // 64
        tracemalloc.start()
        for _ in range(3 * steps):
            next(loader)
        _, first_peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(12 * steps):
            next(loader)
        _, later_peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert later_peak < 1.3 * first_peak


def test_a_closed_loader_has_no_threads_left(corpus: Corpus) -> None:
    before = threading.active_count()
    loader = loader_of(corpus, threads=3)
    next(loader)
    assert threading.active_count() > before
    loader.close()
    assert threading.active_count() == before
