"""``bytelm ingest``: raw files in, a corpus out."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bytelm.cli import console
from bytelm.cli.quantities import size

if TYPE_CHECKING:
    from bytelm.data.ingest import IngestProgress, IngestReport

_LINE_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.1


def ingest(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Files and folders, any bytes at all.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the corpus, made if missing.")],
    level: Annotated[int, typer.Option("--level", help="zstd level: 3 fast, 9 default, 19 for publishing.")] = 9,
    validation_fraction: Annotated[
        float,
        typer.Option("--validation-fraction", help="Share held out by content hash; small corpora hold out more."),
    ] = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the corpus that is at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Pack files and folders into a corpus: zstd shards, document table, checksums.

    Folders are read to the bottom in the order of their paths, hidden files included. Symbolic links inside them,
    sockets, pipes, devices and empty files are passed over and counted.
    """
    from bytelm.data.ingest import ingest as make_corpus

    with _progress() as on_progress:
        report = make_corpus(
            sources,
            out,
            level=level,
            validation_fraction=validation_fraction,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if as_json:
        console.print_json(report.as_json())
    else:
        for line in _summary(report):
            console.result(line)


@contextlib.contextmanager
def _progress() -> Iterator["Callable[[IngestProgress], None]"]:
    """A live line on a terminal, a plain line now and then elsewhere; both on stderr."""
    people = console.people()
    if people.is_terminal:
        with people.status("reading …") as status:
            yield _at_most_every(_REDRAW_EVERY_S, lambda progress: status.update(_line(progress)))
    else:
        yield _at_most_every(_LINE_EVERY_S, lambda progress: console.say(_line(progress)))


def _at_most_every(interval_s: float, show: "Callable[[IngestProgress], None]") -> "Callable[[IngestProgress], None]":
    shown_s = time.monotonic()

    def show_when_due(progress: "IngestProgress") -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if now_s - shown_s >= interval_s:
            shown_s = now_s
            show(progress)

    return show_when_due


def _line(progress: "IngestProgress") -> str:
    return (
        f"{progress.documents:,} documents, {size(progress.raw_bytes)} read, {size(progress.packed_bytes)} written, "
        f"{size(progress.raw_bytes / progress.elapsed_s)}/s"
    )


def _summary(report: "IngestReport") -> Iterator[str]:
    from bytelm.data.sources import name_of

    yield (
        f"{report.documents:,} documents, {size(report.raw_bytes)} in {report.elapsed_s:.1f} s, "
        f"packed {report.ratio:.2f} : 1 into {report.shards} shards"
    )
    yield (
        f"train {size(report.train_bytes)}, validation {size(report.validation_bytes)} "
        f"(held out by content hash, rule {report.split_rule!r})"
    )
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped.items() if count)
    if skipped:
        yield f"passed over: {skipped}"
    yield f"corpus {console.shown(name_of(report.corpus))}, fingerprint {report.fingerprint}"
