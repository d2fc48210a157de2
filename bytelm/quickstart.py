"""From nothing to a byte model that speaks: the shipped sample ingested, a small model trained, its decoders compared.

Each stage is skipped where its result is there already, so that an interrupted quickstart goes on where it was.
"""

import importlib.resources
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zstandard

from bytelm.checkpoint import load_model
from bytelm.config import RunConfig
from bytelm.data.ingest import IngestProgress, ingest
from bytelm.data.shards import INDEX, Corpus
from bytelm.files import refusals_named
from bytelm.report import SideBySide, side_by_side, write_report
from bytelm.train import Event as TrainEvent
from bytelm.train import Finished, train

PROMPTS: Final = (
    b"ROMEO:\n",
    b"First Citizen:\nWe are ",
    b"Everyone has the right to ",
    b"KING RICHARD III:\nThe ",
)
"""What the model is asked to continue: both kinds of text of the sample."""


@dataclass(frozen=True, kw_only=True)
class CorpusReady:
    """The sample is ingested."""

    corpus: Path
    documents: int
    raw_bytes: int
    packed_bytes: int
    reused: bool
    """It was there already, from a quickstart before this one."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A prompt was decoded with and without drafts."""

    comparison: SideBySide


@dataclass(frozen=True, kw_only=True)
class Reported:
    """The last record: the page is written."""

    run: Path
    page: Path
    comparisons: tuple[SideBySide, ...]


Event = CorpusReady | TrainEvent | Compared | Reported


def quickstart(
    out: Path,
    config: RunConfig,
    *,
    max_bytes: int = 256,
    on_ingest: Callable[[IngestProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Ingest the sample, train on it, decode with and without drafts, write the report.

    Args:
        out: Folder for everything: ``sample/``, ``corpus/`` and ``run/`` are made in it.
        config: Settings of the training.
        max_bytes: Bytes to generate for each prompt, at least 1.
        on_ingest: Called while the sample is ingested.
        should_stop: Asked before each training step; True saves the run and ends without a report.

    Yields:
        ``CorpusReady``, the records of ``train``, one ``Compared`` a prompt, and ``Reported``.

    Raises:
        BytelmError: As the stages do.
    """
    yield _corpus(out, on_ingest)
    run = out / "run"
    for event in train(config, out / "corpus", run, resume="auto", should_stop=should_stop):
        yield event
        if isinstance(event, Finished) and event.reason == "stopped":
            return
    model, trained_with = load_model(run)
    model.pack()
    comparisons = []
    for prompt in PROMPTS:
        comparison = side_by_side(model, prompt, max_bytes=max_bytes, context_bytes=trained_with.data.window_bytes)
        comparisons.append(comparison)
        yield Compared(comparison=comparison)
    yield Reported(run=run, page=write_report(run, comparisons), comparisons=tuple(comparisons))


def _corpus(out: Path, on_ingest: Callable[[IngestProgress], None] | None) -> CorpusReady:
    folder = out / "corpus"
    reused = (folder / INDEX).exists()
    if not reused:
        unpack_sample(out / "sample")
        ingest([out / "sample"], folder, overwrite=True, on_progress=on_ingest)
    corpus = Corpus.open(folder)
    shards = [shard for split in corpus.splits for shard in corpus.shards(split)]
    return CorpusReady(
        corpus=folder,
        documents=sum(shard.documents for shard in shards),
        raw_bytes=sum(shard.raw_bytes for shard in shards),
        packed_bytes=sum(shard.packed_bytes for shard in shards),
        reused=reused,
    )


def unpack_sample(folder: Path) -> None:
    """Unpack the sample that ships with bytelm: Shakespeare, and a declaration in 36 languages, 1.7 MB.

    Args:
        folder: Made if missing; files in it of the same names are replaced.

    Raises:
        StorageError: The disk refuses.
    """
    packed = importlib.resources.files("bytelm.data").joinpath("sample.tar.zst").read_bytes()
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (
            zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as tar,
            tarfile.open(fileobj=tar, mode="r|") as archive,
        ):
            archive.extractall(folder, filter="data")
