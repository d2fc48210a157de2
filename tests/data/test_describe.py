"""What a corpus is said to hold is what it holds; a part of it is read, evenly spread, and the rest is left alone."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.data.describe import SAMPLE_BYTES, content_facts, index_facts, read_contents, spread
from bytelm.data.file_names import names_in, packed_names, packed_numbers, unpacked_numbers
from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus
from bytelm.errors import CorpusError

MakeCorpus = Callable[..., Corpus]
DOCUMENTS = [b"one\n" * 100, "zwölf € ".encode() * 60, b"\xff" * 700, b"x", "ü".encode() * 1000, b"four " * 300]


def test_bytes_and_lengths_of_all_are_those_of_the_documents(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    found = read_contents(corpus, ("train",), most_shards=None, most_frames=None)
    whole = b"".join(DOCUMENTS)
    assert found.bytes.counts.tolist() == [Counter(whole)[byte] for byte in range(256)]
    assert found.bytes.utf8_bytes == len(whole) - 700
    assert (found.lengths.pieces, found.lengths.raw_bytes) == (len(DOCUMENTS), len(whole))
    assert (found.lengths.least, found.lengths.most) == (1, max(map(len, DOCUMENTS)))
    assert found.parts == 0
    assert found.bytes.frames == found.frames == -(-len(whole) // 512)


def test_parts_of_documents_count_as_parts(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([b"whole", b"a line of twenty by\n" * 50_000], shard_bytes=150_000)
    found = read_contents(corpus, ("train",), samples=100)
    assert found.lengths.pieces == corpus.document_count("train") > 2
    assert found.parts == found.lengths.pieces - 1
    assert [sample.whole for sample in found.samples] == [True] + [False] * found.parts


def test_only_the_chosen_shards_are_opened(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([bytes([number]) * 1000 for number in range(1, 13)], shard_bytes=1000)
    shards = corpus.shards("train")
    assert len(shards) == 12
    for number in set(range(12)) - {0, 4, 8}:
        (corpus.path / shards[number].name).unlink()
    found = read_contents(corpus, ("train",), most_shards=3, most_frames=4, samples=3)
    assert (found.shards, found.shards_read, found.frames, found.bytes.frames) == (12, 3, 24, 4)
    assert [sample.number for sample in found.samples] == [0, 4, 8]
    facts = content_facts(found)
    assert (facts["lengths"]["shards"], facts["lengths"]["shards_read"]) == (12, 3)
    assert (facts["bytes"]["frames"], facts["bytes"]["frames_read"]) == (24, 4)


def test_every_frame_is_reported_with_its_bytes(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    seen: list[int] = []
    read_contents(corpus, ("train",), on_frame=seen.append)
    assert sum(seen) == corpus.raw_bytes("train")


def test_samples_are_beginnings_of_documents_and_the_seed_decides_which(make_corpus: MakeCorpus) -> None:
    documents = [f"document {number} ".encode() * (number + 1) for number in range(200)]
    corpus = make_corpus(documents, shard_bytes=20_000)
    order = list(corpus.documents("train"))

    def chosen(seed: int) -> list[int]:
        samples = read_contents(corpus, ("train",), samples=8, seed=seed).samples
        for sample in samples:
            data = order[sample.number]
            assert sample.beginning == data[:SAMPLE_BYTES]
            assert (sample.raw_bytes, sample.whole, sample.split, sample.kind) == (len(data), True, "train", "text")
        return [sample.number for sample in samples]

    assert len(set(chosen(0))) == 8
    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


def test_more_samples_than_documents_are_all_documents(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    samples = read_contents(corpus, ("train",), samples=100).samples
    assert [sample.beginning for sample in samples] == [data[:SAMPLE_BYTES] for data in DOCUMENTS]


def test_the_index_gives_totals_of_the_splits_that_were_asked_for(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([b"some text %d\n" % number * 40 for number in range(60)], validation_fraction=0.3)
    assert set(corpus.splits) == {"train", "validation"}
    both = index_facts(corpus, corpus.splits)
    train = index_facts(corpus, ("train",))
    assert both["fingerprint"] == train["fingerprint"] == corpus.fingerprint
    assert both["raw_bytes"] == corpus.raw_bytes("train") + corpus.raw_bytes("validation")
    assert train["raw_bytes"] == corpus.raw_bytes("train") == train["splits"]["train"]["raw_bytes"]
    assert set(train["splits"]) == {"train"}
    assert both["ratio"] == round(both["raw_bytes"] / both["packed_bytes"], 4)


def test_kinds_are_counted_and_the_largest_stands_first(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([b"text " * 10, b"\0" * 400, b"more text " * 10])
    kinds = index_facts(corpus, ("train",))["kinds"]
    assert list(kinds.items()) == [
        ("binary", {"group": "binary", "documents": 1, "raw_bytes": 400}),
        ("text", {"group": "prose", "documents": 2, "raw_bytes": 150}),
    ]


def test_samples_of_a_corpus_that_has_grown_name_their_own_source(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode() * 500)
        ingest([tmp_path / name], tmp_path / "corpus", validation_fraction=0, append=name == "two")
    samples = read_contents(Corpus.open(tmp_path / "corpus"), ("train",), samples=9).samples
    assert [(sample.beginning[:3], sample.source) for sample in samples] == [
        (name.encode(), str(tmp_path / name)) for name in ("one", "two")
    ]


def test_a_split_that_is_not_there_is_named(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    with pytest.raises(CorpusError, match="no 'test' split"):
        index_facts(corpus, ("test",))
    with pytest.raises(CorpusError, match="no 'test' split"):
        read_contents(corpus, ("test",))


@given(st.integers(0, 300), st.none() | st.integers(0, 320), st.none() | st.integers())
def test_places_are_spread_evenly(count: int, wanted: int | None, seed: int | None) -> None:
    places = spread(count, wanted, seed=seed)
    number = count if wanted is None else min(count, wanted)
    assert len(places) == number
    assert places == sorted(set(places))
    assert all(n * count // number <= place < (n + 1) * count // number for n, place in enumerate(places))


def test_samples_name_the_files_that_they_come_from_parts_of_documents_too(tmp_path: Path) -> None:
    chance = random.Random(3)
    files = tmp_path / "files"
    files.mkdir()
    kept: dict[str, bytes] = {}
    for number in range(12):
        data = b"".join(b"%d %x\n" % (number, chance.getrandbits(60)) for _ in range(400))
        kept[str(files / f"{number}.txt")] = data
        (files / f"{number}.txt").write_bytes(data)
    (files / "copy.txt").write_bytes(kept[str(files / "3.txt")])
    ingest([files], tmp_path / "corpus", validation_fraction=0.2, shard_bytes=20_000, workers=1)
    (files / "late.txt").write_bytes(b"late words\n" * 300)
    kept[str(files / "late.txt")] = b"late words\n" * 300
    ingest([files], tmp_path / "corpus", append=True, workers=1)
    corpus = Corpus.open(tmp_path / "corpus")
    found = read_contents(corpus, corpus.splits, samples=1000)
    assert found.parts > 5
    assert len(found.samples) == found.lengths.pieces
    for sample in found.samples:
        assert sample.file is not None
        assert sample.beginning in kept[sample.file]
    assert {sample.file for sample in found.samples} == set(kept)


def test_a_corpus_that_names_no_files_is_described_all_the_same(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([b"one" * 50, b"two" * 50])
    old = replace(corpus, files=())
    (corpus.path / corpus.files[0].name).unlink()
    assert [sample.file for sample in read_contents(old, old.splits, samples=2).samples] == [None, None]


def test_names_of_files_come_back_and_nothing_else_does() -> None:
    for numbers in ([], [0], [0, 0, 5, 2**40]):
        packed = packed_numbers(numbers)
        found = unpacked_numbers(packed, 4)
        assert found is not None
        assert found.tolist() == numbers
    assert unpacked_numbers(packed_numbers(range(100)), 99) is None
    assert unpacked_numbers("no base64!", 9) is None
    content = packed_names(["a", "b"], {"train-00000.zst": packed_numbers([0, 1, 1])})
    assert names_in(content, "train-00000.zst", 3) == ["a", "b", "b"]
    assert names_in(content, "train-00000.zst", 2) is None
    assert names_in(content, "train-00001.zst", 3) is None
    assert names_in(content[:-1], "train-00000.zst", 3) is None
    assert names_in(packed_names(["a"], {"t": packed_numbers([0, 1])}), "t", 2) is None
