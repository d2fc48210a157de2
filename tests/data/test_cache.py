"""The cache of remote shards: what it spares, what it costs at most, and what it does with damage."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from bytelm.data import cache
from bytelm.data.cache import BlockCache, CachedFile, cache_folder
from bytelm.data.ingest import ingest
from bytelm.data.loader import WindowLoader
from bytelm.data.shards import Corpus
from bytelm.data.storage import StoredFile, folder_at
from bytelm.errors import ShardError

BLOCK = 256 << 10


class CountedFile(StoredFile):
    """A stored file that tells what was read of it."""

    def __init__(self, address: str, name: str) -> None:
        super().__init__(folder_at(address), name)
        self.reads: list[tuple[int, int]] = []

    def read_anew(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return super().read_anew(offset, length)


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(5).bytes(3 * BLOCK + 1000)


@pytest.fixture
def stored(content: bytes, request: pytest.FixtureRequest) -> CountedFile:
    address = f"memory://cache/{request.node.name}"
    folder_at(address).write("shard", content)
    return CountedFile(address, "shard")


def windows(corpus: Corpus, batches: int = 80) -> list[bytes]:
    with WindowLoader(corpus, window_bytes=512, prediction_heads=4, batch_windows=8, seed=0) as loader:
        return [next(loader).windows_BW.numpy().tobytes() for _ in range(batches)]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (0, BLOCK), (BLOCK - 1, 2), (100, 3 * BLOCK), (3 * BLOCK + 900, 500), (7, 0)]
)
def test_any_range_equals_the_file(
    stored: CountedFile, content: bytes, tmp_path: Path, offset: int, length: int
) -> None:
    file = CachedFile(stored, "identity", BlockCache(tmp_path))
    for _ in range(2):
        assert file.read(offset, length) == content[offset : offset + length]
    assert file.size() == len(content)


def test_a_block_is_fetched_once(stored: CountedFile, tmp_path: Path) -> None:
    file = CachedFile(stored, "identity", BlockCache(tmp_path))
    file.read(BLOCK + 5, 10)
    file.read(BLOCK + 500, 1000)
    CachedFile(stored, "identity", BlockCache(tmp_path)).read(BLOCK, 10)
    assert stored.reads == [(BLOCK, BLOCK)]


def test_files_of_other_content_do_not_share_blocks(stored: CountedFile, tmp_path: Path) -> None:
    for identity in ("one", "other"):
        CachedFile(stored, identity, BlockCache(tmp_path)).read(0, 10)
    assert len(stored.reads) == 2


def test_what_was_read_last_stays_when_room_is_needed(stored: CountedFile, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 2 * BLOCK + BLOCK // 2)
    file = CachedFile(stored, "identity", cache)
    for block, age in ((0, 100), (1, 200)):
        file.read(block * BLOCK, 1)
        (kept,) = (path for path in tmp_path.iterdir() if path.name.endswith(f"{block:08d}"))
        os.utime(kept, (1e9 - age, 1e9 - age))
    file.read(0, 1)  # now block 1 is the one that was not read for the longest time
    file.read(2 * BLOCK, 1)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["0", "2"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * BLOCK + BLOCK // 2


def test_a_block_that_cannot_be_kept_is_fetched_each_time(stored: CountedFile, content: bytes, tmp_path: Path) -> None:
    file = CachedFile(stored, "identity", BlockCache(tmp_path))
    name = f"{file._identity}-{0:08d}"
    (tmp_path / name).mkdir()  # nothing can be renamed over it
    (tmp_path / name / "in the way").touch()
    assert file.read(0, 10) == file.read(0, 10) == content[:10]
    assert len(stored.reads) == 2


def test_windows_of_a_remote_corpus_are_those_of_the_local_one(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(np.random.default_rng(1).integers(97, 123, 300_000, np.uint8).tobytes())
    ingest([raw], tmp_path / "corpus", frame_bytes=16 << 10)
    ingest([raw], "memory://cache/corpus", frame_bytes=16 << 10)
    expected = windows(Corpus.open(tmp_path / "corpus"))
    cache = BlockCache(tmp_path / "blocks")
    assert windows(Corpus.open("memory://cache/corpus")) == expected
    for _ in range(2):
        assert windows(Corpus.open("memory://cache/corpus", cache=cache)) == expected


def test_damage_in_the_cache_is_fetched_again_and_damage_at_its_origin_is_an_error(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(np.random.default_rng(2).integers(97, 123, 300_000, np.uint8).tobytes())
    ingest([raw], "memory://cache/damaged", frame_bytes=16 << 10)
    cache = BlockCache(tmp_path / "blocks")
    expected = windows(Corpus.open("memory://cache/damaged", cache=cache))
    for block in (tmp_path / "blocks").iterdir():
        content = bytearray(block.read_bytes())
        content[len(content) // 3] ^= 1
        block.write_bytes(content)
    assert windows(Corpus.open("memory://cache/damaged", cache=cache)) == expected
    folder = folder_at("memory://cache/damaged")
    for name in (name for name in folder.names() if name.startswith("train")):
        content = bytearray(folder.read(name))
        content[len(content) // 3] ^= 1
        folder.write(name, bytes(content))
    with pytest.raises(ShardError, match="damaged"):
        windows(Corpus.open("memory://cache/damaged", cache=BlockCache(tmp_path / "other blocks")))


def test_the_cache_lies_where_the_user_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "bytelm" / "shards"


def test_parts_that_killed_processes_left_in_the_cache_go(tmp_path: Path) -> None:
    old, new = tmp_path / f".x.1.1{cache._PART}", tmp_path / f".y.1.1{cache._PART}"
    for part in (old, new):
        part.write_bytes(b"part")
    long_ago = time.time() - 2 * cache._DEAD_AFTER_S
    os.utime(old, (long_ago, long_ago))
    BlockCache(tmp_path, 1 << 30).write("block", b"content")
    assert not old.exists()
    assert new.exists()
    assert (tmp_path / "block").read_bytes() == b"content"
