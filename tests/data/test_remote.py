"""Windows of corpora behind a network: those of the corpus at home, fetched ahead, through any cache, past failures."""

import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bytelm.data.batches import BatchLoader
from bytelm.data.cache import BlockCache
from bytelm.data.fetcher import THREADS, Fetcher
from bytelm.data.ingest import ingest
from bytelm.data.loader import WindowLoader
from bytelm.data.mixture import MixtureLoader
from bytelm.data.shards import Corpus
from bytelm.data.storage import RemoteFolder, folder_at
from bytelm.errors import CorpusError, ShardError

SETTINGS: dict[str, Any] = {"window_bytes": 512, "prediction_heads": 4, "batch_windows": 8, "seed": 0}
INGESTED: dict[str, Any] = {"validation_fraction": 0.0, "frame_bytes": 16 << 10, "shard_bytes": 200_000}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    chance = random.Random(2)
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}").write_bytes(chance.randbytes(chance.randrange(100, 60_000)))
    return folder


@pytest.fixture
def corpora(documents: Path, tmp_path: Path) -> Iterator[tuple[Corpus, str]]:
    """The same corpus at home, and where it is elsewhere."""
    address = f"memory://remote/{tmp_path.name}"
    ingest([documents], tmp_path / "corpus", **INGESTED)
    ingest([documents], address, **INGESTED)
    yield Corpus.open(tmp_path / "corpus"), address
    MemoryFileSystem().rm(address, recursive=True)


def windows(loader: BatchLoader, batches: int) -> list[bytes]:
    with loader:
        return [next(loader).windows_BW.numpy().tobytes() for _ in range(batches)]


@pytest.mark.parametrize("packing", ["stream", "document"])
@pytest.mark.parametrize("cache_bytes", [1, 10 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_windows_are_those_of_the_corpus_at_home_whatever_the_cache(
    corpora: tuple[Corpus, str], tmp_path: Path, cache_bytes: int, threads: int, packing: Any
) -> None:
    home, address = corpora
    expected = windows(WindowLoader(home, packing=packing, **SETTINGS), 300)
    for _ in range(2):
        elsewhere = Corpus.open(address, cache=BlockCache(tmp_path / "cache", cache_bytes))
        assert windows(WindowLoader(elsewhere, packing=packing, threads=threads, **SETTINGS), 300) == expected


def test_corpora_at_home_and_elsewhere_are_mixed(
    corpora: tuple[Corpus, str], make_corpus: Callable[..., Corpus], tmp_path: Path
) -> None:
    home, address = corpora
    other = make_corpus([b"another text " * 400])
    elsewhere = Corpus.open(address, cache=BlockCache(tmp_path / "cache"))
    found = [windows(MixtureLoader([one, other], ("2", "1"), **SETTINGS), 200) for one in (home, elsewhere)]
    assert found[0] == found[1]


def test_a_loader_goes_back_and_forth(corpora: tuple[Corpus, str], tmp_path: Path) -> None:
    home, address = corpora
    expected = windows(WindowLoader(home, **SETTINGS), 200)
    with WindowLoader(Corpus.open(address, cache=BlockCache(tmp_path / "cache")), **SETTINGS) as loader:
        begin = loader.state_dict()
        for place in (150, 3, 77):
            loader.load_state_dict({**begin, "window": 8 * place})
            assert [next(loader).windows_BW.numpy().tobytes() for _ in range(40)] == expected[place : place + 40]


class FailingFiles(MemoryFileSystem):
    """Files in memory, of which two reads in three fail."""

    protocol = "failing"
    cachable = False
    calls = itertools.count()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if next(self.calls) % 3:
            raise ConnectionResetError("the network is down")
        return super().cat_file(path, start=start, end=end, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("failing://", "memory://"))


def test_a_network_that_fails_now_and_then_changes_nothing(corpora: tuple[Corpus, str], tmp_path: Path) -> None:
    fsspec.register_implementation("failing", FailingFiles, clobber=True)
    home, address = corpora
    folder = RemoteFolder(address.replace("memory:", "failing:"), pauses_s=(0.0,) * 30)
    corpus = Corpus.open(folder, cache=BlockCache(tmp_path / "cache"))
    assert windows(WindowLoader(corpus, **SETTINGS), 200) == windows(WindowLoader(home, **SETTINGS), 200)


def test_a_shard_that_is_missing_elsewhere_is_named(corpora: tuple[Corpus, str], tmp_path: Path) -> None:
    _, address = corpora
    corpus = Corpus.open(address, cache=BlockCache(tmp_path / "cache"))
    for shard in corpus.shards("train"):
        folder_at(address).remove(shard.name)
    with WindowLoader(corpus, **SETTINGS) as loader, pytest.raises(ShardError, match=r"shard memory://.* is missing"):
        next(loader)


def test_a_closed_loader_has_no_threads_left(corpora: tuple[Corpus, str], tmp_path: Path) -> None:
    before = threading.active_count()
    loader = WindowLoader(Corpus.open(corpora[1], cache=BlockCache(tmp_path / "cache")), **SETTINGS)
    next(loader)
    loader.close()
    assert threading.active_count() == before


def test_a_fetcher_asks_once_for_each_key_and_swallows_what_is_met_again() -> None:
    fetched: list[int] = []

    def fetch(key: int) -> Callable[[], None]:
        def work() -> None:
            fetched.append(key)
            if key == 2:
                raise CorpusError("damaged")

        return work

    fetcher: Fetcher[int] = Fetcher(remembered=4)
    try:
        fetcher.ask({key: fetch(key) for key in range(3)})
        fetcher.ask({key: fetch(key) for key in range(4)})
        fetcher.wait([3, 2, 1, 0, 99])
        assert sorted(fetched) == [0, 1, 2, 3]
        fetcher.ask({key: fetch(key) for key in range(4, 8)})
        fetcher.wait(range(8))
        fetcher.ask({0: fetch(0)})  # it was forgotten
        fetcher.wait([0])
        assert sorted(fetched) == [0, 0, *range(1, 8)]
    finally:
        fetcher.close()


def test_a_fetcher_that_is_cleared_begins_nothing_more() -> None:
    begun, go = threading.Semaphore(0), threading.Event()
    fetched: list[int] = []

    def fetch(key: int) -> Callable[[], None]:
        def work() -> None:
            begun.release()
            go.wait()
            fetched.append(key)

        return work

    fetcher: Fetcher[int] = Fetcher(remembered=4)
    try:
        fetcher.ask({key: fetch(key) for key in range(THREADS + 5)})
        for _ in range(THREADS):
            begun.acquire()
        fetcher.clear()
        go.set()
        fetcher.wait(range(THREADS + 5))
    finally:
        fetcher.close()
    assert sorted(fetched) == list(range(THREADS))


def test_windows_come_out_of_a_bucket(documents: Path, tmp_path: Path, bucket: str) -> None:
    ingest([documents], tmp_path / "corpus", **INGESTED)
    ingest([documents], f"{bucket}/corpus", **INGESTED)
    expected = windows(WindowLoader(Corpus.open(tmp_path / "corpus"), **SETTINGS), 200)
    corpus = Corpus.open(f"{bucket}/corpus", cache=BlockCache(tmp_path / "cache"))
    assert windows(WindowLoader(corpus, **SETTINGS), 200) == expected


_READ = """
import sys
from pathlib import Path
from bytelm.data.cache import BlockCache
from bytelm.data.loader import WindowLoader
from bytelm.data.shards import Corpus
corpus = Corpus.open(sys.argv[1], cache=BlockCache(Path(sys.argv[2]), int(sys.argv[3])))
with WindowLoader(corpus, window_bytes=512, prediction_heads=4, batch_windows=8, seed=0, threads=2) as loader:
    for _ in range(300):
        sys.stdout.buffer.write(next(loader).windows_BW.numpy().tobytes())
"""


@pytest.mark.slow
@pytest.mark.parametrize("cache_bytes", [300_000, 1 << 30])
def test_processes_share_a_cache(documents: Path, tmp_path: Path, bucket: str, cache_bytes: int) -> None:
    ingest([documents], tmp_path / "corpus", **INGESTED)
    ingest([documents], f"{bucket}/corpus", **INGESTED)
    expected = b"".join(windows(WindowLoader(Corpus.open(tmp_path / "corpus"), **SETTINGS), 300))
    command = [sys.executable, "-c", _READ, f"{bucket}/corpus", str(tmp_path / "cache"), str(cache_bytes)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    found = [reader.communicate()[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0] * 4
    assert found == [expected] * 4
