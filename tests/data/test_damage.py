"""Damage, kills and confusion: what is not as it was written is never given, and nothing is given twice or left out."""

import contextlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bytelm.data.loader import WindowLoader
from bytelm.data.shards import INDEX, Corpus
from bytelm.errors import BytelmError, CorpusError, ShardError
from bytelm.files import write_file

MakeCorpus = Callable[..., Corpus]
T, K, B = 40, 4, 6


def some_documents(count: int = 60) -> list[bytes]:
    chance = random.Random(4)
    return [chance.randbytes(chance.choice([1, 30, 200, 900])) for _ in range(count)]


def loader_of(corpus: Corpus, **changes: Any) -> WindowLoader:
    defaults: dict[str, Any] = {"window_bytes": T, "prediction_heads": K, "batch_windows": B, "seed": 1}
    return WindowLoader(corpus, **{**defaults, **changes})


def read_all(folder: Path) -> tuple[list[bytes], bytes, list[bytes]]:
    """Everything that a corpus gives: pieces, digests, names of files, and the windows of an epoch."""
    corpus = Corpus.open(folder)
    pieces = [repr(piece).encode() for split in corpus.splits for piece in corpus.pieces(split)]
    with loader_of(corpus) as loader:
        batches = [next(loader) for _ in range(loader.windows_per_epoch // B)]
    windows = [repr((batch.windows_BW.tolist(), batch.rows_N, batch.offsets_N)).encode() for batch in batches]
    return pieces, corpus.read_digests() + b"".join(map(corpus.files_of, corpus.files)), windows


def damaged_files(folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Every file that the index names, and the index, with a flipped bit or cut off, one at a time."""
    corpus = Corpus.open(folder)
    names = [
        INDEX,
        *(shard.name for shard in corpus.all_shards),
        *(entry.name for entry in (*corpus.digests, *corpus.files)),
    ]
    chance = random.Random(seed)
    for number in range(count):
        path = folder / names[number % len(names)]
        whole = path.read_bytes()
        if chance.random() < 0.2:
            path.write_bytes(whole[: chance.randrange(len(whole))])
        else:
            place = chance.randrange(len(whole))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        yield path
        path.write_bytes(whole)


def check_damage(make_corpus: MakeCorpus, count: int, seed: int) -> None:
    corpus = make_corpus(some_documents(), validation_fraction=0.1, shard_bytes=5000)
    assert len(corpus.all_shards) > 3
    assert corpus.digests
    read_all(corpus.path)
    for path in damaged_files(corpus.path, count, seed):
        with pytest.raises(CorpusError) as caught:
            read_all(corpus.path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_200_flipped_bits_and_cut_files_are_all_found(make_corpus: MakeCorpus) -> None:
    check_damage(make_corpus, 200, seed=0)


@pytest.mark.slow
def test_2000_flipped_bits_and_cut_files_are_all_found(make_corpus: MakeCorpus) -> None:
    check_damage(make_corpus, 2000, seed=1)


def test_a_shard_that_the_index_does_not_name_is_never_read(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(some_documents(), shard_bytes=5000)
    before = read_all(corpus.path)
    shard = corpus.path / corpus.shards("train")[0].name
    shutil.copy(shard, corpus.path / "train-00077.zst")
    (corpus.path / "train-00078.zst").write_bytes(b"no shard at all")
    (corpus.path / "notes.txt").write_bytes(b"mine")
    assert read_all(corpus.path) == before


@pytest.mark.parametrize("how", ["renamed", "swapped", "foreign", "older", "gone"])
def test_a_shard_that_is_not_the_one_that_the_index_names_is_refused(make_corpus: MakeCorpus, how: str) -> None:
    corpus = make_corpus(some_documents(), shard_bytes=5000)
    one, two = (corpus.path / shard.name for shard in corpus.shards("train")[:2])
    if how == "renamed":
        one.rename(one.with_name("train-00099.zst"))
    elif how == "swapped":
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)
    elif how == "foreign":
        other = make_corpus([b"of another corpus"] * 3)
        shutil.copy(other.path / other.shards("train")[0].name, one)
    elif how == "older":
        content = bytearray(one.read_bytes())
        content[16] = 0
        one.write_bytes(content)
    else:
        one.unlink()
    messages = {
        "renamed": "is missing",
        "gone": "is missing",
        "swapped": "belongs to another corpus or was replaced",
        "foreign": "belongs to another corpus or was replaced",
        "older": "has version 0, this bytelm reads 1",
    }
    with loader_of(corpus) as loader, pytest.raises(ShardError, match=messages[how]):
        for _ in range(loader.windows_per_epoch):
            next(loader)


def test_a_shard_that_is_damaged_while_it_is_read_stops_the_loader(make_corpus: MakeCorpus) -> None:
    chance = random.Random(0)
    corpus = make_corpus([chance.randbytes(30_000) for _ in range(20)], frame_bytes=4096)
    with loader_of(corpus) as loader:
        whole = [bytes(next(loader).windows_BW.numpy().tobytes()) for _ in range(loader.windows_per_epoch // B)]
    with loader_of(corpus) as loader:
        found = [bytes(next(loader).windows_BW.numpy().tobytes()) for _ in range(10)]
        path = corpus.path / corpus.shards("train")[0].name
        with path.open("r+b") as file:  # the whole file, in its place
            file.write(bytes(path.stat().st_size))
        with pytest.raises(ShardError):
            while len(found) < len(whole):
                found.append(bytes(next(loader).windows_BW.numpy().tobytes()))
    assert found == whole[: len(found)]


def load_until_killed(folder: Path, work: Path, pipe: int, batch_windows: int, threads: int) -> None:
    """Go on where the last one was killed; log each window, then save the place; tell how far it is."""
    with loader_of(Corpus.open(folder), batch_windows=batch_windows, threads=threads) as loader:
        with contextlib.suppress(FileNotFoundError):
            loader.load_state_dict(json.loads((work / "state.json").read_bytes()))
        with (work / "log").open("ab", buffering=0) as log:
            for batch in loader:
                lines = [
                    json.dumps([batch.first_window + row, window.tolist()])
                    for row, window in enumerate(batch.windows_BW)
                ]
                log.write(("\n".join(lines) + "\n").encode())
                write_file(work / "state.json", json.dumps(loader.state_dict()).encode())
                os.write(pipe, b".")


def check_kills(make_corpus: MakeCorpus, work: Path, kills: int, seed: int) -> None:
    corpus = make_corpus(some_documents(), shard_bytes=5000)
    chance = random.Random(seed)
    for _ in range(kills):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                load_until_killed(corpus.path, work, write_end, chance.randrange(1, 9), chance.randrange(1, 4))
            finally:
                os._exit(1)
        os.close(write_end)
        for _ in range(chance.randrange(0, 40)):
            assert os.read(read_end, 1) == b"."
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        os.close(read_end)
    state = json.loads((work / "state.json").read_bytes())
    given: dict[int, list[int]] = {}
    for line in (work / "log").read_bytes().split(b"\n")[:-1]:
        number, window = json.loads(line)
        assert given.setdefault(number, window) == window, "a window that was given again is the same"
    assert set(range(state["window"])) <= set(given), "none is left out"
    with loader_of(corpus) as loader:
        whole = [window.tolist() for _ in range(len(given) // B + 1) for window in next(loader).windows_BW]
    assert [given[number] for number in range(state["window"])] == whole[: state["window"]]
    with loader_of(corpus) as loader:
        loader.load_state_dict(state)
        assert next(loader).first_window == state["window"]


def test_a_loading_run_that_is_killed_again_and_again_goes_on_exactly(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    check_kills(make_corpus, tmp_path, kills=6, seed=0)


@pytest.mark.slow
def test_a_loading_run_that_is_killed_50_times_goes_on_exactly(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    check_kills(make_corpus, tmp_path, kills=50, seed=1)


def test_every_error_of_a_damaged_corpus_is_one_that_the_caller_can_catch(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(some_documents(20))
    for shard in corpus.all_shards:
        (corpus.path / shard.name).write_bytes(b"")
    with loader_of(corpus) as loader, pytest.raises(BytelmError, match="is truncated to 0 bytes"):
        next(loader)
