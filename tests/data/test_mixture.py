"""Windows out of several corpora: each in its own order, the corpus of each by schedule, exact in every way to stop."""

import json
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from bytelm.data.batches import WindowBatch
from bytelm.data.mixture import MixtureLoader
from bytelm.data.schedule import Schedule
from bytelm.data.shards import Corpus
from bytelm.errors import ConfigError, CorpusError, ShardError

MakeCorpus = Callable[..., Corpus]
T, K = 40, 4
WEIGHTS = ("0.5", "0.2", "0.3")

Row = tuple[int, bytes, list[tuple[int, bool, bool]]]
"""Corpus, bytes and boundaries of a window."""


@pytest.fixture
def corpora(make_corpus: MakeCorpus) -> list[Corpus]:
    """Three, of different sizes; the bytes tell which one they come from."""
    chance = random.Random(5)
    return [
        make_corpus(
            [bytes(chance.choices(letters, k=chance.randrange(1, 300))) for _ in range(count)], shard_bytes=2500
        )
        for letters, count in ((b"abcd\n", 160), (b"EFG", 9), (b"0123456", 25))
    ]


def mixture_of(corpora: list[Corpus], **settings: Any) -> MixtureLoader:
    defaults: dict[str, Any] = {"window_bytes": T, "prediction_heads": K, "batch_windows": 6, "seed": 2}
    weights = settings.pop("weights", WEIGHTS)
    return MixtureLoader(corpora, weights, **{**defaults, **settings})


def rows_in(batch: WindowBatch) -> list[Row]:
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
        (corpus, bytes(window.tolist()), [(offset, start, end) for at, offset, start, end in marks if at == row])
        for row, (corpus, window) in enumerate(zip(batch.corpora_B.tolist(), batch.windows_BW, strict=True))
    ]


def take(loader: MixtureLoader, windows: int) -> list[Row]:
    found: list[Row] = []
    while len(found) < windows:
        found += rows_in(next(loader))
    return found[:windows]


def test_each_corpus_gives_its_own_windows_in_its_own_order(corpora: list[Corpus]) -> None:
    with mixture_of(corpora) as loader:
        found = take(loader, 900)
        assert loader.state_dict()["positions"] == [450, 180, 270]
        assert [one < 450 for one in loader.windows_per_epoch] == [False, True, True], "some begin anew, one does not"
    order = [corpus for corpus, _, _ in found]
    assert order == Schedule([(0, WEIGHTS)]).corpora(np.arange(900))[0].tolist()
    for number in range(3):
        mine = [(window, marks) for source, window, marks in found if source == number]
        # One corpus in a mixture alone has the same order: that of as many lanes.
        with mixture_of(corpora, weights=[str(int(one == number)) for one in range(3)]) as loader:
            assert [(window, marks) for _, window, marks in take(loader, len(mine))] == mine


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_the_ranks_together_read_what_one_process_reads(corpora: list[Corpus], ranks: int) -> None:
    count = 420 // (6 * ranks) * 6 * ranks
    with mixture_of(corpora) as loader:
        expected = take(loader, count)
    by_rank = []
    for rank in range(ranks):
        with mixture_of(corpora, rank=rank, ranks=ranks, threads=2) as loader:
            by_rank.append(take(loader, count // ranks))
    assert [by_rank[window % ranks][window // ranks] for window in range(count)] == expected


@pytest.mark.parametrize("batch_windows", [1, 5, 200])
def test_batches_and_threads_change_nothing(corpora: list[Corpus], batch_windows: int) -> None:
    with mixture_of(corpora) as loader:
        expected = take(loader, 400)
    with mixture_of(corpora, batch_windows=batch_windows, threads=3) as loader:
        assert take(loader, 400) == expected


def test_resuming_with_other_ranks_goes_on_where_it_stopped(corpora: list[Corpus]) -> None:
    with mixture_of(corpora) as loader:
        whole = take(loader, 300)
    with mixture_of(corpora, rank=1, ranks=3) as loader:
        take(loader, 30)
        state = json.loads(json.dumps(loader.state_dict()))
    assert state["window"] == 90
    assert sum(state["positions"]) == 90
    with mixture_of(corpora, batch_windows=7, weights=("1", "1", "1")) as loader:
        loader.load_state_dict(state)
        assert loader.weights == WEIGHTS
        assert take(loader, 210) == whole[90:]


def test_weights_change_at_a_window_without_loss_or_repeat(corpora: list[Corpus]) -> None:
    with mixture_of(corpora) as loader:
        before = take(loader, 60)
        loader.change_weights(("0.1", "0.1", "0.8"))
        after = take(loader, 300)
        state = loader.state_dict()
        rest = take(loader, 120)
    counts = np.bincount([corpus for corpus, _, _ in after], minlength=3)
    assert np.all(np.abs(counts - 300 * np.array([0.1, 0.1, 0.8])) < 1)
    for number in range(3):
        mine = [row for row in (*before, *after, *rest) if row[0] == number]
        with mixture_of(corpora, weights=[str(int(one == number)) for one in range(3)]) as loader:
            assert take(loader, len(mine)) == mine
    with mixture_of(corpora) as loader:
        loader.load_state_dict(json.loads(json.dumps(state)))
        assert loader.weights == ("0.1", "0.1", "0.8")
        assert take(loader, 120) == rest
    # what was planned ahead with the old weights is forgotten, and ranks agree
    found: dict[int, Row] = {}
    for rank in range(2):
        with mixture_of(corpora, rank=rank, ranks=2) as loader:
            for step in range(30):
                if step == 5:
                    loader.change_weights(("0.1", "0.1", "0.8"))
                batch = next(loader)
                found.update((batch.first_window + 2 * row, one) for row, one in enumerate(rows_in(batch)))
    assert [found[window] for window in range(360)] == [*before, *after]


def test_the_same_weights_in_other_words_change_nothing(corpora: list[Corpus]) -> None:
    with mixture_of(corpora) as loader:
        expected = take(loader, 60)
    with mixture_of(corpora, weights=("5", "2", "3")) as loader:
        assert take(loader, 60) == expected
    with mixture_of(corpora, weights=("1/2", "1/5", "3/10")) as loader:
        assert take(loader, 60) == expected


@pytest.mark.parametrize("name", ["fingerprints", "seed", "window_bytes", "lanes", "order"])
def test_a_place_in_another_mixture_is_refused(corpora: list[Corpus], name: str) -> None:
    with mixture_of(corpora) as loader:
        state = loader.state_dict()
        with pytest.raises(CorpusError, match=f"belongs to {name} = x, found .*; resume with"):
            loader.load_state_dict({**state, name: "x"})
        assert loader.state_dict() == state
    with mixture_of([corpora[1], corpora[0], corpora[2]]) as loader, pytest.raises(CorpusError, match="fingerprints"):
        loader.load_state_dict(state)
    with mixture_of(corpora[:2], weights=("1", "1")) as loader, pytest.raises(CorpusError, match="lanes"):
        loader.load_state_dict(state)


def test_a_corpus_given_twice_and_impossible_weights_are_refused(corpora: list[Corpus]) -> None:
    with pytest.raises(CorpusError, match="is given twice; give it once, with the sum of its weights"):
        mixture_of([corpora[0], corpora[1], corpora[0]])
    with pytest.raises(ConfigError, match="none may be below 0"):
        mixture_of(corpora, weights=("1", "-1", "1"))
    with mixture_of(corpora) as loader, pytest.raises(ConfigError, match="2 weights for 3 corpora"):
        loader.change_weights(("1", "1"))


def test_damage_in_one_corpus_stops_before_its_bytes_and_the_state_stays(corpora: list[Corpus]) -> None:
    with mixture_of(corpora) as loader:
        whole = take(loader, 600)
    place = corpora[2].path / corpora[2].shards("train")[0].name
    content = bytearray(place.read_bytes())
    content[60] ^= 4
    place.write_bytes(content)
    with mixture_of(corpora) as loader:
        good: list[Row] = []
        with pytest.raises(ShardError, match="is damaged"):
            while len(good) < 600:
                good += rows_in(next(loader))
        assert good == whole[: len(good)]
        assert loader.state_dict()["window"] == len(good)
        assert sum(loader.state_dict()["positions"]) == len(good)


def test_one_corpus_by_weight_is_off_by_less_than_one_at_any_batch(corpora: list[Corpus]) -> None:
    weights = [Fraction(weight) for weight in WEIGHTS]
    with mixture_of(corpora, batch_windows=1) as loader:
        counts = torch.zeros(3, dtype=torch.int64)
        for n in range(1, 200):
            counts[int(next(loader).corpora_B[0])] += 1
            assert all(abs(count - n * weight) < 1 for count, weight in zip(counts.tolist(), weights, strict=True))
