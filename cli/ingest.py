"""``bytelm ingest``: raw files in, a corpus out."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bytelm.cli import console
from bytelm.cli.quantities import counted, duration, parse_size, size

if TYPE_CHECKING:
    from bytelm.data.engine import Engine
    from bytelm.data.index import Count
    from bytelm.data.ingest import IngestProgress, IngestReport
    from bytelm.data.sources import ReadOptions

_LINE_EVERY_S: Final = 10.0
_REDRAW_EVERY_S: Final = 0.1
_KINDS_SHOWN: Final = 8
_FAULTS_SHOWN: Final = 10
_CLUTTER: Final = {"version_control", "cache", "byte_code"}
_NOUNS: Final = {
    "link": "link",
    "duplicate": "duplicate",
    "near_duplicate": "near duplicate",
    "version_control": "version-control folder",
    "cache": "cache folder",
    "byte_code": "byte-code file",
}

_READ: Final = "What is read"
_KEPT: Final = "What is kept"
_WRITTEN: Final = "What is written"
_WORK: Final = "Who does it"


def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Files, folders, globs in quotes, - for standard input, hf:NAME[:CONFIG[:SPLIT]], "
            "addresses like s3://bucket/x.",
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Folder of the corpus, made if missing; or s3://…, gs://….")
    ],
    append: Annotated[
        bool,
        typer.Option("--append", help="Add to the corpus that is at --out.", rich_help_panel=_WRITTEN),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at --out when all is done.", rich_help_panel=_WRITTEN)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the ingestion that stopped; the other words must be the same.",
            rich_help_panel=_WRITTEN,
        ),
    ] = False,
    level: Annotated[
        int,
        typer.Option("--level", help="zstd level: 3 fast, 9 default, 19 for publishing.", rich_help_panel=_WRITTEN),
    ] = 9,
    validation_fraction: Annotated[
        float | None,
        typer.Option(
            "--validation-fraction",
            help="Share held out by content hash; small corpora hold out more.  [default: 0.01, or the corpus's own]",
            rich_help_panel=_WRITTEN,
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="PATTERN",
            help="Read only what matches, as in .gitignore; archives in folders only if they match. Again for more.",
            rich_help_panel=_READ,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="PATTERN",
            help="Leave out what matches, as in .gitignore; again for more.",
            rich_help_panel=_READ,
        ),
    ] = None,
    gitignore: Annotated[
        bool, typer.Option("--gitignore", help="Leave out what .gitignore files name, and .git.", rich_help_panel=_READ)
    ] = False,
    follow_links: Annotated[
        bool,
        typer.Option("--follow-links", help="Read what symbolic links point to.", rich_help_panel=_READ),
    ] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Read version control (.git), caches (__pycache__, node_modules) and byte code in folders, too.",
            rich_help_panel=_READ,
        ),
    ] = False,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Open no archive, compressed file or table.", rich_help_panel=_READ),
    ] = False,
    field: Annotated[
        str | None,
        typer.Option(
            "--field",
            metavar="NAME",
            help="Column of tables (.jsonl, .json, .csv, .parquet, hf:) whose text becomes documents.  "
            "[default for hf: text]",
            rich_help_panel=_READ,
        ),
    ] = None,
    most_expansion: Annotated[
        float,
        typer.Option(
            "--most-expansion",
            metavar="RATIO",
            help="Raw bytes for each stored byte beyond which a compressed file counts as a bomb.",
            rich_help_panel=_READ,
        ),
    ] = 1000.0,
    on_error: Annotated[
        str,
        typer.Option(
            "--on-error",
            metavar="named|stop|skip",
            help="What cannot be read or is damaged: stop if it was named, and leave it out and name it if a folder "
            "holds it; stop; or leave it out.",
            rich_help_panel=_READ,
        ),
    ] = "named",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List what would be read, and write nothing.", rich_help_panel=_READ),
    ] = False,
    min_bytes: Annotated[
        str | None,
        typer.Option(
            "--min-bytes", metavar="SIZE", help="Leave out smaller documents; 4KiB, 10k.", rich_help_panel=_KEPT
        ),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option("--max-bytes", metavar="SIZE", help="Leave out larger documents.", rich_help_panel=_KEPT),
    ] = None,
    max_bits_per_byte: Annotated[
        float | None,
        typer.Option(
            "--max-bits-per-byte",
            metavar="BITS",
            help="Leave out what zstd -1 cannot pack below this; 7.5 leaves out what is packed or encrypted already.",
            rich_help_panel=_KEPT,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="KIND",
            help="Keep only text, binary, a group (code, markup, data, prose) or a kind (python, …); again for more.",
            rich_help_panel=_KEPT,
        ),
    ] = None,
    keep_duplicates: Annotated[
        bool,
        typer.Option("--keep-duplicates", help="Keep documents that equal an earlier one.", rich_help_panel=_KEPT),
    ] = False,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            "--near-duplicates",
            metavar="SIMILARITY",
            help="Leave out documents this similar to an earlier one, 0.3 to 1; 0.8 is usual.",
            rich_help_panel=_KEPT,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            help="Processes that read and pack; the corpus does not depend on it.  [default: one a core]",
            rich_help_panel=_WORK,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine", metavar="local|ray", help="Processes of this machine, or a Ray cluster.", rich_help_panel=_WORK
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="Head of the Ray cluster.  [default: a cluster of this machine]",
            rich_help_panel=_WORK,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> int:
    """Pack files and folders into a corpus: zstd shards, document table, checksums.

    Folders are read to the bottom in the order of their paths, hidden files included, but for version control, caches
    and byte code (--all); archives and compressed files are opened, tables where --field names a column. What gives no
    document is counted by reason: links, sockets, pipes and devices, empty files, duplicates, what is damaged, what the
    filters leave out. Ctrl-C loses nothing that is complete: --resume goes on.
    """
    from bytelm.errors import ConfigError

    if on_error not in ("named", "stop", "skip"):
        raise ConfigError(f"--on-error {on_error}: there are named, stop and skip")
    with contextlib.ExitStack() as stack:
        workforce = None if dry_run else stack.enter_context(_engine(engine, address, workers))
        # Only now: while this process loads what it needs, the workers do the same.
        from bytelm.data.filters import Filters
        from bytelm.data.ingest import ingest as make_corpus
        from bytelm.data.ingest import is_unfinished
        from bytelm.data.sources import ReadOptions

        read = ReadOptions(
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            gitignore=gitignore,
            follow_links=follow_links,
            everything=everything,
            raw=raw,
            field=field,
            most_expansion=most_expansion,
        )
        if dry_run:
            _list(sources, out, read, as_json=as_json)
            return console.EXIT_OK
        filters = Filters(
            min_bytes=0 if min_bytes is None else parse_size(min_bytes),
            max_bytes=None if max_bytes is None else parse_size(max_bytes),
            max_bits_per_byte=max_bits_per_byte,
            only=tuple(only or ()),
        )
        try:
            with _progress() as on_progress:
                report = make_corpus(
                    sources,
                    out,
                    read=read,
                    filters=filters,
                    keep_duplicates=keep_duplicates,
                    near_duplicates=near_duplicates,
                    on_error=on_error,
                    level=level,
                    validation_fraction=validation_fraction,
                    overwrite=overwrite,
                    append=append,
                    resume=resume,
                    engine=workforce,
                    on_progress=on_progress,
                )
        except KeyboardInterrupt:
            kept = is_unfinished(out)
            said = "--resume goes on with what is done" if kept else "nothing was left behind"
            console.say(f"interrupted; {said}")
            return console.EXIT_INTERRUPTED
    if as_json:
        console.print_json(report.as_json())
    else:
        for line in _summary(report):
            console.result(line)
    return console.EXIT_OK


@contextlib.contextmanager
def _engine(name: str, address: str | None, workers: int | None) -> "Iterator[Engine | None]":
    """Who does the work; None where the ingestion shall see whether it is worth any processes."""
    from bytelm.data.engine import Processes, RayCluster
    from bytelm.errors import ConfigError

    if name not in ("local", "ray"):
        raise ConfigError(f"--engine {name}: there are local and ray")
    if name == "ray":
        with RayCluster(address, workers) as cluster:
            yield cluster
        return
    if address is not None:
        raise ConfigError(f"--address {address} takes no effect without --engine ray; add it, or drop the address")
    if workers is None:
        yield None
        return
    with Processes(workers, ("bytelm.data.pack",)) as processes:  # they load it while this process does
        yield processes


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
    speed = f"{size(progress.phase_bytes / max(progress.phase_s, 1e-9))}/s"
    if progress.phase == "survey":
        return f"surveying: {counted(progress.documents, 'document')}, {size(progress.raw_bytes)}, {speed}"
    line = f"writing: {counted(progress.documents, 'document')}, {size(progress.raw_bytes)}"
    if progress.total_bytes:
        line += f" of {size(progress.total_bytes)} ({progress.raw_bytes / progress.total_bytes:.0%})"
    if progress.packed_bytes > 0:
        line += f", {progress.raw_bytes / progress.packed_bytes:.2f} : 1"
    line += f", {speed}"
    return line if progress.left_s is None else f"{line}, {duration(progress.left_s)} left"


def _summary(report: "IngestReport") -> Iterator[str]:
    from bytelm.data.documents import name_of

    if report.was_complete:
        yield "nothing left to do: this ingestion is finished"
    new = (
        f" ({report.new.documents:,} new, {size(report.new.raw_bytes)})"
        if report.new.documents < report.documents
        else ""
    )
    yield (
        f"{counted(report.documents, 'document')}, {size(report.raw_bytes)}{new} in {report.elapsed_s:.1f} s, "
        f"packed {report.ratio:.2f} : 1 into {counted(report.shards, 'shard')}"
    )
    yield (
        f"train {size(report.train_bytes)}, validation {size(report.validation_bytes)} "
        f"(held out by content hash, rule {report.split_rule!r})"
    )
    yield f"kinds: {_kinds(report.kinds)}"
    yield f"of all bytes {', '.join(f'{share:.1%} {name}' for name, share in report.shares.items())}"
    if report.largest_binary:
        largest = ", ".join(
            f"{console.one_line(name)} ({size(raw_bytes)}, {kind})" for name, kind, raw_bytes in report.largest_binary
        )
        yield f"most binary bytes: {largest}; leave them out with --exclude PATTERN, or all with --only text"
    skipped = ", ".join(_skipped(reason, count) for reason, count in report.skipped.items())
    if skipped:
        yield f"passed over: {skipped}" + (
            "; --all reads version control, caches and byte code" if _CLUTTER & set(report.skipped) else ""
        )
    if report.no_rows is not None:
        yield (
            f"--field had no effect on {counted(report.no_rows.documents, 'document')} "
            f"({size(report.no_rows.raw_bytes)}): no rows of tables, taken as they are"
        )
    if report.faults:
        yield "left out, for something was wrong:"
        for fault in report.faults[:_FAULTS_SHOWN]:
            yield f"  {console.one_line(fault)}"
        if len(report.faults) > _FAULTS_SHOWN:
            yield "  and more; --json names up to 1,000"
    yield f"corpus {console.one_line(name_of(report.corpus))}, fingerprint {report.fingerprint}"


def _kinds(kinds: "dict[str, Count]") -> str:
    """The kinds with the most bytes, and how many others there are."""
    ranked = sorted(kinds.items(), key=lambda item: (-item[1].raw_bytes, item[0]))
    shown = [f"{name} {size(count.raw_bytes)} in {count.documents:,}" for name, count in ranked[:_KINDS_SHOWN]]
    if len(ranked) > _KINDS_SHOWN:
        rest = ranked[_KINDS_SHOWN:]
        shown.append(f"{counted(len(rest), 'other')} {size(sum(count.raw_bytes for _, count in rest))}")
    return ", ".join(shown)


def _skipped(reason: str, count: "Count") -> str:
    line = _reason(reason, count.documents)
    return f"{line} ({size(count.raw_bytes)})" if count.raw_bytes else line


def _reason(reason: str, documents: int) -> str:
    """How many were passed over for a reason: some reasons are nouns."""
    noun = _NOUNS.get(reason)
    return counted(documents, noun) if noun else f"{documents:,} {reason.replace('_', ' ')}"


def _list(sources: list[str], out: str, read: "ReadOptions", *, as_json: bool) -> None:
    """List what would be read, unit by unit, without reading it."""
    from bytelm.data.documents import Skipped
    from bytelm.data.ingest import list_units

    units = stored_bytes = 0
    skipped: dict[str, int] = {}
    listed: list[dict[str, Any]] = []
    for found in list_units(sources, out, read):
        if isinstance(found, Skipped):
            name, detail = found.path, {"skipped": found.reason}
            skipped[found.reason] = skipped.get(found.reason, 0) + 1
        else:
            name, detail = found.address, {"stored_bytes": found.stored_bytes, "form": found.form}
            if found.parts > 1:
                detail |= {"part": found.part, "parts": found.parts}
            units += 1
            stored_bytes += found.stored_bytes
        text = name.decode("utf-8", "backslashreplace")
        if as_json:
            listed.append({"name": text, **detail})
        elif isinstance(found, Skipped):
            console.result(f"{'passed over':>12}  {console.one_line(text)} ({found.reason})", whole=True)
        else:
            part = f" (part {found.part + 1} of {found.parts})" if found.parts > 1 else ""
            console.result(f"{size(found.stored_bytes):>12}  {console.one_line(text)}{part}", whole=True)
    if as_json:
        console.print_json({"units": units, "stored_bytes": stored_bytes, "skipped": skipped, "listed": listed})
        return
    counts = ", ".join(_reason(reason, count) for reason, count in skipped.items())
    passed_over = f"; passed over: {counts}" if counts else ""
    console.result(f"{units:,} to read, {size(stored_bytes)} as they are stored{passed_over}; nothing was written")
