"""Ingestion: everything or nothing, and the same corpus from the same files."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.ingest import IngestProgress, ingest
from bytelm.data.shards import INDEX, Corpus
from bytelm.errors import ConfigError, CorpusError, SourceError, StorageError


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of documents, 60 kB of lines in all."""
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    chance = random.Random(1)
    for number in range(20):
        name = folder / ("sub" if number % 2 else "") / f"{number:02d}.txt"
        name.write_bytes(b"".join(b"%030x\n" % chance.getrandbits(120) for _ in range(100)))
    return folder


def everything(corpus: Corpus) -> dict[str, list[bytes]]:
    return {split: list(corpus.documents(split)) for split in corpus.splits}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=6), st.sampled_from([0.0, 0.01, 0.5]))
def test_any_documents_come_back_whole(documents: list[bytes], fraction: float) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "files"
        folder.mkdir()
        for number, document in enumerate(documents):
            (folder / f"{number}").write_bytes(document)
        full = [document for document in documents if document]
        if not full:
            with pytest.raises(SourceError, match="nothing to ingest: not one byte was found"):
                ingest([folder], Path(place) / "corpus")
            assert not (Path(place) / "corpus").exists()
            return
        report = ingest([folder], Path(place) / "corpus", validation_fraction=fraction, frame_bytes=700, level=1)
        corpus = Corpus.open(Path(place) / "corpus")
        assert report.documents == len(full)
        assert report.skipped["empty"] == len(documents) - len(full)
        assert report.raw_bytes == report.train_bytes + report.validation_bytes == sum(map(len, full))
        pieces = [piece for split in corpus.splits for piece in corpus.pieces(split)]
        assert sum(piece.starts for piece in pieces) == sum(piece.ends for piece in pieces) == len(full)
        if report.validation_bytes == 0:
            assert list(corpus.documents("train")) == full
        else:
            assert sorted(b"".join(piece.data for piece in pieces)) == sorted(b"".join(full))
            assert all(any(piece.data in document for document in full) for piece in pieces)


def test_the_report_agrees_with_the_corpus(files: Path, tmp_path: Path) -> None:
    (files / "empty").touch()
    (files / "link").symlink_to("nowhere")
    report = ingest([files], tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    assert report.fingerprint == corpus.fingerprint
    assert report.train_bytes == corpus.raw_bytes("train")
    assert report.validation_bytes == corpus.raw_bytes("validation")
    assert report.shards == len(corpus.all_shards)
    assert report.packed_bytes == sum((corpus.path / shard.name).stat().st_size for shard in corpus.all_shards)
    assert {reason: count for reason, count in report.skipped.items() if count} == {"empty": 1, "link": 1}
    assert {reason: count.documents for reason, count in corpus.skipped.items()} == {"empty": 1, "link": 1}
    assert corpus.sources == ({"name": str(files), "documents": 20, "raw_bytes": report.raw_bytes},)
    assert corpus.split_rule["name"] == report.split_rule == "small corpus"
    assert report.as_json()["ratio"] == round(report.raw_bytes / report.packed_bytes, 4)


def test_the_same_files_give_the_same_corpus_elsewhere_and_later(files: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(files, tmp_path / "other" / "place")
    for path in moved.rglob("*.txt"):
        os.utime(path, (1, 1))
    ours = ingest([files], tmp_path / "one")
    theirs = ingest([moved], tmp_path / "two")
    assert theirs.fingerprint == ours.fingerprint
    assert everything(Corpus.open(tmp_path / "one")) == everything(Corpus.open(tmp_path / "two"))


def test_the_corpus_is_never_read_as_a_source(files: Path) -> None:
    first = ingest([files], files / "corpus")
    again = ingest([files], files / "corpus", overwrite=True)
    assert again.fingerprint == first.fingerprint
    with pytest.raises(SourceError, match="which is --out"):
        ingest([files / "corpus"], files / "corpus", overwrite=True)


def test_a_corpus_is_only_replaced_on_request(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    first = ingest([files], out)
    (files / "00.txt").write_bytes(b"something else\n" * 500)
    before = listing(out)
    with pytest.raises(CorpusError, match=r"already holds a corpus; .* add --overwrite"):
        ingest([files], out)
    assert listing(out) == before
    second = ingest([files], out, overwrite=True)
    assert second.fingerprint == Corpus.open(out).fingerprint != first.fingerprint
    assert listing(out) == [INDEX, *sorted(shard.name for shard in Corpus.open(out).all_shards)]


def test_a_failed_replacement_leaves_the_old_corpus(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    ingest([files], out)
    before = everything(Corpus.open(out))
    names = listing(out)
    with pytest.raises(KeyboardInterrupt):
        ingest([files], out, overwrite=True, on_progress=interrupt)
    assert listing(out) == names
    assert everything(Corpus.open(out)) == before


def interrupt(_: IngestProgress) -> None:
    raise KeyboardInterrupt


def test_a_failure_leaves_nothing_behind(files: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ingest([files], tmp_path / "corpus", on_progress=interrupt)
    assert not (tmp_path / "corpus").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyboardInterrupt):
        ingest([files], tmp_path / "empty", on_progress=interrupt)
    assert listing(tmp_path / "empty") == []


def test_a_source_that_vanishes_ends_it_with_nothing_behind(files: Path, tmp_path: Path) -> None:
    big = files / "zz"
    big.write_bytes(b"x" * (17 << 20))
    (files / "zzz").write_bytes(b"y")

    def take_away(_: IngestProgress) -> None:
        (files / "zzz").unlink(missing_ok=True)

    with pytest.raises(SourceError, match=r"zzz': there is no such file"):
        ingest([files], tmp_path / "corpus", on_progress=take_away, level=1)
    assert not (tmp_path / "corpus").exists()


KILLED = """
import os, signal, sys
from bytelm.data.ingest import ingest
seen = 0
def kill(progress):
    global seen
    seen += 1
    if seen == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
ingest([sys.argv[1]], sys.argv[2], overwrite=len(sys.argv) > 4, shard_bytes=10_000, on_progress=kill)
"""


@pytest.mark.parametrize("pieces", [1, 40])
def test_what_a_killed_ingestion_left_is_no_corpus_and_in_nobodys_way(files: Path, tmp_path: Path, pieces: int) -> None:
    out = tmp_path / "corpus"
    killed = subprocess.run([sys.executable, "-c", KILLED, files, out, str(pieces)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert listing(out)
    with pytest.raises(CorpusError, match="no corpus at"):
        Corpus.open(out)
    report = ingest([files], out)
    assert report.fingerprint == ingest([files], tmp_path / "undisturbed").fingerprint
    assert listing(out) == listing(tmp_path / "undisturbed")


def test_a_replacement_that_is_killed_leaves_the_old_corpus(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    ingest([files], out)
    before = everything(Corpus.open(out))
    killed = subprocess.run([sys.executable, "-c", KILLED, files, out, "40", "overwrite"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert everything(Corpus.open(out)) == before
    ingest([files], out, overwrite=True)
    assert listing(out) == [INDEX, *sorted(shard.name for shard in Corpus.open(out).all_shards)]


def test_a_second_writer_is_refused_while_the_first_writes(files: Path, tmp_path: Path) -> None:
    refused = []

    def try_too(_: IngestProgress) -> None:
        if not refused:
            with pytest.raises(CorpusError, match="another process is ingesting into"):
                ingest([files], tmp_path / "corpus")
            refused.append(True)

    report = ingest([files], tmp_path / "corpus", on_progress=try_too)
    assert refused
    assert Corpus.open(tmp_path / "corpus").fingerprint == report.fingerprint


def interrupted_at(line: int, work: Callable[[], object]) -> int:
    """Run something and interrupt it at the n-th line of the modules that write; how many lines it came to."""
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        if Path(frame.f_code.co_filename).name not in ("ingest.py", "shards.py", "files.py"):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            work()
    finally:
        sys.settrace(None)
    return seen


# An interrupt between the end of a with block and its exit leaves a file to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_leaves_the_old_corpus_or_the_new_one_whole(files: Path, tmp_path: Path) -> None:
    other = shutil.copytree(files, tmp_path / "other")
    (other / "00.txt").write_bytes(b"something else\n" * 100)
    out = tmp_path / "corpus"

    def replace() -> None:
        ingest([other], out, overwrite=True, level=1)

    ingest([files], out, level=1)
    old = everything(Corpus.open(out))
    lines = interrupted_at(0, replace)
    new = everything(Corpus.open(out))
    ingest([files], out, overwrite=True, level=1)
    outcomes = []
    for line in [*range(1, lines - 60, 199), *range(lines - 60, lines)]:
        interrupted_at(line, replace)
        outcomes.append(everything(Corpus.open(out)))
        assert outcomes[-1] in (old, new)
        if outcomes[-1] == new:
            ingest([files], out, overwrite=True, level=1)
    assert old in outcomes
    assert new in outcomes


def test_a_folder_with_other_files_is_left_alone(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(CorpusError, match=r"is not empty and holds no corpus, but 'thesis\.tex'"):
            ingest([files], out, overwrite=overwrite)
    assert listing(out) == ["thesis.tex"]


def test_an_out_that_is_a_file_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="it is a file, not a folder; choose another --out"):
        ingest([files], tmp_path / "file")
    with pytest.raises(StorageError, match="choose another --out"):
        ingest([files], tmp_path / "file" / "below")


FULL_DISK = """
import resource, signal, sys
from bytelm.data.ingest import ingest
from bytelm.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    ingest([sys.argv[1]], sys.argv[2], frame_bytes=4096)
except StorageError as error:
    sys.exit(0 if "train-00000.zst" in str(error) else 3)
"""


def test_a_disk_that_refuses_is_named_and_left_clean(files: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, files, tmp_path / "corpus"], check=False)
    assert done.returncode == 0
    assert not (tmp_path / "corpus").exists()


def test_names_that_are_no_utf8_are_ingested(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"files\xff")
    folder.mkdir()
    (folder / os.fsdecode(b"\xfe\x01name\n")).write_bytes(b"content")
    report = ingest([folder], tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    assert list(corpus.documents("train")) == [b"content"]
    assert report.documents == 1
    assert corpus.sources[0]["name"].endswith("files\\xff")


def test_a_document_larger_than_what_is_held_takes_constant_memory(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(160 << 20)
    tracemalloc.start()
    report = ingest([tmp_path / "large"], tmp_path / "corpus", level=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.raw_bytes == 160 << 20
    assert peak < 40 << 20


@pytest.mark.parametrize(
    "settings",
    [
        {"level": 0},
        {"level": 23},
        {"validation_fraction": -0.1},
        {"validation_fraction": 0.6},
        {"validation_fraction": float("nan")},
        {"frame_bytes": 0},
        {"shard_bytes": 0},
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    files: Path, tmp_path: Path, settings: dict[str, float]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ingest([files], tmp_path / "corpus", **settings)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "corpus").exists()
