"""A corpus that grows: what was there stays as it was, and what was trained on is never validated on."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.ingest import IngestProgress, ingest
from bytelm.data.shards import INDEX, Corpus, Count
from bytelm.errors import ConfigError, CorpusError, SourceError


def folder_of(place: Path, documents: Sequence[bytes]) -> Path:
    place.mkdir()
    for number, document in enumerate(documents):
        (place / f"{number:05d}").write_bytes(document)
    return place


def lines(count: int, seed: int) -> bytes:
    chance = random.Random(seed)
    return b"".join(b"%030x\n" % chance.getrandbits(120) for _ in range(count))


def pieces_of(corpus: Corpus, split: str) -> list[bytes]:
    return list(corpus.documents(split)) if split in corpus.splits else []


def test_what_is_appended_comes_behind_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    first, second = [lines(30, number) for number in range(9)], [lines(30, number) for number in range(6, 20)]
    ingest([folder_of(tmp_path / "one", first)], out, level=3, frame_bytes=4096)
    before = Corpus.open(out)
    shards = {shard.name: (out / shard.name).read_bytes() for shard in before.all_shards}
    report = ingest([folder_of(tmp_path / "two", second)], out, append=True, level=1)
    corpus = Corpus.open(out)
    assert report.new == Count(11, 11 * 930)
    assert report.documents == 20
    assert report.skipped == {"duplicate": Count(3, 3 * 930)}
    assert corpus.fingerprint == report.fingerprint != before.fingerprint
    assert corpus.frame_bytes == 4096
    assert corpus.split_rule == before.split_rule
    assert [ingestion.settings["level"] for ingestion in corpus.ingestions] == [3, 1]
    assert [source["name"] for source in corpus.sources] == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert {name: (out / name).read_bytes() for name in shards} == shards
    for split in ("train", "validation"):
        old, new = pieces_of(before, split), pieces_of(corpus, split)
        assert new[: len(old)] == old
    pieces = [piece for split in corpus.splits for piece in corpus.pieces(split)]
    assert sorted(b"".join(piece.data for piece in pieces)) == sorted(b"".join([*first, *second[3:]]))
    assert {piece.source for piece in pieces} == {0, 1}
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [INDEX, *(file.name for file in (*corpus.all_shards, *corpus.digests, *corpus.files))]
    )


@settings(deadline=None, max_examples=30)
@given(
    parts=st.lists(st.lists(st.binary(min_size=1, max_size=2000), min_size=1, max_size=5), min_size=2, max_size=4),
    keep_duplicates=st.booleans(),
    fraction=st.sampled_from([0.0, 0.2]),
)
def test_no_document_is_there_twice_however_it_grew(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[bytes]], keep_duplicates: bool, fraction: float
) -> None:
    place = tmp_path_factory.mktemp("grown")
    seen: list[bytes] = []
    for number, documents in enumerate(parts):
        kept = [document for document in documents if document not in seen]
        words: dict[str, Any] = {"append": bool(number), "keep_duplicates": keep_duplicates, "level": 1}
        source = folder_of(place / f"{number}", documents)
        if not kept:
            with pytest.raises(SourceError, match="nothing to append"):
                ingest([source], place / "corpus", **words)
            continue
        report = ingest([source], place / "corpus", **words, validation_fraction=None if number else fraction)
        seen += kept if keep_duplicates else list(dict.fromkeys(kept))
        assert report.documents == len(seen)
        assert report.raw_bytes == sum(map(len, seen))
    corpus = Corpus.open(place / "corpus")
    content = b"".join(piece for split in corpus.splits for piece in corpus.documents(split))
    assert sorted(content) == sorted(b"".join(seen))
    assert len(corpus.read_digests()) == 16 * len(seen)


@pytest.mark.parametrize(("before", "after"), [(40, 300), (3000, 4000)])
def test_what_was_trained_on_is_never_validated_on(tmp_path: Path, before: int, after: int) -> None:
    documents = [lines(200, number) for number in range(after)]
    out = tmp_path / "corpus"
    ingest([folder_of(tmp_path / "one", documents[:before])], out, level=1)
    small = Corpus.open(out)
    trained_on = set(pieces_of(small, "train"))
    again = folder_of(tmp_path / "two", [*documents[before:], *documents[:before]])
    ingest([again], out, append=True, level=1)
    grown = Corpus.open(out)
    assert grown.split_rule == small.split_rule
    assert not trained_on & set(pieces_of(grown, "validation"))
    assert set(pieces_of(small, "validation")) <= set(pieces_of(grown, "validation"))
    new = grown.raw_bytes("validation") - small.raw_bytes("validation")
    assert 0 < new < 0.05 * 6200 * (after - before)


def test_a_corpus_without_validation_stays_so_but_one_too_small_for_it_gets_some(tmp_path: Path) -> None:
    tiny, more = [lines(30, 0)], [lines(200, number) for number in range(1, 50)]
    for name, fraction in (("off", 0.0), ("all train", None)):
        out = tmp_path / name
        ingest([folder_of(tmp_path / f"{name} 1", tiny)], out, validation_fraction=fraction)
        assert Corpus.open(out).split_rule["name"] == name
        report = ingest([folder_of(tmp_path / f"{name} 2", more)], out, append=True)
        corpus = Corpus.open(out)
        assert pieces_of(corpus, "train")[0] == tiny[0]
        if name == "off":
            assert (corpus.splits, report.split_rule) == (("train",), "off")
        else:
            assert report.split_rule == "small corpus"
            assert report.validation_bytes > 4096


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            {"validation_fraction": 0.2},
            r"validation_fraction = 0\.2: the corpus at .* was made with 0\.05, which holds",
        ),
        ({"frame_bytes": 4096}, "frame_bytes = 4096: the corpus at .* was made with 262144, which holds"),
    ],
)
def test_what_a_corpus_decides_cannot_be_asked_for_otherwise(tmp_path: Path, words: dict[str, Any], said: str) -> None:
    out = tmp_path / "corpus"
    one = folder_of(tmp_path / "one", [lines(200, number) for number in range(9)])
    ingest([one], out, validation_fraction=0.05)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConfigError, match=said):
        ingest([folder_of(tmp_path / "two", [b"new"])], out, append=True, **words)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    ingest([tmp_path / "two"], out, append=True, validation_fraction=0.05)


def test_there_must_be_a_corpus_to_append_to(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "one", [b"x"])
    with pytest.raises(CorpusError, match="no corpus at"):
        ingest([source], tmp_path / "nowhere", append=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_failed_appending_leaves_the_corpus_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    ingest([folder_of(tmp_path / "one", [b"one"])], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupt(_: IngestProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([folder_of(tmp_path / "two", [b"two"])], out, append=True, on_progress=interrupt)
    with pytest.raises(SourceError, match=r"nothing to append: .* \(1 duplicate\)"):
        ingest([tmp_path / "one"], out, append=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_damaged_digests_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    ingest([folder_of(tmp_path / "one", [b"one"])], out)
    place = out / Corpus.open(out).digests[0].name
    place.write_bytes(place.read_bytes()[::-1])
    with pytest.raises(CorpusError, match=r"documents-00000\.xxh128 is damaged"):
        ingest([folder_of(tmp_path / "two", [b"two"])], out, append=True)
    place.unlink()
    with pytest.raises(CorpusError, match=r"cannot read .*documents-00000\.xxh128"):
        ingest([tmp_path / "two"], out, append=True)
