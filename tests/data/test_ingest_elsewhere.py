"""Sources and corpora that lie elsewhere, and workers that are elsewhere: always the same bytes."""

import importlib.util
import random
import uuid
from pathlib import Path
from typing import Any

import pytest

from bytelm.data.engine import Processes, RayCluster
from bytelm.data.ingest import IngestProgress, ingest
from bytelm.data.shards import Corpus
from bytelm.data.storage import Folder, folder_at
from bytelm.errors import ConfigError, CorpusError, ShardError, SourceError, StorageError

WORDS: dict[str, Any] = {"shard_bytes": 30_000, "level": 1, "validation_fraction": 0.05}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Documents of several kinds, 120 kB in all, two of them equal."""
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    chance = random.Random(1)
    for number in range(40):
        (folder / f"{number:02d}.py").write_bytes(b"".join(b"%030x\n" % chance.getrandbits(120) for _ in range(100)))
    (folder / "sub" / "copy").write_bytes((folder / "07.py").read_bytes())
    (folder / "sub" / "binary").write_bytes(bytes(range(256)) * 4)
    return folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.names() if not name.endswith("/")}


def put_there(files: Path, address: str) -> str:
    """Copy a folder's files to an address."""
    target = folder_at(address)
    for path in files.rglob("*"):
        if path.is_file():
            target.write(str(path.relative_to(files)), path.read_bytes())
    return address


def without_index(found: dict[str, bytes]) -> dict[str, bytes]:
    """All but the index and the names of files, which say what the sources were given as."""
    return {name: content for name, content in found.items() if not name.endswith((".json", ".files.zst"))}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bucket_gives_and_takes_what_a_disk_does(files: Path, tmp_path: Path, bucket: str, workers: int) -> None:
    source = put_there(files, f"{bucket}/files")
    local = ingest([files], tmp_path / "corpus", **WORDS)
    remote = ingest([source], f"{bucket}/made/corpus", workers=workers, **WORDS)
    assert remote.fingerprint == local.fingerprint
    assert remote.corpus == f"{bucket}/made/corpus"
    found = folder_at(f"{bucket}/made/corpus")
    assert without_index(contents(found)) == without_index(contents(folder_at(tmp_path / "corpus")))
    assert found.names(".ingest") == []
    corpus, on_disk = Corpus.open(f"{bucket}/made/corpus"), Corpus.open(tmp_path / "corpus")
    assert corpus.kind_counts("train") == on_disk.kind_counts("train")
    for split in corpus.splits:
        assert list(corpus.documents(split)) == list(on_disk.documents(split))
    with pytest.raises(CorpusError, match="already holds a corpus"):
        ingest([source], f"{bucket}/made/corpus", **WORDS)
    (files / "more").write_bytes(b"more\n" * 100)
    for out in (tmp_path / "corpus", f"{bucket}/made/corpus"):
        ingest([files / "more"], out, append=True, level=1)
    assert Corpus.open(f"{bucket}/made/corpus").fingerprint == Corpus.open(tmp_path / "corpus").fingerprint


def test_an_ingestion_into_a_bucket_is_resumed(files: Path, tmp_path: Path, bucket: str) -> None:
    out = f"{bucket}/corpus"

    def interrupt(progress: IngestProgress) -> None:
        if progress.phase == "write" and progress.raw_bytes > 60_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([files], out, **WORDS, on_progress=interrupt)
    with pytest.raises(CorpusError, match="holds an unfinished ingestion; add --resume"):
        ingest([files], out, **WORDS)
    report = ingest([files], out, resume=True, **WORDS)
    assert report.fingerprint == ingest([files], tmp_path / "undisturbed", **WORDS).fingerprint
    undisturbed = contents(folder_at(tmp_path / "undisturbed"))
    assert contents(folder_at(out)) == undisturbed
    ingest([files / "sub"], out, overwrite=True, **WORDS)
    ingest([files / "sub"], tmp_path / "sub", **WORDS)
    assert Corpus.open(out).fingerprint == Corpus.open(tmp_path / "sub").fingerprint
    assert len(contents(folder_at(out))) == len(contents(folder_at(tmp_path / "sub")))


def test_what_a_bucket_lacks_is_named(files: Path, bucket: str) -> None:
    with pytest.raises(StorageError, match=r"cannot write s3://nowhere-[0-9a-f]+/corpus/"):
        ingest([files], f"s3://nowhere-{uuid.uuid4().hex}/corpus", **WORDS)
    with pytest.raises(SourceError, match="nothing-here"):
        ingest([f"{bucket}/nothing-here"], f"{bucket}/corpus", **WORDS)
    assert folder_at(bucket).names() == []
    folder_at(bucket).write("thesis.tex", b"years of work")
    with pytest.raises(CorpusError, match=r"is not empty and holds no corpus, but 'thesis\.tex'"):
        ingest([files], bucket, overwrite=True, **WORDS)
    with pytest.raises(CorpusError, match=r"no corpus at s3://.*: it has no index\.json"):
        Corpus.open(bucket)


def test_a_shard_that_a_bucket_has_lost_or_damaged_is_named(files: Path, bucket: str) -> None:
    ingest([files], f"{bucket}/corpus", **WORDS)
    corpus = Corpus.open(f"{bucket}/corpus")
    name = corpus.shards("train")[1].name
    content = bytearray(corpus.folder.read(name))
    content[len(content) // 2] ^= 1
    corpus.folder.write(name, bytes(content))
    with pytest.raises(ShardError, match=rf"{bucket}/corpus/{name}.* is damaged"):
        list(corpus.documents("train"))
    corpus.folder.remove(name)
    with pytest.raises(ShardError, match=rf"{bucket}/corpus/{name} is missing"):
        list(corpus.documents("train"))


def test_memory_gives_and_takes_what_a_disk_does(files: Path, tmp_path: Path) -> None:
    place = f"memory://{uuid.uuid4().hex}"
    source = put_there(files, f"{place}/files")
    remote = ingest([source], f"{place}/corpus", **WORDS)
    local = ingest([files], tmp_path / "corpus", **WORDS)
    assert remote.fingerprint == local.fingerprint
    assert without_index(contents(folder_at(f"{place}/corpus"))) == without_index(
        contents(folder_at(tmp_path / "corpus"))
    )
    with pytest.raises(ConfigError, match="memory://"):
        ingest([source], f"{place}/other", workers=2, **WORDS)


def test_a_ray_cluster_makes_the_very_same_corpus(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'bytelm[ray]'")
    words = {**WORDS, "near_duplicates": 0.8} if importlib.util.find_spec("rensa") else WORDS
    ingest([files], tmp_path / "here", workers=1, **words)
    with Processes(2) as engine:
        ingest([files], tmp_path / "processes", engine=engine, **words)
    with RayCluster(workers=2) as engine:
        ingest([files], tmp_path / "ray", engine=engine, **words)
        (files / "damaged.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03rubbish")
        with pytest.raises(SourceError, match=r"damaged\.gz") as caught:
            ingest([files], tmp_path / "refused", engine=engine, on_error="stop", **words)
        assert caught.value.reason == "damaged"
        assert not (tmp_path / "refused").exists()
        with pytest.raises(ConfigError, match="memory://"):
            ingest([files], "memory://ray/corpus", engine=engine, **words)
    here = contents(folder_at(tmp_path / "here"))
    assert len(here) > 6
    assert contents(folder_at(tmp_path / "processes")) == here
    assert contents(folder_at(tmp_path / "ray")) == here
