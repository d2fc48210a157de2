"""Duplicates: equal documents exactly, nearly equal ones by an estimate that is checked against the real similarity."""

import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.data.duplicates import (
    NEAR_LEAST_BYTES,
    StringSampler,
    check_threshold,
    exact_duplicates,
    near_duplicates,
    signatures_of,
)
from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus, Count
from bytelm.errors import ConfigError, SourceError

needs_rensa = pytest.mark.skipif(
    importlib.util.find_spec("rensa") is None,
    reason="rensa is not installed: pip install 'bytelm[near-duplicates]'",
)


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_a_document_is_a_duplicate_if_an_equal_one_comes_before_it(before: list[int], documents: list[int]) -> None:
    def digests(values: list[int]) -> np.ndarray:
        return np.array([(value % 3, value // 3) for value in values], np.uint64).reshape(-1, 2)

    found = exact_duplicates(digests(documents), digests(before)).tolist()
    assert found == [value in before or value in documents[:place] for place, value in enumerate(documents)]


def strings(data: bytes) -> set[bytes]:
    return {data[begin : begin + 24] for begin in range(len(data) - 23)}


def hashes_of(data: bytes, block: int = 1 << 20) -> np.ndarray:
    sampler = StringSampler()
    for begin in range(0, len(data), block):
        sampler.add(data[begin : begin + block])
    return sampler.hashes()


def altered(document: bytes, words: int, chance: random.Random) -> bytes:
    """A document with some of its 17-byte words replaced."""
    places = chance.sample(range(len(document) // 17), words)
    data = bytearray(document)
    for place in places:
        data[17 * place : 17 * place + 17] = b"%016x " % chance.getrandbits(64)
    return bytes(data)


def document(chance: random.Random, words: int = 1000) -> bytes:
    return b"".join(b"%016x " % chance.getrandbits(64) for _ in range(words))


def test_hashes_are_of_the_strings_whatever_the_blocks_and_the_place() -> None:
    chance = random.Random(1)
    data = chance.randbytes(100_000)
    found = set(hashes_of(data).tolist())
    assert set(hashes_of(data, 777).tolist()) == found
    assert 0.11 < len(found) / len(strings(data)) < 0.14
    moved = set(hashes_of(b"shifted by some bytes" + data).tolist())
    assert len(found & moved) > 0.99 * len(found)
    assert len(hashes_of(data[: NEAR_LEAST_BYTES - 1])) == 0
    assert len(hashes_of(b"\0" * 1000)) >= 1


@needs_rensa
def test_the_estimate_is_the_share_of_common_strings() -> None:
    chance = random.Random(2)
    for words in (5, 30, 100, 300):
        one = document(chance)
        other = altered(one, words, chance)
        real = len(strings(one) & strings(other)) / len(strings(one) | strings(other))
        first, second = signatures_of([hashes_of(one), hashes_of(other)])
        assert abs((first == second).mean() - real) < 0.15


@needs_rensa
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_near_duplicates_are_found_and_others_are_not(threshold: float) -> None:
    chance = random.Random(3)
    originals = [document(chance) for _ in range(100)]
    near = [altered(one, round(1000 * (1 - threshold) / 16), chance) for one in originals]
    far = [altered(one, 700, chance) for one in originals]
    signatures = signatures_of([hashes_of(one) for one in [*originals, *far, *near, *originals]])
    found = near_duplicates(signatures, range(400), threshold)
    assert [place for place in found if place < 200] == []
    assert len([place for place in found if 200 <= place < 300]) >= 95
    assert [place for place in found if place >= 300] == list(range(300, 400))
    assert near_duplicates(signatures, range(100, 200), threshold) == []


@needs_rensa
def test_an_ingestion_leaves_near_duplicates_out_and_says_so(tmp_path: Path) -> None:
    chance = random.Random(4)
    first, other = document(chance), document(chance)
    content = [first, other, altered(first, 10, chance), first, b"short", b"short\n", bytes(5000), bytes(6000)]
    folder = tmp_path / "files"
    folder.mkdir()
    for number, data in enumerate(content):
        (folder / f"{number}").write_bytes(data)
    report = ingest([folder], tmp_path / "corpus", near_duplicates=0.8, validation_fraction=0)
    assert report.skipped == {"duplicate": Count(1, 17_000), "near_duplicate": Count(2, 23_000)}
    kept = [content[number] for number in (0, 1, 4, 5, 6)]
    assert list(Corpus.open(tmp_path / "corpus").documents("train")) == kept


@needs_rensa
def test_where_nothing_is_found_there_are_no_near_duplicates(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with pytest.raises(SourceError, match="nothing to ingest"):
        ingest([tmp_path / "files"], tmp_path / "corpus", near_duplicates=0.8)


@pytest.mark.parametrize("threshold", [0.0, 0.29, 1.01, float("nan")])
def test_impossible_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"a similarity from 0\.3 to 1 is needed, like 0\.8"):
        check_threshold(threshold)


def test_a_missing_library_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    check_threshold(None)
    with pytest.raises(ConfigError, match=r"pip install 'bytelm\[near-duplicates\]'"):
        check_threshold(0.8)
