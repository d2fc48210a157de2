"""From sources to a corpus, in steps: list, survey, plan, write, and the index last.

The sources are listed in order as units. The survey reads every document once and notes what it is; the plan decides
from that alone what stays, what is held out, and which documents make which shards; then the documents that stay are
read again, or taken from where they were kept, checked against the survey, and written. Survey and writing are pure
functions of their parts, so worker processes or a cluster do them, and the corpus is the same however many there are.

Nothing that is not finished can be taken for a corpus: the index is written after everything else, by rename. Until
then a journal beside the shards tells what is complete, and an ingestion that was killed can be resumed. A corpus that
is replaced or appended to stays whole until the new index has taken the place of the old one: numbers of shards go on
from the old ones.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bytelm import __version__
from bytelm.data.documents import name_of
from bytelm.data.engine import Engine, InThisProcess, Processes
from bytelm.data.file_names import packed_names, packed_numbers, unpacked_numbers
from bytelm.data.filters import Filters
from bytelm.data.forms import is_archive, is_table
from bytelm.data.index import INDEX, Count, DigestEntry, FilesEntry, Index, Ingestion, added_counts
from bytelm.data.ingest_report import IngestProgress, IngestReport
from bytelm.data.ingest_settings import SHARD_BYTES, VALIDATION_FRACTION, IngestSettings, difference
from bytelm.data.ingest_start import Mode, Start, begin, files_of, fresh, resumed
from bytelm.data.ingest_steps import Plan, Progress, Steps, identity_of, plan_all, survey_all, write_all
from bytelm.data.journal import Journal
from bytelm.data.kinds import KINDS, group_of
from bytelm.data.pack import Packed
from bytelm.data.plan import left_out
from bytelm.data.shard_file import FRAME_BYTES
from bytelm.data.shards import Corpus
from bytelm.data.sources import (
    STANDARD_INPUT,
    ReadOptions,
    Skipped,
    Unit,
    check_sources,
    find_units,
    shown_path,
    stdin_form,
)
from bytelm.data.split import TRAIN, VALIDATION
from bytelm.data.storage import Folder, folder_at, is_remote, local_path
from bytelm.data.survey import KEPT, OnError, Survey
from bytelm.data.tables import DATASET
from bytelm.data.workplace import remove_ours, sole_writer
from bytelm.errors import BytelmError, ConfigError, CorpusError, ShardError, SourceError
from bytelm.files import refusals_named

__all__ = ["IngestProgress", "IngestReport", "ingest", "is_unfinished", "list_units"]

_COPY_BYTES: Final = 1 << 20
_MOST_NAMED: Final = 3


def ingest(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    read: ReadOptions | None = None,
    filters: Filters | None = None,
    keep_duplicates: bool = False,
    near_duplicates: float | None = None,
    on_error: OnError = "named",
    level: int = 9,
    validation_fraction: float | None = None,
    overwrite: bool = False,
    append: bool = False,
    resume: bool = False,
    shard_bytes: int = SHARD_BYTES,
    frame_bytes: int | None = None,
    workers: int | None = None,
    engine: Engine | None = None,
    stdin: BinaryIO | None = None,
    on_progress: Callable[[IngestProgress], None] | None = None,
) -> IngestReport:
    """Make a corpus from files, folders and whatever else ``bytelm.data.sources`` reads, or add to one.

    Args:
        sources: What to read; their order is the order of the corpus.
        out: Folder of the corpus or an address such as ``s3://bucket/corpus``; it is never read as a source.
        read: How sources are read: patterns, links, archives, the field of tables.
        filters: What documents have to be: size, kind, density. All others are left out and counted.
        keep_duplicates: Keep documents that equal an earlier one of the same ingestion.
        near_duplicates: Leave out documents whose similarity to an earlier one is at least this, 0.3 to 1.
        on_error: What happens to a file that cannot be read or is damaged: ``named`` stops if it was named as a source
            and leaves it out if it lies in a folder; ``stop`` always stops; ``skip`` always leaves it out. The report
            counts and names the files that were left out.
        level: zstd level, 1 to 22.
        validation_fraction: Share of the content that is held out, 0 to 0.5, 0.01 if None; small corpora hold out
            more, see ``bytelm.data.split``. What is appended is split as the corpus was.
        overwrite: Replace a corpus, or an unfinished ingestion, that is already at ``out``.
        append: Add to the corpus that is at ``out``; documents that it holds already are left out.
        resume: Go on with the unfinished ingestion at ``out``; the settings must be the ones that it began with.
        shard_bytes: Raw bytes after which a shard takes no further document.
        frame_bytes: Raw bytes of a frame; 256 KiB, or the corpus's own, if None.
        workers: Processes that read and write; None for one on each core if there is enough to do.
        engine: Who does the work instead, a Ray cluster for example; whoever made it closes it.
        stdin: What the source ``-`` reads; standard input if None.
        on_progress: Called about once for every megabyte.

    Returns:
        What was made.

    Raises:
        ConfigError: A setting is out of its range, contradicts another, or is not the one that was begun with.
        SourceError: A source is missing, cannot be read or is damaged, or there is not one byte to ingest.
        CorpusError: ``out`` holds a corpus, an unfinished ingestion or other files, or another process writes there;
            or what ``resume`` finds finished is not whole.
        StorageError: The disk or the server refuses. A corpus that was at ``out`` before is untouched then, as after
            any failure; what is complete stays for ``resume``.
    """
    begun_s = time.monotonic()
    if append and overwrite:
        raise ConfigError("append and overwrite contradict each other: choose one")
    if engine is not None and workers is not None:
        raise ConfigError(f"workers = {workers}: the engine that is given has workers of its own; leave it out")
    settings = IngestSettings(
        sources=tuple(os.fspath(source) for source in sources),
        read=read or ReadOptions(),
        filters=filters or Filters(),
        keep_duplicates=keep_duplicates,
        near_duplicates=near_duplicates,
        on_error=on_error,
        level=level,
        validation_fraction=VALIDATION_FRACTION if validation_fraction is None else validation_fraction,
        shard_bytes=shard_bytes,
        frame_bytes=FRAME_BYTES if frame_bytes is None else frame_bytes,
    )
    folder = folder_at(out)
    _check_apart(settings.sources, folder)
    asked: dict[str, Any] = {"validation_fraction": validation_fraction, "frame_bytes": frame_bytes}
    mode: Mode | None = "append" if append else "overwrite" if overwrite else None
    with contextlib.ExitStack() as stack:
        if engine is None:
            engine = stack.enter_context(_engine(settings, folder, workers))
        _check_reach(engine, settings, folder)
        stack.enter_context(sole_writer(folder))
        if resume:
            start = resumed(folder, settings, asked, mode)
            if start is None:
                return _complete_already(folder, settings, asked, begun_s)
        else:
            check_sources(settings.sources, settings.read)
            _check_field(settings, folder)
            start = fresh(folder, settings, asked, mode or "new")
        journal = Journal(folder)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bytelm-")))
        with _kept_for_resuming(journal, start):
            if resume:
                journal.remove_content()
            else:
                begin(folder, start)
            steps = Steps(
                settings=start.settings,
                journal=journal,
                engine=engine,
                base=start.base,
                before=start.before,
                first_shard=start.first_shard,
                resumes=resume,
                stdin=_spooled(journal, start.settings, stdin, scratch, resume=resume),
            )
            progress = Progress(begun_s, time.monotonic, on_progress)
            survey, kept = survey_all(steps, progress)
            plan = plan_all(steps, survey, kept)
            if not plan.partitions:
                journal.remove()
                raise _nothing(left_out(survey), start, survey.faults)
            if settings.read.field is not None and not _rows_met(survey):
                journal.remove()
                raise _no_table(settings.read.field, [survey.units[int(survey.rows_D["unit"][0])].address])
            packed = write_all(steps, survey, plan, kept, progress)
            index, new = _index(start, survey, plan, packed, folder)
            folder.write(INDEX, index.to_text())
        remove_ours(folder, keep=files_of(index))
        journal.remove()
    return replace(
        _report(Corpus.of(index, folder), new, index.ingestions[-1].skipped, time.monotonic() - begun_s),
        faults=survey.faults,
        largest_binary=_largest_binary(survey),
        no_rows=_no_rows(survey, settings.read.field),
    )


def is_unfinished(out: Path | str) -> bool:
    """Whether there is an ingestion at ``out`` that can be resumed.

    Raises:
        OSError: ``out`` cannot be read.
    """
    return Journal(folder_at(out)).job() is not None


def list_units(sources: Sequence[Path | str], out: Path | str, read: ReadOptions) -> Iterator[Unit | Skipped]:
    """What an ingestion would read and pass over, in order; nothing is opened and nothing written.

    Standard input counts as one unit of unknown size.

    Raises:
        ConfigError: An option is impossible.
        SourceError: A source is missing, or lies in ``out``.
    """
    folder = folder_at(out)
    names = [os.fspath(source) for source in sources]
    _check_apart(names, folder)
    check_sources(names, read)
    for number, name in enumerate(names):
        if name == STANDARD_INPUT:
            yield Unit(number, os.fsencode(name), stdin_form(read), 0)
        else:
            yield from find_units([name], read, without=identity_of(folder))


@contextlib.contextmanager
def _kept_for_resuming(journal: Journal, start: Start) -> Iterator[None]:
    """On a failure keep what is complete, remove what is not; where nothing is complete, remove everything."""
    try:
        yield
    except BaseException as failure:
        with contextlib.suppress(BytelmError, OSError):  # what failed before is what is told
            journal.remove_content()
            remove_ours(journal.folder, only_parts=True)
            if not journal.has_progress():
                journal.remove()
                named = files_of(Corpus.open(journal.folder)) if journal.folder.exists(INDEX) else ()
                remove_ours(journal.folder, from_number=start.first_shard, keep=named)
            elif isinstance(failure, BytelmError) and "--resume" not in str(failure):
                failure.args = (f"{failure}; --resume goes on with what is done",)
        raise


def _engine(settings: IngestSettings, folder: Folder, workers: int | None) -> Engine:
    if not _needs_this_process(settings, folder):
        return Processes(workers)
    if workers is not None and workers > 1:
        raise ConfigError(f"workers = {workers}: what lies at memory:// is seen by one process only; use 1")
    return InThisProcess()


def _check_reach(engine: Engine, settings: IngestSettings, folder: Folder) -> None:
    if _needs_this_process(settings, folder) and not engine.is_here:
        raise ConfigError("what lies at memory:// is seen by one process only; no other one can work on it")


def _needs_this_process(settings: IngestSettings, folder: Folder) -> bool:
    return not folder.is_shared or any(source.startswith("memory:") for source in settings.sources)


def _check_apart(sources: Sequence[str], folder: Folder) -> None:
    for source in sources:
        if folder.local is None:
            apart = not (is_remote(source) and f"{source.rstrip('/')}/".startswith(f"{folder.address.rstrip('/')}/"))
        else:
            apart = is_remote(source) or not local_path(source).resolve().is_relative_to(folder.local.resolve())
        if not apart:
            raise SourceError(f"{name_of(source)!r} lies in {folder.address}, which is --out; choose another --out")


def _spooled(
    journal: Journal, settings: IngestSettings, stdin: BinaryIO | None, scratch: Path, *, resume: bool
) -> Path | None:
    """Standard input as a file, because it is read twice; None if it is no source."""
    if STANDARD_INPUT not in settings.sources:
        return None
    place = journal.stdin(scratch)
    if resume and place.exists():
        return place
    if resume and journal.has_progress():
        raise CorpusError(
            f"what came from standard input is not in {journal.folder.address}, so that cannot be resumed; "
            "begin again with --overwrite"
        )
    beside = place.with_name(place.name + ".part")
    with refusals_named(place):
        with beside.open("wb") as file:
            shutil.copyfileobj(stdin or sys.stdin.buffer, file, _COPY_BYTES)
        beside.rename(place)
    return place


def _index(start: Start, survey: Survey, plan: Plan, packed: Sequence[Packed], folder: Folder) -> tuple[Index, Count]:
    """The index of the corpus with what was written, and how much that is; the digests are written."""
    rows_D = survey.rows_D
    inside_D = rows_D["reason"] == KEPT
    changed = [row for part in packed for row in part.changed]
    inside_D[changed] = False
    rows_N = rows_D[inside_D]
    new = Count(len(rows_N), int(rows_N["raw_bytes"].sum()))
    skipped = left_out(survey)
    if changed:
        skipped = added_counts([skipped, {"changed": Count(len(changed), int(rows_D["raw_bytes"][changed].sum()))}])
    if not new.documents:
        raise _nothing(skipped, start)
    sources_N = survey.units.sources_U[rows_N["unit"]]
    sources: list[dict[str, Any]] = []
    for number, source in enumerate(start.settings.sources):
        sizes = rows_N["raw_bytes"][sources_N == number]
        sources.append({"name": name_of(source), "documents": len(sizes), "raw_bytes": int(sizes.sum())})
    digests = rows_N["digest"].tobytes()
    entry = DigestEntry(
        name=f"documents-{start.first_shard:05d}.xxh128",
        documents=new.documents,
        hash=xxhash.xxh3_128_hexdigest(digests),
    )
    folder.write(entry.name, digests)
    names = _file_names(start, survey, packed)
    files = FilesEntry(
        name=f"documents-{start.first_shard:05d}.files.zst",
        packed_bytes=len(names),
        hash=xxhash.xxh3_128_hexdigest(names),
    )
    folder.write(files.name, names)
    ingestion = Ingestion(
        made_by=f"bytelm {__version__}",
        settings=start.settings.as_json(),
        sources=tuple(sources),
        skipped=skipped,
    )
    base = start.base
    shards = [*(() if base is None else base.all_shards), *(shard for part in packed for shard in part.shards)]
    index = Index(
        frame_bytes=start.settings.frame_bytes,
        all_shards=tuple(shard for split in (TRAIN, VALIDATION) for shard in shards if shard.split == split),
        digests=(*(() if base is None else base.digests), entry),
        ingestions=(*(() if base is None else base.ingestions), ingestion),
        kinds=KINDS,
        split_rule=asdict(plan.rule),
        files=(*(() if base is None else base.files), files),
    )
    return index, new


def _file_names(start: Start, survey: Survey, packed: Sequence[Packed]) -> bytes:
    """Which file each piece of each new shard comes from."""
    units_of_shards: dict[str, NDArray[np.int64]] = {}
    for part in packed:
        for shard, rows in zip(part.shards, part.rows, strict=True):
            numbers = unpacked_numbers(rows, shard.pieces)
            assert numbers is not None and len(numbers) == shard.pieces, "a row for each piece"
            units_of_shards[shard.name] = survey.rows_D["unit"][numbers].astype(np.int64)
    used_F = np.unique(np.concatenate(list(units_of_shards.values())))
    names = [
        STANDARD_INPUT if start.settings.sources[unit.source] == STANDARD_INPUT else name_of(os.fsdecode(unit.address))
        for unit in survey.units.at(used_F)
    ]
    return packed_names(
        names,
        {name: packed_numbers(np.searchsorted(used_F, units_P)) for name, units_P in units_of_shards.items()},
    )


def _check_field(settings: IngestSettings, folder: Folder) -> None:
    """See that the column that is asked for can have an effect, before anything is read.

    Raises:
        SourceError: No source is a table, or may hold one.
    """
    field = settings.read.field
    if field is None:
        return
    files: list[bytes] = []
    for name in settings.sources:
        if name == STANDARD_INPUT or name.startswith(DATASET):
            return
        for found in find_units([name], settings.read, without=identity_of(folder)):
            if isinstance(found, Unit):
                if is_table(found.form) or is_archive(found.form) or found.form == "folder":
                    return
                files.append(found.address)
                del files[_MOST_NAMED:]
    if files:
        raise _no_table(field, files)


def _no_table(field: str, files: Sequence[bytes]) -> SourceError:
    names = ", ".join(map(shown_path, files[:_MOST_NAMED]))
    return SourceError(
        f"field = {field!r} has no effect: no source is a table, such as {names}; leave it out, or name a file that "
        "ends in .jsonl, .ndjson, .json, .csv, .tsv or .parquet, compressed or not",
        reason="no_field",
    )


def _rows_met(survey: Survey) -> bool:
    """Whether a row of any table was met."""
    return "no_field" in survey.skipped or bool(survey.rows_D["row"].any())


def _no_rows(survey: Survey, field: str | None) -> Count | None:
    """Documents that stay and are no rows of a table, though a column was asked for."""
    if field is None:
        return None
    sizes = survey.rows_D["raw_bytes"][(survey.rows_D["reason"] == KEPT) & (survey.rows_D["row"] == 0)]
    return Count(len(sizes), int(sizes.sum())) if len(sizes) else None


def _largest_binary(survey: Survey) -> tuple[tuple[str, str, int], ...]:
    """The files with the most binary bytes that stay: name, kind of most of them, bytes."""
    rows_D = survey.rows_D
    binary = np.array([group_of(kind) == "binary" for kind in range(len(KINDS))])
    rows_N = rows_D[(rows_D["reason"] == KEPT) & binary[rows_D["kind"]]]
    if not len(rows_N):
        return ()
    sizes_U = np.bincount(rows_N["unit"], rows_N["raw_bytes"], len(survey.units)).astype(np.int64)
    largest = np.argsort(-sizes_U, kind="stable")[:_MOST_NAMED]
    found: list[tuple[str, str, int]] = []
    for unit in largest[sizes_U[largest] > 0].tolist():
        here_N = rows_N[rows_N["unit"] == unit]
        kinds = np.bincount(here_N["kind"], here_N["raw_bytes"], len(KINDS))
        found.append((name_of(os.fsdecode(survey.units[unit].address)), KINDS[int(kinds.argmax())], int(sizes_U[unit])))
    return tuple(found)


def _nothing(skipped: dict[str, Count], start: Start, faults: Sequence[str] = ()) -> SourceError:
    counts = ", ".join(f"{count.documents} {reason}" for reason, count in skipped.items()) or "no files"
    first = f"; {faults[0]}" if faults else ""
    if start.base is None:
        return SourceError(f"nothing to ingest: not one byte was found ({counts}){first}")
    return SourceError(f"nothing to append: not one byte was found that the corpus does not hold ({counts}){first}")


def _complete_already(folder: Folder, settings: IngestSettings, asked: dict[str, Any], begun_s: float) -> IngestReport:
    """The report on a corpus that ``--resume`` finds complete."""
    corpus = Corpus.open(folder)
    last = corpus.ingestions[-1]
    given = settings.as_json() | {name: last.settings[name] for name, value in asked.items() if value is None}
    changed = difference(
        {"sources": [source["name"] for source in last.sources], **last.settings},
        {"sources": [name_of(source) for source in settings.sources], **given},
    )
    if changed:
        raise CorpusError(
            f"nothing to resume: {folder.address} holds a finished corpus, and its last ingestion was another one: "
            f"{changed}; choose --append or --overwrite"
        )
    _see_files(corpus)
    remove_ours(folder, keep=files_of(corpus))  # it may have been killed just before it was done with that
    Journal(folder).remove()
    counts = [Count(source["documents"], source["raw_bytes"]) for source in last.sources]
    new = Count(sum(count.documents for count in counts), sum(count.raw_bytes for count in counts))
    return _report(corpus, new, last.skipped, time.monotonic() - begun_s, was_complete=True)


def _see_files(corpus: Corpus) -> None:
    """See that every file that the index names is there, has its size, and begins and ends as it was written.

    Raises:
        CorpusError: One is not.
    """
    remedy = "it was finished, so --resume has nothing to go on from; make it again with --overwrite"
    for shard in corpus.all_shards:
        try:
            size = corpus.folder.size(shard.name)
        except OSError as error:
            raise CorpusError(f"{corpus.folder.address}/{shard.name} is missing or cannot be read; {remedy}") from error
        if size != shard.packed_bytes:
            raise CorpusError(
                f"{corpus.folder.address}/{shard.name} has {size:,} bytes, and the index says {shard.packed_bytes:,}; "
                f"{remedy}"
            )
        try:
            corpus.open_shard(shard)
        except ShardError as error:
            raise CorpusError(f"{error}; {remedy}") from error
    corpus.read_digests()


def _report(
    corpus: Corpus, new: Count, skipped: dict[str, Count], elapsed_s: float, *, was_complete: bool = False
) -> IngestReport:
    shards = corpus.all_shards
    return IngestReport(
        corpus=corpus.folder.address,
        fingerprint=corpus.fingerprint,
        documents=sum(shard.documents for shard in shards),
        raw_bytes=sum(shard.raw_bytes for shard in shards),
        packed_bytes=sum(shard.packed_bytes for shard in shards),
        train_bytes=corpus.raw_bytes(TRAIN),
        validation_bytes=corpus.raw_bytes(VALIDATION),
        shards=len(shards),
        kinds=added_counts(shard.kinds for shard in shards),
        split_rule=corpus.split_rule["name"],
        new=new,
        skipped=skipped,
        was_complete=was_complete,
        elapsed_s=elapsed_s,
    )
