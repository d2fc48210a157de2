"""From nothing to a byte model that speaks.

The model that ships says what it would, with and without drafts; then the shipped sample, or files of one's own, are
ingested, a small model is trained on them, and its decoders are compared. Each stage is skipped where its result is
there already, so that an interrupted quickstart goes on where it was.
"""

import importlib.resources
import io
import itertools
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zstandard

from bytelm.api import LanguageModel, load
from bytelm.config import RunConfig
from bytelm.data.ingest import IngestProgress, ingest
from bytelm.data.shards import INDEX, Corpus
from bytelm.errors import ConfigError
from bytelm.files import refusals_named, write_file
from bytelm.held_out import of_corpus
from bytelm.report import SideBySide, side_by_side, write_report
from bytelm.shipped import shipped_models
from bytelm.train import Event as TrainEvent
from bytelm.train import Finished, train

PROMPTS: Final = (
    b"ROMEO:\n",
    b"First Citizen:\nWe are ",
    b"Everyone has the right to ",
    b"KING RICHARD III:\nThe ",
)
"""What the model is asked to continue: both kinds of text of the sample."""

TEMPERATURE: Final = 0.8
"""At which all of them are continued: greedy text of small models ends in loops, which say nothing and draft well."""

SHIPPED: Final = "nano"
SHIPPED_PROMPTS: Final = (b"import argparse\n\n\ndef main(", b"The function returns ")
"""What the shipped model is asked to continue: code and documentation."""

_SOURCE: Final = "source.txt"
_PROMPT_BYTES: Final = 24


@dataclass(frozen=True, kw_only=True)
class Spoke:
    """The shipped model has continued a prompt."""

    comparison: SideBySide


@dataclass(frozen=True, kw_only=True)
class NotShipped:
    """This installation carries no model: a source tree without weights."""

    name: str


@dataclass(frozen=True, kw_only=True)
class CorpusReady:
    """The sample, or what was given, is ingested."""

    corpus: Path
    documents: int
    raw_bytes: int
    packed_bytes: int
    reused: bool
    """It was there already, from a quickstart before this one."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model is there and its decoding begins, or its page is being written: what takes some seconds.

    Attributes:
        what: Is being done.
    """

    what: str


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


Event = Spoke | NotShipped | CorpusReady | Loaded | TrainEvent | Compared | Reported


def quickstart(
    out: Path,
    config: RunConfig,
    *,
    source: Path | None = None,
    max_bytes: int = 256,
    on_ingest: Callable[[IngestProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Let the shipped model speak, ingest, train, decode with and without drafts, write the report.

    Args:
        out: Folder for everything: ``sample/``, ``corpus/`` and ``run/`` are made in it.
        config: Settings of the training.
        source: What to train on instead of the sample: a file, an archive, a folder of files, or a corpus.
        max_bytes: Bytes to generate for each prompt, at least 1.
        on_ingest: Called while the sample is ingested.
        should_stop: Asked before each training step; True saves the run and ends without a report.

    Yields:
        ``Spoke`` for each prompt of the shipped model, or ``NotShipped``; ``CorpusReady``, the records of ``train``,
        one ``Compared`` a prompt, and ``Reported``; ``Loaded`` before what takes some seconds.

    Raises:
        BytelmError: As the stages do.
    """
    yield from _shipped(max_bytes)
    yield Loaded(what="ingesting the files")
    ready = _corpus(out, source, on_ingest)
    yield ready
    run = out / "run"
    for event in train(config, ready.corpus, run, resume="auto", should_stop=should_stop):
        yield event
        if isinstance(event, Finished) and event.reason == "stopped":
            return
    yield Loaded(what="decoding with the model that was trained")
    model = load(run, device="cpu")
    comparisons = []
    for prompt in PROMPTS if source is None else _beginnings(ready.corpus):
        comparison = _decoded(model, prompt, max_bytes)
        comparisons.append(comparison)
        yield Compared(comparison=comparison)
    yield Loaded(what="drawing the report")
    yield Reported(run=run, page=write_report(run, comparisons), comparisons=tuple(comparisons))


def _decoded(model: LanguageModel, prompt: bytes, max_bytes: int) -> SideBySide:
    return side_by_side(
        model.decoder,
        prompt,
        max_bytes=max_bytes,
        context_bytes=model.context_bytes,
        tuned=model.plan(),
        temperature=TEMPERATURE,
    )


def _shipped(max_bytes: int) -> Iterator[Spoke | NotShipped]:
    if SHIPPED not in shipped_models():
        yield NotShipped(name=SHIPPED)
        return
    # By its whole path, for a folder of that name may lie here.
    model = load(shipped_models()[SHIPPED], device="cpu")
    for prompt in SHIPPED_PROMPTS:
        yield Spoke(comparison=_decoded(model, prompt, max_bytes))


def _corpus(out: Path, source: Path | None, on_ingest: Callable[[IngestProgress], None] | None) -> CorpusReady:
    note, wanted = out / _SOURCE, "the sample" if source is None else str(source.resolve())
    if note.is_file() and (begun := note.read_text(encoding="utf-8")) != wanted:
        # It must not be gone on with as if it were of these files.
        raise ConfigError(f"{out} was begun with {begun}, not with {wanted}; choose another --out")
    folder = out / "corpus"
    reused = (folder / INDEX).exists()
    if source is not None and (source / INDEX).exists():
        folder, reused = source, True
    elif not reused:
        if source is None:
            unpack_sample(out / "sample")
        ingest([out / "sample" if source is None else source], folder, overwrite=True, on_progress=on_ingest)
    corpus = Corpus.open(folder)
    with refusals_named(out):
        out.mkdir(parents=True, exist_ok=True)
        write_file(note, wanted.encode())
    shards = [shard for split in corpus.splits for shard in corpus.shards(split)]
    return CorpusReady(
        corpus=folder,
        documents=sum(shard.documents for shard in shards),
        raw_bytes=sum(shard.raw_bytes for shard in shards),
        packed_bytes=sum(shard.packed_bytes for shard in shards),
        reused=reused,
    )


def _beginnings(corpus: Path) -> Iterator[bytes]:
    """How some held-out documents of a corpus begin, as many as the sample has prompts."""
    held_out = of_corpus(Corpus.open(corpus), "validation")
    for data, _ in itertools.islice(held_out.documents(), len(PROMPTS)):
        yield data[:_PROMPT_BYTES]


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
