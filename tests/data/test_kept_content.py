"""Content that is kept between the two readings of an ingestion: the same corpus, and the sources are read once."""

import gzip
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.engine import Processes
from bytelm.data.ingest import IngestProgress, ingest
from bytelm.data.kept_content import LEAST_FREE, ContentReader, ContentWriter, is_dear
from bytelm.data.sources import Unit
from bytelm.errors import SourceError, StorageError

USAGE = shutil.disk_usage(tempfile.gettempdir())
needs_room = pytest.mark.skipif(USAGE.free < 1.1 * LEAST_FREE * USAGE.total, reason="the disk is too full to keep much")
SMALL = 10_000  # bytes of a shard, for several partitions within an archive


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.binary(min_size=1, max_size=400_000), min_size=1, max_size=3), min_size=1, max_size=8))
def test_what_is_kept_is_read_from_any_place(documents: list[list[bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "content")
        writer = ContentWriter(file, least_free=0)
        for blocks in documents:
            for number, block in enumerate(blocks):
                writer.add(block, begins=number == 0)
        assert not file.exists(), "it is there when everything is in it"
        writer.finish()
        reader = ContentReader(str(file))
        places, offset = [], 0
        for document in map(b"".join, documents):
            places.append((offset, document))
            offset += len(document)
        for place, document in [*places, *reversed(places)]:
            blocks = list(reader.blocks(place, len(document)))
            assert b"".join(blocks) == document
            assert all(0 < len(block) <= 1 << 20 for block in blocks)


def test_nothing_is_kept_where_there_is_no_room_or_nothing_to_keep(tmp_path: Path) -> None:
    (tmp_path / "is_a_file").touch()
    for number, writer in enumerate(
        (
            ContentWriter(tmp_path / "a", least_free=1.0),
            ContentWriter(tmp_path / "is_a_file" / "b", least_free=0),
            ContentWriter(tmp_path / "c", least_free=0),
            ContentWriter(tmp_path / "d", least_free=0),
        )
    ):
        if number < 3:
            writer.add(b"block", begins=True)
        if number == 2:
            writer.give_up()
            writer.add(b"block", begins=True)
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["is_a_file"]


def test_what_is_compressed_or_elsewhere_is_kept_and_plain_files_are_not() -> None:
    dear = ["tar+gz", "tar+xz!", "file+zst", "zip", "zip!", "jsonl+gz", "parquet", "hf"]
    assert all(is_dear(Unit(0, b"/a", form, 1)) for form in dear)
    assert not any(is_dear(Unit(0, b"/a", form, 1)) for form in ("file", "tar", "tar!", "jsonl", "folder"))
    assert is_dear(Unit(0, b"s3://bucket/a", "file", 1))


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """A file, an archive, a compressed file, an archive of which the end is damaged, and another file."""
    folder = tmp_path / "files"
    folder.mkdir()
    chance = random.Random(1)
    for number in range(30):
        lines = [b"%030x\n" % chance.getrandbits(120) for _ in range(chance.randrange(200))]
        (folder / f"{number:02d}").write_bytes(b"".join(lines))
    (folder / "copy").write_bytes((folder / "07").read_bytes())
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), "gztar", folder))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[::-1])
    cut = Path(shutil.make_archive(str(tmp_path / "cut"), "gztar", folder))
    cut.write_bytes(cut.read_bytes()[:-9000])
    (tmp_path / "first").write_bytes(b"first\n" * 1000)
    (tmp_path / "last").write_bytes(b"last\n" * 1000)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"packed\n" * 5000))
    return [tmp_path / "first", whole, tmp_path / "packed.gz", cut, tmp_path / "last"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_twice(sources: list[Path], out: Path) -> dict[str, bytes]:
    """The corpus that is made when nothing is kept, as after a kill at the end of the survey."""

    def stop(progress: IngestProgress) -> None:
        if progress.phase == "write":
            raise SourceError("stopped")

    with pytest.raises(SourceError, match="stopped"):
        ingest(sources, out, on_error="skip", shard_bytes=SMALL, on_progress=stop, workers=1)
    assert not list((out / ".ingest").glob("content*")), "of no use for resuming"
    ingest(sources, out, on_error="skip", shard_bytes=SMALL, resume=True, workers=1)
    return contents(out)


def when_writing_begins(out: Path, work: Callable[[Path], None]) -> Callable[[IngestProgress], None]:
    done: list[bool] = []

    def on_progress(progress: IngestProgress) -> None:
        if progress.phase == "write" and not done:
            done.append(True)
            work(out / ".ingest")

    return on_progress


@needs_room
@pytest.mark.parametrize("workers", [1, 3])
def test_sources_that_are_dear_are_read_once_and_the_corpus_is_the_same(
    sources: list[Path], tmp_path: Path, workers: int
) -> None:
    expected = read_twice(sources, tmp_path / "twice")
    out = tmp_path / "once"

    def remove_archives(journal: Path) -> None:
        assert list(journal.glob("content*"))
        for source in sources[1:4]:
            source.unlink()

    # The head is read before the first byte is written, so that the first tally of writing is soon enough.
    with Processes(workers) as engine:
        ingest(
            sources,
            out,
            on_error="skip",
            shard_bytes=SMALL,
            engine=engine,
            on_progress=when_writing_begins(out, remove_archives),
        )
    assert contents(out) == expected
    assert len([name for name in expected if name.startswith("train")]) > 5


@needs_room
def test_damage_to_what_is_kept_is_an_error_and_resuming_reads_the_sources_again(
    sources: list[Path], tmp_path: Path
) -> None:
    expected = read_twice(sources, tmp_path / "twice")
    out = tmp_path / "corpus"

    def damage(journal: Path) -> None:
        (file,) = journal.glob("content*")
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 1
        file.write_bytes(content)

    with pytest.raises(StorageError, match=r"content-000000 is gone or damaged .* with --resume reads the sources"):
        ingest(
            sources,
            out,
            on_error="skip",
            shard_bytes=SMALL,
            workers=1,
            on_progress=when_writing_begins(out, damage),
        )
    ingest(sources, out, on_error="skip", shard_bytes=SMALL, resume=True)
    assert contents(out) == expected
