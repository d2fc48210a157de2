"""Verification finds every damage, names its place, and goes on to the end."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bytelm.data.shard_file import PieceTable
from bytelm.data.shards import Corpus
from bytelm.data.verify import Verification, verify

MakeCorpus = Callable[..., Corpus]


@pytest.fixture
def corpus(make_corpus: MakeCorpus) -> Corpus:
    chance = random.Random(2)
    documents = [chance.randbytes(chance.randrange(1, 2000)) for _ in range(24)]
    return make_corpus(documents, shard_bytes=6000)


def checked(corpus: Corpus, *, threads: int = 1) -> Verification:
    return verify(corpus, corpus.splits, threads=threads)


def shard_path(corpus: Corpus, number: int) -> Path:
    return corpus.path / corpus.shards("train")[number].name


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_whole_corpus_has_no_damage_and_all_of_it_was_looked_at(corpus: Corpus, threads: int) -> None:
    found = checked(corpus, threads=threads)
    assert found.damages == ()
    assert found.shards == len(corpus.shards("train")) > 2
    assert found.raw_bytes == corpus.raw_bytes("train")
    assert found.frames == len(corpus.frame_sizes("train"))


def test_every_frame_is_reported_also_those_of_shards_that_cannot_be_opened(corpus: Corpus) -> None:
    shard_path(corpus, 1).unlink()
    seen: list[int] = []
    verify(corpus, ("train",), threads=2, on_frame=seen.append)
    assert sum(seen) == corpus.raw_bytes("train")


def test_a_flipped_bit_anywhere_is_found_and_a_frames_place_is_named(corpus: Corpus) -> None:
    path = shard_path(corpus, 0)
    content = path.read_bytes()
    reader = corpus.open_shard(corpus.shards("train")[0])
    places = [(begin, begin + length) for begin, length in map(reader.frame_place, range(reader.frames))]
    chance = random.Random(4)
    for place in range(0, len(content), 11):
        flip(path, place, chance.randrange(8))
        damages = checked(corpus).damages
        assert damages, place
        assert {damage.file for damage in damages} == {path.name}
        inside = [frame for frame, (begin, end) in enumerate(places) if begin <= place < end]
        if inside:
            (damage,) = damages
            assert [damage.frame] == inside
            assert (damage.begin, damage.end) == places[inside[0]]
            assert f"frame {damage.frame} (bytes {damage.begin}-{damage.end}) is damaged" in damage.what
        path.write_bytes(content)
    assert checked(corpus).damages == ()


def test_all_damages_are_found_in_the_order_of_the_index(corpus: Corpus) -> None:
    reader = corpus.open_shard(corpus.shards("train")[0])
    for frame in (1, 3):
        flip(shard_path(corpus, 0), reader.frame_place(frame)[0] + 7)
    shard_path(corpus, 1).unlink()
    path = shard_path(corpus, 2)
    path.write_bytes(path.read_bytes()[:-3])
    found = checked(corpus, threads=4)
    names = [entry.name for entry in corpus.shards("train")]
    assert [(damage.file, damage.frame) for damage in found.damages] == [
        (names[0], 1),
        (names[0], 3),
        (names[1], None),
        (names[2], None),
    ]
    assert "is missing" in found.damages[2].what
    lost = corpus.shards("train")[1].raw_bytes + corpus.shards("train")[2].raw_bytes + 2 * 512
    assert found.raw_bytes == corpus.raw_bytes("train") - lost


def test_shards_that_changed_places_are_damaged(corpus: Corpus) -> None:
    one, two = shard_path(corpus, 0), shard_path(corpus, 1)
    one_content, two_content = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_content)
    two.write_bytes(one_content)
    assert [damage.file for damage in checked(corpus).damages] == [one.name, two.name]


def test_what_the_index_does_not_name_is_no_damage_and_is_said(corpus: Corpus) -> None:
    assert checked(corpus).unnamed == ()
    (corpus.path / "train-00099.zst").write_bytes(b"extra")
    (corpus.path / "notes").mkdir()
    found = checked(corpus)
    assert found.damages == ()
    assert found.unnamed == ("notes/", "train-00099.zst")


@pytest.mark.parametrize("name", ["raw_bytes", "packed_bytes", "pieces", "documents", "content"])
def test_a_sound_shard_that_is_not_what_the_index_says_is_damage(corpus: Corpus, name: str) -> None:
    first, *others = corpus.all_shards
    value = getattr(first, name)
    other = dataclasses.replace(first, **{name: value + 1 if isinstance(value, int) else "0" * 32})
    (damage,) = checked(dataclasses.replace(corpus, all_shards=(other, *others))).damages
    assert damage.what == f"shard {first.name} has {name} = {value}, the index names {getattr(other, name)}"


def test_a_sound_shard_with_other_content_than_it_claims_is_damage(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PieceTable, "content_hash", lambda *_: b"\0" * 16)  # no writer would make such a shard
    damages = checked(corpus).damages
    assert [damage.file for damage in damages] == [entry.name for entry in corpus.all_shards]
    assert "does not hold the content that the index names" in damages[0].what


def test_damage_in_another_split_is_not_looked_for(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([b"some text %d\n" % number * 40 for number in range(60)], validation_fraction=0.3)
    (entry,) = corpus.shards("validation")
    (corpus.path / entry.name).unlink()
    assert verify(corpus, ("train",)).damages == ()
    assert len(verify(corpus, corpus.splits).damages) == 1


def test_a_damaged_file_of_digests_is_damage(corpus: Corpus) -> None:
    for entry in corpus.digests:
        path = corpus.path / entry.name
        content = path.read_bytes()
        flip(path, len(content) // 2)
        assert [damage.file for damage in checked(corpus).damages] == [entry.name]
        path.write_bytes(content[:-1])
        assert [damage.file for damage in checked(corpus).damages] == [entry.name]
        path.unlink()
        assert [damage.file for damage in checked(corpus).damages] == [entry.name]
        path.write_bytes(content)
    assert checked(corpus).damages == ()
