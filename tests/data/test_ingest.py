"""Ingestion: everything or nothing, and the same corpus from the same files."""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data import table_rows, tables
from bytelm.data.engine import InThisProcess, Processes
from bytelm.data.filters import Filters
from bytelm.data.ingest import IngestProgress, ingest, is_unfinished, list_units
from bytelm.data.shards import INDEX, Corpus, Count
from bytelm.data.sources import ReadOptions, Skipped
from bytelm.errors import ConfigError, CorpusError, SourceError, StorageError

SMALL = 10_000  # bytes of a shard, for several partitions of a small corpus


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


class ThreadsOnly(InThisProcess):
    """As many workers, all of them threads: one job at a time."""

    def __init__(self, workers: int) -> None:
        self.workers = workers


@pytest.fixture(scope="module")
def two_processes() -> Iterator[Processes]:
    with Processes(2) as engine:
        yield engine


def everything(corpus: Corpus) -> dict[str, list[bytes]]:
    return {split: list(corpus.documents(split)) for split in corpus.splits}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def named(out: Path) -> list[str]:
    """What a folder with nothing but a corpus holds."""
    corpus = Corpus.open(out)
    return sorted([INDEX, *(file.name for file in (*corpus.all_shards, *corpus.digests, *corpus.files))])


@settings(deadline=None, max_examples=40)
@given(
    documents=st.lists(st.binary(max_size=3000), min_size=1, max_size=8),
    fraction=st.sampled_from([0.0, 0.01, 0.5]),
    keep_duplicates=st.booleans(),
    shard_bytes=st.sampled_from([500, 4000, 1 << 20]),
)
def test_any_documents_come_back_whole_however_many_processes_work(
    two_processes: Processes, documents: list[bytes], fraction: float, keep_duplicates: bool, shard_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "files", Path(place) / "corpus"
        folder.mkdir()
        for number, document in enumerate(documents):
            (folder / f"{number}").write_bytes(document)
        full = [document for document in documents if document]
        kept = full if keep_duplicates else list(dict.fromkeys(full))
        if not full:
            with pytest.raises(SourceError, match="nothing to ingest: not one byte was found"):
                ingest([folder], out)
            assert not out.exists()
            return
        words: dict[str, Any] = {
            "validation_fraction": fraction,
            "keep_duplicates": keep_duplicates,
            "shard_bytes": shard_bytes,
            "frame_bytes": 700,
            "level": 1,
        }
        report = ingest([folder], out, **words)
        ingest([folder], Path(place) / "parallel", **words, engine=two_processes)
        assert contents(out) == contents(Path(place) / "parallel")
        corpus = Corpus.open(out)
        assert report.documents == report.new.documents == len(kept)
        assert report.raw_bytes == report.train_bytes + report.validation_bytes == sum(map(len, kept))
        empty, twice = len(documents) - len(full), len(full) - len(kept)
        counts = {reason: count.documents for reason, count in report.skipped.items()}
        assert counts == {reason: count for reason, count in (("empty", empty), ("duplicate", twice)) if count}
        pieces = [piece for split in corpus.splits for piece in corpus.pieces(split)]
        assert sum(piece.starts for piece in pieces) == sum(piece.ends for piece in pieces) == len(kept)
        if report.validation_bytes == 0:
            whole = b"".join(piece.data for piece in pieces)
            assert whole == b"".join(kept)
            assert max(map(len, kept)) >= shard_bytes or list(corpus.documents("train")) == kept
        else:
            assert sorted(b"".join(piece.data for piece in pieces)) == sorted(b"".join(kept))
            assert all(any(piece.data in document for document in kept) for piece in pieces)


def test_the_report_agrees_with_the_corpus(files: Path, tmp_path: Path) -> None:
    (files / "empty").touch()
    (files / "link").symlink_to("nowhere")
    (files / "copy").write_bytes((files / "00.txt").read_bytes())
    report = ingest([files], tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    assert report.fingerprint == corpus.fingerprint
    assert report.train_bytes == corpus.raw_bytes("train")
    assert report.validation_bytes == corpus.raw_bytes("validation")
    assert report.shards == len(corpus.all_shards)
    assert report.packed_bytes == sum((corpus.path / shard.name).stat().st_size for shard in corpus.all_shards)
    assert report.skipped == corpus.skipped == {"empty": Count(1, 0), "link": Count(1, 0), "duplicate": Count(1, 3100)}
    assert corpus.sources == ({"name": str(files), "documents": 20, "raw_bytes": report.raw_bytes},)
    assert corpus.split_rule["name"] == report.split_rule == "small corpus"
    assert report.as_json()["ratio"] == round(report.raw_bytes / report.packed_bytes, 4)
    assert report.kinds == {"text": Count(20, report.raw_bytes)}


def test_kinds_are_counted_by_split_and_by_shard(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.py").write_text(f"print({number})\n" * 50)
        (folder / f"{number:02d}.bin").write_bytes(bytes([number]) * 700 + b"\0")
    report = ingest([folder], tmp_path / "corpus", shard_bytes=SMALL, validation_fraction=0.3)
    corpus = Corpus.open(tmp_path / "corpus")
    assert set(report.kinds) == {"python", "binary"}
    for split in ("train", "validation"):
        found: dict[str, Count] = {}
        for piece in corpus.pieces(split):
            kind = corpus.kinds[piece.kind]
            before = found.get(kind, Count(0, 0))
            found[kind] = Count(before.documents + piece.starts, before.raw_bytes + len(piece.data))
        assert corpus.kind_counts(split) == found
    for shard in corpus.all_shards:
        assert sum(count.raw_bytes for count in shard.kinds.values()) == shard.raw_bytes
        assert sum(count.documents for count in shard.kinds.values()) == shard.documents


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
    with pytest.raises(SourceError, match="which is --out"):
        ingest(["memory://here/corpus/below"], "memory://here/corpus")
    with pytest.raises(SourceError, match="which is --out"):
        ingest([f"file://{files}/corpus/x"], files / "corpus", overwrite=True)


def test_a_corpus_is_only_replaced_on_request(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    first = ingest([files], out)
    (files / "00.txt").write_bytes(b"something else\n" * 500)
    before = contents(out)
    with pytest.raises(CorpusError, match=r"already holds a corpus; .* add --overwrite to replace it or --append"):
        ingest([files], out)
    assert contents(out) == before
    second = ingest([files], out, overwrite=True)
    assert second.fingerprint == Corpus.open(out).fingerprint != first.fingerprint
    assert listing(out) == named(out)


def interrupt(_: IngestProgress) -> None:
    raise KeyboardInterrupt


def interrupt_writing(progress: IngestProgress) -> None:
    if progress.phase == "write" and progress.phase_bytes:
        raise KeyboardInterrupt


def test_a_failed_replacement_leaves_the_old_corpus(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    ingest([files], out)
    before = contents(out)
    with pytest.raises(KeyboardInterrupt):
        ingest([files], out, overwrite=True, on_progress=interrupt)
    assert contents(out) == before
    with pytest.raises(KeyboardInterrupt):
        ingest([files], out, overwrite=True, shard_bytes=SMALL, on_progress=interrupt_writing)
    assert {name: content for name, content in contents_of_files(out).items() if name in before} == before
    assert is_unfinished(out)


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_failure_before_anything_is_complete_leaves_nothing_behind(files: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ingest([files], tmp_path / "corpus", on_progress=interrupt)
    assert not (tmp_path / "corpus").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyboardInterrupt):
        ingest([files], tmp_path / "empty", on_progress=interrupt)
    assert listing(tmp_path / "empty") == []


def test_sources_are_found_wrong_before_a_byte_is_written(files: Path, tmp_path: Path) -> None:
    (files / "bad.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03rubbish")
    cases: list[tuple[list[Path], dict[str, Any]]] = [
        ([files], {"on_error": "stop"}),
        ([files, files / "bad.gz"], {}),
    ]
    for sources, words in cases:
        with pytest.raises(SourceError, match=r"bad\.gz"):
            ingest(sources, tmp_path / "corpus", **words)
        assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("on_error", ["named", "skip"])
def test_what_is_damaged_in_a_folder_is_left_out_counted_and_named(files: Path, tmp_path: Path, on_error: Any) -> None:
    (files / "bad.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03rubbish")
    (files / "recursion.tar").write_bytes(b"x/".ljust(100, b"\0") + bytes(412))
    report = ingest([files], tmp_path / "corpus", on_error=on_error)
    assert report.documents == 21  # what is no archive is taken as it is
    assert report.skipped["damaged"].documents == 1
    (fault,) = report.faults
    assert "bad.gz' is damaged" in fault
    assert report.as_json()["faults"] == (fault,)


def test_every_row_that_is_whole_is_taken_and_every_other_is_counted(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"row {number}"}).encode() for number in range(1000)]
    bad = {
        3: lines[3][:9],
        400: b'{"text": "caf\xe9"}',
        500: rb'{"text": "half \ud800"}',
        600: b'{"text": "\x01"}',
        999: b"\0",
    }
    stored = b"\n".join(bad.get(number, line) for number, line in enumerate(lines))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in ("a.jsonl", "b.jsonl"):
            member = tarfile.TarInfo(name)
            member.size = len(stored)
            archive.addfile(member, io.BytesIO(stored))
    places = {"a.jsonl": stored, "b.ndjson.gz": gzip.compress(stored), "c.tgz": content.getvalue()}
    for name, packed in places.items():
        (tmp_path / name).write_bytes(packed)
        out = tmp_path / f"{name}-corpus"
        report = ingest(
            [tmp_path / name],
            out,
            read=ReadOptions(field="text"),
            on_error="skip",
            keep_duplicates=True,
            validation_fraction=0,
            level=1,
        )
        times = 2 if name == "c.tgz" else 1
        assert {reason: count.documents for reason, count in report.skipped.items()} == {"damaged": 5 * times}
        whole = [f"row {number}".encode() for number in range(1000) if number not in bad]
        assert list(Corpus.open(out).documents("train")) == whole * times
        assert len(report.faults) == 3  # a few of each file
        with pytest.raises(SourceError, match="its line 4 is not JSON"):
            ingest([tmp_path / name], tmp_path / "stopped", read=ReadOptions(field="text"))


def test_rows_behind_a_bad_row_are_read_in_every_part_of_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "PART_BYTES", 4000)
    monkeypatch.setattr(table_rows, "MOST_ROW_BYTES", 1000)
    lines = [json.dumps({"text": f"row {number}"}) for number in range(1000)]
    lines[500], lines[700] = '{"text": "cut', json.dumps({"text": "x" * 9000})
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    words: dict[str, Any] = {"read": ReadOptions(field="text"), "validation_fraction": 0, "level": 1, "workers": 1}
    report = ingest([tmp_path / "a.jsonl"], tmp_path / "corpus", on_error="skip", **words)
    assert report.documents == 998
    assert report.skipped["damaged"].documents == 2


@pytest.mark.parametrize("name", ["a.txt", "a", "a.arrow", "a.json"])
def test_a_field_that_meets_no_table_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"other": "nothing"}\n')
    with pytest.raises(SourceError, match=rf"field = 'text' has no effect: no source is a table, such as '.*{name}'"):
        ingest([tmp_path / name], tmp_path / "corpus", read=ReadOptions(field="text"))
    assert not (tmp_path / "corpus").exists()


def test_what_is_no_table_beside_one_is_told(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.jsonl").write_bytes(b'{"text": "row"}')
    (files / "b.txt").write_bytes(b"no row")
    report = ingest([files], tmp_path / "corpus", read=ReadOptions(field="text"))
    assert report.no_rows == Count(1, 6)
    assert ingest([files], tmp_path / "plain").no_rows is None


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_wrong_column_is_refused_with_those_there_are(tmp_path: Path, name: str) -> None:
    rows = [{"id": number, "text": f"row {number}"} for number in range(5)]
    table = "id,text\n1,a\n" if name == "a.csv" else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(table)
    message = rf"{name}' has no field 'txt', but 'id', 'text'; name one of these"
    with pytest.raises(SourceError, match=message):
        ingest([tmp_path / name], tmp_path / "corpus", read=ReadOptions(field="txt"))
    (tmp_path / "files").mkdir()
    (tmp_path / name).rename(tmp_path / "files" / name)
    with pytest.raises(SourceError, match=rf"not one byte was found \(\d+ no_field\); .*{message}"):
        ingest([tmp_path / "files"], tmp_path / "corpus", read=ReadOptions(field="txt"))


def test_standard_input_is_a_table_where_a_field_is_asked_for(tmp_path: Path) -> None:
    stdin = io.BytesIO(b'{"text": "one"}\n{"text": "two"}\n')
    ingest(["-"], tmp_path / "corpus", read=ReadOptions(field="text"), validation_fraction=0, stdin=stdin)
    assert list(Corpus.open(tmp_path / "corpus").documents("train")) == [b"one", b"two"]


def test_shares_and_the_largest_binary_files_are_told(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.py").write_bytes(b"import os\n" * 10)
    (files / "a.txt").write_bytes(b"words\n" * 50)
    for number in range(5):
        (files / f"{number}.bin").write_bytes(bytes(range(256)) * (number + 1))
    report = ingest([files], tmp_path / "corpus")
    assert report.raw_bytes == 100 + 300 + 15 * 256
    assert report.shares == {
        name: size / report.raw_bytes for name, size in (("text", 300), ("code", 100), ("binary", 3840))
    }
    assert report.largest_binary == tuple((str(files / f"{n}.bin"), "binary", 256 * (n + 1)) for n in (4, 3, 2))


@pytest.mark.parametrize("damage", ["gone", "shorter", "other"])
def test_resume_of_a_finished_corpus_looks_at_its_shards(files: Path, tmp_path: Path, damage: str) -> None:
    words: dict[str, Any] = {"validation_fraction": 0, "level": 1}
    ingest([files], tmp_path / "corpus", **words)
    (tmp_path / "corpus" / ".index.json.1.part").touch()
    assert ingest([files], tmp_path / "corpus", resume=True, **words).was_complete
    assert not (tmp_path / "corpus" / ".index.json.1.part").exists()
    place = tmp_path / "corpus" / "train-00000.zst"
    content = place.read_bytes()
    place.unlink()
    if damage != "gone":
        place.write_bytes(content[:-1] if damage == "shorter" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorpusError, match=r"train-00000\.zst.*; make it again with --overwrite"):
        ingest([files], tmp_path / "corpus", resume=True, **words)


@pytest.mark.parametrize("size", [100, 3 << 20])
@pytest.mark.parametrize("change", ["other bytes", "longer", "shorter", "gone"])
def test_a_document_that_changes_after_the_survey_is_never_taken(
    files: Path, tmp_path: Path, size: int, change: str
) -> None:
    victim = files / "10.txt"
    victim.write_bytes(b"0123456789\n" * (size // 11))
    undisturbed = shutil.copytree(files, tmp_path / "undisturbed")
    (undisturbed / "10.txt").unlink()

    content = victim.read_bytes()

    def disturb(progress: IngestProgress) -> None:
        if progress.raw_bytes < len(content) + 19 * 3100:
            return  # not all of it has been surveyed
        if change == "gone":
            victim.unlink(missing_ok=True)
        else:
            victim.write_bytes({"other bytes": content[:-1] + b"!", "longer": content + b"!"}.get(change, content[:-1]))

    words: dict[str, Any] = {"validation_fraction": 0, "level": 1, "on_progress": disturb}
    with pytest.raises(SourceError, match=r"10\.txt' has changed since|10\.txt': there is no such file"):
        ingest([files], tmp_path / "stopped", **words)
    assert is_unfinished(tmp_path / "stopped")
    report = ingest([files], tmp_path / "stopped", resume=True, on_error="skip", validation_fraction=0, level=1)
    assert {name: count.documents for name, count in report.skipped.items()} == {"changed": 1}
    assert report.documents == 19
    expected = ingest([undisturbed], tmp_path / "expected", validation_fraction=0, level=1)
    assert report.fingerprint == expected.fingerprint
    assert listing(tmp_path / "stopped") == named(tmp_path / "stopped")


def test_a_second_writer_is_refused_while_the_first_writes(files: Path, tmp_path: Path) -> None:
    refused = []

    def try_too(_: IngestProgress) -> None:
        if not refused:
            for resume, overwrite in ((False, False), (True, False), (False, True)):
                with pytest.raises(CorpusError, match="another process is ingesting into"):
                    ingest([files], tmp_path / "corpus", resume=resume, overwrite=overwrite)
            refused.append(True)

    report = ingest([files], tmp_path / "corpus", on_progress=try_too)
    assert refused
    assert Corpus.open(tmp_path / "corpus").fingerprint == report.fingerprint


WRITERS = ("ingest.py", "ingest_start.py", "ingest_steps.py", "journal.py", "pack.py", "workplace.py", "storage.py")


def interrupted_at(line: int, work: Callable[[], object]) -> int:
    """Run something and interrupt it at the n-th line of the modules that write; how many lines it came to."""
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        if Path(frame.f_code.co_filename).name not in WRITERS:
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
        ingest([other], out, overwrite=True, level=1, shard_bytes=2 * SMALL)

    ingest([files], out, level=1)
    old = everything(Corpus.open(out))
    lines = interrupted_at(0, replace)
    new = everything(Corpus.open(out))
    new_fingerprint = Corpus.open(out).fingerprint
    ingest([files], out, overwrite=True, level=1)
    outcomes = []
    for line in [*range(1, lines - 100, 331), *range(lines - 100, lines, 3)]:
        interrupted_at(line, replace)
        outcomes.append(everything(Corpus.open(out)))
        assert outcomes[-1] in (old, new)
        if is_unfinished(out) and line % 4:
            ingest([other], out, resume=True, level=1, shard_bytes=2 * SMALL)
            assert Corpus.open(out).fingerprint == new_fingerprint
            assert listing(out) == named(out)
        if everything(Corpus.open(out)) == new or is_unfinished(out):
            ingest([files], out, overwrite=True, level=1)
            assert listing(out) == named(out)
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
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    ingest([sys.argv[1]], sys.argv[2], frame_bytes=4096, workers=int(sys.argv[3]), shard_bytes=int(sys.argv[4]))
except StorageError as error:
    said = str(error)
    sys.exit(0 if "train-00000.zst" in said and said.endswith("--resume goes on with what is done") else 3)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_disk_that_refuses_is_named_and_the_ingestion_goes_on_when_there_is_room(
    files: Path, tmp_path: Path, workers: str
) -> None:
    out = tmp_path / "corpus"
    words = [sys.executable, "-c", FULL_DISK, str(files), str(out), workers, "1000000"]
    assert subprocess.run(words, check=False).returncode == 0
    assert listing(out) == [".ingest"]
    report = ingest([files], out, frame_bytes=4096, shard_bytes=1_000_000, resume=True)
    undisturbed = ingest([files], tmp_path / "undisturbed", frame_bytes=4096, shard_bytes=1_000_000)
    assert report.fingerprint == undisturbed.fingerprint
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_names_that_are_no_utf8_are_ingested(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"files\xff")
    folder.mkdir()
    (folder / os.fsdecode(b"\xfe\x01name\n")).write_bytes(b"content")
    report = ingest([folder], tmp_path / "corpus", workers=2)
    corpus = Corpus.open(tmp_path / "corpus")
    assert list(corpus.documents("train")) == [b"content"]
    assert report.documents == 1
    assert corpus.sources[0]["name"].endswith("files\\xff")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_document_larger_than_what_is_held_takes_constant_memory(tmp_path: Path, threads: int) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(160 << 20)
    tracemalloc.start()
    report = ingest([tmp_path / "large"], tmp_path / "corpus", level=1, engine=ThreadsOnly(threads))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.raw_bytes == 160 << 20
    assert peak < 40 << 20


def test_many_files_are_surveyed_in_parts_with_the_same_outcome(tmp_path: Path, two_processes: Processes) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(5000):
        (folder / f"{number:04d}").write_bytes(b"%d\n" % (number % 4000) * 3)
    words: dict[str, Any] = {"shard_bytes": SMALL, "level": 1}
    ingest([folder], tmp_path / "one", workers=1, **words)
    ingest([folder], tmp_path / "two", engine=two_processes, **words)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    corpus = Corpus.open(tmp_path / "one")
    assert corpus.skipped == {"duplicate": Count(1000, 3 * sum(len(f"{number}\n") for number in range(1000)))}
    assert sum(shard.documents for shard in corpus.all_shards) == 4000


def test_an_archive_over_many_partitions_gives_the_same_with_any_number_of_workers(
    files: Path, tmp_path: Path, two_processes: Processes
) -> None:
    archive = shutil.make_archive(str(tmp_path / "archive"), "gztar", files)
    sources = [files / "00.txt", archive, files / "sub"]
    engines = {"one": None, "two": two_processes, "three": ThreadsOnly(3), "many": ThreadsOnly(40)}
    for out, engine in engines.items():
        ingest(sources, tmp_path / out, engine=engine, shard_bytes=SMALL, frame_bytes=512, validation_fraction=0)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    corpus = Corpus.open(tmp_path / "one")
    assert [source["documents"] for source in corpus.sources] == [1, 19, 0]
    assert sorted(corpus.documents("train")) == sorted(path.read_bytes() for path in files.rglob("*.txt"))
    assert len(corpus.all_shards) > 3


@pytest.mark.parametrize("form", ["bztar", "xztar", "gztar", "tar"])
def test_a_large_archive_gives_the_same_with_threads(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    chance = random.Random(form)
    for number in range(30):
        (folder / f"{number:02d}").write_bytes(chance.randbytes(chance.randrange(130_000)) + b"the same " * 20_000)
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), form, folder))
    assert archive.stat().st_size > 1 << 20, "only then a thread unpacks it"
    for workers in (1, 3):
        ingest([archive], tmp_path / str(workers), engine=ThreadsOnly(workers), level=1)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    found = [document for documents in everything(Corpus.open(tmp_path / "1")).values() for document in documents]
    assert len(b"".join(found)) == sum(path.stat().st_size for path in folder.iterdir())


def test_filters_count_what_they_leave_out(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    chance = random.Random(3)
    content = {
        "small.txt": b"x",
        "large.txt": b"large\n" * 3000,
        "noise.dat": chance.randbytes(5000) + b"\0",
        "binary.bin": b"\0binary" * 1000,
        "code.py": b"print('hello')\n" * 100,
        "prose.md": b"some words\n" * 100,
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    filters = Filters(min_bytes=2, max_bytes=10_000, max_bits_per_byte=7.5, only=("code", "binary"))
    report = ingest([folder], tmp_path / "corpus", filters=filters, validation_fraction=0)
    assert report.skipped == {
        "too_small": Count(1, 1),
        "too_large": Count(1, 18_000),
        "dense": Count(1, 5001),
        "other_kind": Count(1, 1100),
    }
    found = list(Corpus.open(tmp_path / "corpus").documents("train"))
    assert found == [content["binary.bin"], content["code.py"]]


def test_standard_input_is_a_source(files: Path, tmp_path: Path) -> None:
    report = ingest(
        [files / "00.txt", "-"], tmp_path / "corpus", stdin=io.BytesIO(b"from a pipe\n" * 10), validation_fraction=0
    )
    assert report.documents == 2
    corpus = Corpus.open(tmp_path / "corpus")
    assert list(corpus.documents("train")) == [(files / "00.txt").read_bytes(), b"from a pipe\n" * 10]
    assert corpus.sources[1]["name"] == "-"
    assert listing(tmp_path / "corpus") == named(tmp_path / "corpus")


def test_what_would_be_read_is_listed_without_touching_anything(files: Path, tmp_path: Path) -> None:
    (files / "link").symlink_to("nowhere")
    ingest([files], files / "corpus")
    found = list(list_units([files, "-"], files / "corpus", ReadOptions(exclude=("*1*",))))
    units = [unit for unit in found if not isinstance(unit, Skipped)]
    assert len(units) == 9 + 1
    assert sum(unit.stored_bytes for unit in units) == 9 * 3100
    assert {unit.reason for unit in found if isinstance(unit, Skipped)} == {"link", "excluded"}
    list(list_units([files], tmp_path / "nowhere", ReadOptions()))
    assert not (tmp_path / "nowhere").exists()


def test_progress_tells_both_phases_and_adds_up(files: Path, tmp_path: Path) -> None:
    told: list[IngestProgress] = []
    report = ingest([files], tmp_path / "corpus", shard_bytes=SMALL, on_progress=told.append)
    last = {progress.phase: progress for progress in told}
    assert list(last) == ["survey", "write"]
    for progress in last.values():
        assert (progress.documents, progress.raw_bytes) == (report.documents, report.raw_bytes)
    assert last["write"].total_bytes == report.raw_bytes
    assert last["write"].left_s == 0
    assert 0 < last["write"].packed_bytes <= report.packed_bytes


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
        {"near_duplicates": 0.1},
        {"workers": 0},
        {"on_error": "ignore"},
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    files: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ingest([files], tmp_path / "corpus", **settings)
    assert not (tmp_path / "corpus").exists()


def test_append_and_overwrite_contradict_each_other(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="append and overwrite contradict each other"):
        ingest([files], tmp_path / "corpus", append=True, overwrite=True)


def test_an_engine_has_workers_of_its_own(files: Path, two_processes: Processes) -> None:
    with pytest.raises(ConfigError, match="workers = 3: the engine that is given has workers of its own"):
        ingest([files], "nowhere", engine=two_processes, workers=3)


def test_memory_is_one_process_s_own(files: Path) -> None:
    ingest([files], "memory://own/corpus")
    found = Corpus.open("memory://own/corpus")
    assert sum(count.documents for count in found.kind_counts("train").values()) > 0
    with pytest.raises(ConfigError, match="workers = 2: what lies at memory://"):
        ingest([files], "memory://own/other", workers=2)
    with pytest.raises(ConfigError, match="memory://"):
        ingest(["memory://own/source"], "nowhere", engine=Processes(2))
