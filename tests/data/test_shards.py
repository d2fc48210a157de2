"""A corpus and its index: only what was finished and is whole counts."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bytelm.data import index
from bytelm.data.shards import INDEX, Corpus
from bytelm.errors import CorpusError, ShardError

MakeCorpus = Callable[..., Corpus]
DOCUMENTS = [b"one\n" * 100, b"two", bytes(range(256)) * 5, b"\xff\xfe", b"four " * 300]


def test_documents_come_back_in_order(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    assert list(corpus.documents("train")) == DOCUMENTS
    assert corpus.document_count("train") == len(DOCUMENTS)
    assert corpus.raw_bytes("train") == sum(map(len, DOCUMENTS))
    assert corpus.splits == ("train",)


def test_pieces_tell_whether_they_are_whole_and_what_they_are(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    pieces = list(corpus.pieces("train"))
    assert all(piece.starts and piece.ends and piece.source == 0 for piece in pieces)
    assert [corpus.kinds[piece.kind] for piece in pieces] == ["text", "text", "binary", "binary", "text"]


def test_documents_are_read_across_shards(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS, shard_bytes=1000)
    assert len(corpus.shards("train")) > 1
    assert list(corpus.documents("train")) == DOCUMENTS


def test_only_a_document_far_beyond_a_shard_is_cut(make_corpus: MakeCorpus) -> None:
    text = b"a line of twenty by\n" * 50_000
    corpus = make_corpus([b"first", text, b"last"], shard_bytes=150_000)
    pieces = list(corpus.pieces("train"))
    assert b"".join(piece.data for piece in pieces) == b"first" + text + b"last"
    assert len(corpus.shards("train")) == 3
    assert [(piece.starts, piece.ends) for piece in pieces] == [
        (True, True),
        (True, False),
        (False, True),
        (True, True),
    ]


def test_frame_sizes_are_known_from_the_index_alone(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS, shard_bytes=1000)
    real = []
    for shard in corpus.shards("train"):
        reader = corpus.open_shard(shard)
        real += [reader.frame_size(frame) for frame in range(reader.frames)]
        (corpus.path / shard.name).unlink()
    assert corpus.frame_sizes("train").tolist() == real


def test_the_fingerprint_is_of_the_content_alone(make_corpus: MakeCorpus) -> None:
    ours = make_corpus(DOCUMENTS)
    assert make_corpus(DOCUMENTS, level=19).fingerprint == ours.fingerprint
    assert make_corpus([DOCUMENTS[1], DOCUMENTS[0], *DOCUMENTS[2:]]).fingerprint != ours.fingerprint
    assert make_corpus([DOCUMENTS[0] + DOCUMENTS[1], *DOCUMENTS[2:]]).fingerprint != ours.fingerprint
    assert make_corpus([*DOCUMENTS, b"more"]).fingerprint != ours.fingerprint
    enough = [*DOCUMENTS, b"a line\n" * 1000]
    assert make_corpus(enough, validation_fraction=0.1).fingerprint != make_corpus(enough).fingerprint


def test_a_flipped_bit_anywhere_in_the_index_is_refused(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    place = corpus.path / INDEX
    content = place.read_bytes()
    chance = random.Random(5)
    for byte in range(0, len(content), 2):
        flipped = bytearray(content)
        flipped[byte] ^= 1 << chance.randrange(8)
        place.write_bytes(flipped)
        with pytest.raises(CorpusError, match=INDEX):
            Corpus.open(corpus.path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("frame_bytes",), "many", r'frame_bytes: "many" is no whole number'),
        (("frame_bytes",), 0, r"frame_bytes: 0 is not within"),
        (("frame_bytes",), 10**30, r"frame_bytes: 1\d+ is not within"),
        (("shards", 0, "raw_bytes"), -1, r"shards\[0\]\.raw_bytes: -1 is not within"),
        (("shards", 0, "raw_bytes"), 1.5, r"shards\[0\]\.raw_bytes: 1\.5 is no whole number"),
        (("shards", 0, "kinds"), [], r"shards\[0\]\.kinds: \[\] is no object"),
        (("shards", 0, "more"), 1, r"shards\[0\]\.more: it is unknown here"),
        (("shards",), [], r"shards: it has 0 values"),
        (("split", "fraction"), 7, r"split\.fraction: 7 is not within"),
        (("ingestions", 0, "skipped"), {"empty": 3}, r"ingestions\[0\]\.skipped\.empty: 3 is no object"),
        (("ingestions", 0, "settings"), {}, r"ingestions\[0\]\.settings\.validation_fraction: it is missing"),
        (("kinds",), "text", r"kinds: \"text\" is no list"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused_though_its_checksum_holds(
    make_corpus: MakeCorpus, path: tuple[str | int, ...], value: object, message: str
) -> None:
    corpus = make_corpus(DOCUMENTS)
    place = corpus.path / INDEX
    tree = json.loads(place.read_bytes())
    del tree["checksum"]
    inner = tree
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    place.write_bytes(index._text({**tree, "checksum": index._checksum(tree)}))
    with pytest.raises(CorpusError, match=rf"index\.json is damaged: {message}.*; ingest the sources again"):
        Corpus.open(corpus.path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b"9" * 5000, b"\xff", b"", b"3"])
def test_what_is_no_index_at_all_is_one_line(make_corpus: MakeCorpus, content: bytes) -> None:
    corpus = make_corpus(DOCUMENTS)
    (corpus.path / INDEX).write_bytes(content)
    with pytest.raises(CorpusError, match=r"index\.json is damaged.*; ingest the sources again") as caught:
        Corpus.open(corpus.path)
    assert len(str(caught.value).splitlines()) == 1


def test_an_index_is_not_read_beyond_its_limit(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    with (corpus.path / INDEX).open("r+b") as file:
        file.truncate(index.MOST_INDEX_BYTES + 1)
    with pytest.raises(CorpusError, match="more than 256 MiB"):
        Corpus.open(corpus.path)
    (corpus.path / INDEX).unlink()
    (corpus.path / INDEX).symlink_to("/dev/zero")
    with pytest.raises(CorpusError, match="is damaged"):
        Corpus.open(corpus.path)


def test_a_truncated_index_is_refused(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    place = corpus.path / INDEX
    content = place.read_bytes()
    for length in range(0, len(content), 13):
        place.write_bytes(content[:length])
        with pytest.raises(CorpusError, match=INDEX):
            Corpus.open(corpus.path)


def test_an_index_of_the_future_is_refused_with_its_version(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    place = corpus.path / INDEX
    place.write_text(json.dumps({**json.loads(place.read_text()), "version": 9}))
    with pytest.raises(CorpusError, match="has version 9, this bytelm reads 2"):
        Corpus.open(corpus.path)


def test_a_folder_without_an_index_is_no_corpus(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus(DOCUMENTS)
    (corpus.path / INDEX).unlink()
    with pytest.raises(CorpusError, match=r"it has no index\.json; make one with bytelm ingest"):
        Corpus.open(corpus.path)
    with pytest.raises(CorpusError, match="it does not exist"):
        Corpus.open(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(CorpusError, match="it is no folder"):
        Corpus.open(tmp_path / "file")


def test_shards_that_the_index_does_not_name_are_never_read(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS)
    (shard,) = corpus.shards("train")
    shutil.copy(corpus.path / shard.name, corpus.path / "train-00001.zst")
    assert list(Corpus.open(corpus.path).documents("train")) == DOCUMENTS


def test_a_missing_shard_is_no_shorter_corpus(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS, shard_bytes=1000)
    (corpus.path / corpus.shards("train")[1].name).unlink()
    with pytest.raises(ShardError, match=r"train-00001\.zst is missing"):
        list(Corpus.open(corpus.path).documents("train"))


def test_shards_that_changed_places_are_refused(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(DOCUMENTS, shard_bytes=1000)
    one, two = (corpus.path / shard.name for shard in corpus.shards("train")[:2])
    one.rename(corpus.path / "aside")
    two.rename(one)
    (corpus.path / "aside").rename(two)
    with pytest.raises(ShardError, match="belongs to another corpus or was replaced"):
        list(Corpus.open(corpus.path).documents("train"))


def test_a_split_that_is_not_there_is_named_with_those_that_are(make_corpus: MakeCorpus) -> None:
    with pytest.raises(CorpusError, match="no 'validation' split, only 'train'"):
        make_corpus(DOCUMENTS).shards("validation")
