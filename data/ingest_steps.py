"""The steps of an ingestion, each going on from what its journal has: survey, plan, write.

Survey and writing are given to an engine in parts. What they give depends on the parts alone, and a part that is
noted as finished is not done again.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from bytelm.data.documents import Document, Skipped
from bytelm.data.engine import Engine
from bytelm.data.ingest_report import IngestProgress
from bytelm.data.ingest_settings import IngestSettings
from bytelm.data.journal import Journal, NotedSurveyJob, survey_and_note
from bytelm.data.kept_content import ContentPlace, is_dear
from bytelm.data.pack import Packed, PackJob, PackSettings, complete, pack
from bytelm.data.plan import Partition, choose_rule, jobs_of, leave_out_duplicates, partitions_of, threads_of
from bytelm.data.shards import Corpus
from bytelm.data.sources import FileIdentity, Unit, find_units
from bytelm.data.split import Decision, SplitRule, decide
from bytelm.data.storage import Folder
from bytelm.data.survey import KEPT, OnError, Survey, SurveyJob, reread
from bytelm.data.unit_table import UnitTable
from bytelm.data.workers import NOTHING, Tally, added
from bytelm.errors import SourceError

_BATCH_UNITS: Final = 2048
_BATCH_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What all steps need.

    Attributes:
        settings: What is asked for.
        journal: What is done, and where the corpus is.
        engine: Who does it.
        base: The corpus that is appended to; None for a new one.
        before: Digests of its documents.
        first_shard: Number of the first shard.
        resumes: The journal may hold something.
        stdin: File with what was read from standard input.
    """

    settings: IngestSettings
    journal: Journal
    engine: Engine
    base: Corpus | None
    before: bytes
    first_shard: int
    resumes: bool
    stdin: Path | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written.

    Attributes:
        rule: The split rule.
        decision: Which pieces are held out.
        partitions: What is written together.
        raw_bytes: Bytes of all of it.
    """

    rule: SplitRule
    decision: Decision
    partitions: tuple[Partition, ...]
    raw_bytes: int


class Progress:
    """Adds tallies up and tells somebody, phase after phase.

    Args:
        begun_s: When the ingestion began, by ``clock``.
        clock: Seconds.
        show: Told after every tally; None for nobody.
    """

    def __init__(
        self, begun_s: float, clock: Callable[[], float], show: Callable[[IngestProgress], None] | None
    ) -> None:
        self._begun_s = begun_s
        self._clock = clock
        self._show = show
        self._phase: Literal["survey", "write"] = "survey"
        self._phase_begun_s = begun_s
        self._before = self._done = NOTHING
        self._total_bytes: int | None = None

    def begin_writing(self, total_bytes: int, done: Tally) -> None:
        """What follows is writing.

        Args:
            total_bytes: Bytes that will be written in all.
            done: What was written before.
        """
        self._phase, self._phase_begun_s = "write", self._clock()
        self._total_bytes, self._before, self._done = total_bytes, done, done

    def __call__(self, tally: Tally) -> None:
        """Add a tally."""
        self._done = added(self._done, tally)
        if self._show is None:
            return
        now_s = self._clock()
        self._show(
            IngestProgress(
                phase=self._phase,
                documents=self._done.documents,
                raw_bytes=self._done.raw_bytes,
                packed_bytes=self._done.packed_bytes,
                total_bytes=self._total_bytes,
                elapsed_s=now_s - self._begun_s,
                phase_s=now_s - self._phase_begun_s,
                phase_bytes=self._done.raw_bytes - self._before.raw_bytes,
            )
        )


def survey_all(steps: Steps, tell: Callable[[Tally], None]) -> tuple[Survey, dict[int, ContentPlace]]:
    """Survey all sources; what was listed and gave no unit is in ``skipped``.

    Returns:
        The survey, and the units whose content is kept, each with the place of its first document.

    Raises:
        SourceError: A source cannot be read or is damaged, and ``on_error`` is ``stop``.
    """
    if (complete := _complete_survey(steps)) is not None:
        return complete, {}
    parts: dict[int, Survey] = {}
    skipped: Counter[str] = Counter()
    asked: list[int] = []

    def jobs() -> Iterator[NotedSurveyJob]:
        for number, units in enumerate(_batches(steps, skipped)):
            noted = steps.journal.survey(number) if steps.resumes else None
            if noted is not None and noted.units == units:
                parts[number] = noted
                continue
            asked.append(number)
            job = SurveyJob(
                units=units,
                options=steps.settings.read,
                filters=steps.settings.filters,
                on_error=steps.settings.on_error,
                with_signatures=steps.settings.near_duplicates is not None,
            )
            yield NotedSurveyJob(number, steps.journal, job)

    with closing(steps.engine.run(survey_and_note, jobs(), tell)) as surveyed:
        for number, part in surveyed:
            parts[asked[number]] = part
    steps.journal.complete_survey(len(parts), skipped)
    found = _with_skipped(Survey.joined(parts[number] for number in range(len(parts))), skipped)
    return found, _kept(steps, parts, asked)


def plan_all(steps: Steps, survey: Survey, kept: Mapping[int, ContentPlace]) -> Plan:
    """Decide what is written. Duplicates are marked in the survey.

    Raises:
        SourceError: A document of the head cannot be read any more, and ``on_error`` is ``stop``.
    """
    settings, base = steps.settings, steps.base
    leave_out_duplicates(
        survey, before=steps.before, near=settings.near_duplicates, keep_exact=settings.keep_duplicates
    )
    partitions = partitions_of(survey, shard_bytes=settings.shard_bytes, first_shard=steps.first_shard)
    raw_bytes = int(survey.rows_D["raw_bytes"][survey.rows_D["reason"] == KEPT].sum())
    if base is not None and base.split_rule["name"] != "all train":
        rule = SplitRule(**base.split_rule)
        return Plan(rule, Decision(rule.threshold), tuple(partitions), raw_bytes)
    rule = choose_rule(survey, settings.validation_fraction)
    decision = steps.journal.decision() if steps.resumes else None
    if decision is None:
        decision = decide(_head(survey, steps, kept), rule)
        steps.journal.write_decision(decision)
    return Plan(rule, decision, tuple(partitions), raw_bytes)


def write_all(
    steps: Steps, survey: Survey, plan: Plan, kept: Mapping[int, ContentPlace], progress: Progress
) -> list[Packed]:
    """Write all partitions that are not written yet.

    Returns:
        Every partition, in order.

    Raises:
        SourceError: A document has changed or cannot be read any more, and ``on_error`` is ``stop``.
        StorageError: The disk or the server refuses.
    """
    noted = [_noted_partition(steps, partition) for partition in plan.partitions] if steps.resumes else []
    packed = {part.number: part for part in noted if part is not None}
    todo = [partition for partition in plan.partitions if partition.number not in packed]
    progress.begin_writing(plan.raw_bytes, _tally(packed.values()))
    settings = PackSettings(
        folder=steps.journal.folder,
        options=steps.settings.read,
        piece_bytes=plan.rule.piece_bytes,
        decision=plan.decision,
        level=steps.settings.level,
        frame_bytes=steps.settings.frame_bytes,
        shard_bytes=steps.settings.shard_bytes,
        first_source=0 if steps.base is None else len(steps.base.sources),
        on_error=steps.settings.on_error,
    )
    runs = list(jobs_of(survey, todo, steps.engine.workers, kept))
    threads = threads_of(survey, runs, steps.engine.workers)
    jobs = (_pack_job(settings, survey, kept, run, count) for run, count in zip(runs, threads, strict=True))
    completing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "flush") as thread, closing(steps.engine.run(pack, jobs, progress)) as written:
        for _, parts in written:
            packed.update((part.number, part) for part in parts)
            completing.append(thread.submit(complete, steps.journal.folder, parts[-1]))
            while completing and completing[0].done():
                completing.popleft().result()
        for completed in completing:
            completed.result()
    return [packed[partition.number] for partition in plan.partitions]


def _kept(steps: Steps, parts: Mapping[int, Survey], asked: Iterable[int]) -> dict[int, ContentPlace]:
    """Units of the parts that were asked for whose content is kept, each with the place of its first document."""
    first_units = np.cumsum([0, *(len(parts[number].units) for number in range(len(parts)))]).tolist()
    kept: dict[int, ContentPlace] = {}
    for number in asked:
        file = steps.journal.content(number)
        if file is None or not file.exists():
            continue
        part, offset = parts[number], 0
        raw_bytes_U = np.bincount(part.rows_D["unit"], part.rows_D["raw_bytes"], len(part.units)).astype(np.int64)
        for number_there, (unit, raw_bytes) in enumerate(zip(part.units, raw_bytes_U.tolist(), strict=True)):
            if is_dear(unit):
                kept[first_units[number] + number_there] = ContentPlace(str(file.absolute()), offset)
                offset += raw_bytes
    return kept


def _complete_survey(steps: Steps) -> Survey | None:
    complete = steps.journal.surveyed() if steps.resumes else None
    if complete is None:
        return None
    count, skipped = complete
    parts = [steps.journal.survey(part) for part in range(count)]
    whole = [part for part in parts if part is not None]
    return _with_skipped(Survey.joined(whole), skipped) if len(whole) == count else None


def _with_skipped(survey: Survey, skipped: Mapping[str, int]) -> Survey:
    return replace(survey, skipped=dict(Counter(survey.skipped) + Counter(skipped)))


def _batches(steps: Steps, skipped: Counter[str]) -> Iterator[UnitTable]:
    """All units in order, in batches that are surveyed together; what gives no unit is counted."""
    units: list[Unit] = []
    stored_bytes = 0
    found = find_units(
        steps.settings.sources, steps.settings.read, without=identity_of(steps.journal.folder), stdin=steps.stdin
    )
    for one in found:
        if isinstance(one, Skipped):
            skipped[one.reason] += 1
            continue
        units.append(one)
        stored_bytes += one.stored_bytes
        if len(units) >= _BATCH_UNITS or stored_bytes >= _BATCH_BYTES:
            yield UnitTable.of(units)
            units, stored_bytes = [], 0
    if units:
        yield UnitTable.of(units)


def identity_of(folder: Folder) -> set[FileIdentity]:
    """What tells the walk that a folder is the corpus itself."""
    if folder.local is None or not folder.local.exists():
        return set()
    status = folder.local.stat()
    return {(status.st_dev, status.st_ino)}


def _head(survey: Survey, steps: Steps, kept: Mapping[int, ContentPlace]) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Number and blocks of each document that stays, from the first one on."""
    for row, found in reread(survey.units, survey.rows_D, steps.settings.read, kept=kept):
        yield row, _blocks(found, steps.settings.on_error)


def _blocks(found: Document | SourceError, on_error: OnError) -> Iterator[bytes]:
    try:
        if isinstance(found, SourceError):
            raise found
        yield from found.blocks()
    except SourceError:
        if on_error != "skip":
            raise
        # Whoever writes it finds that, too, and leaves it out.


def _noted_partition(steps: Steps, partition: Partition) -> Packed | None:
    """A partition that is complete: it is noted, and its shards are there."""
    tree = steps.journal.partition(partition.number)
    if tree is None:
        return None
    packed = Packed.from_json(tree)
    folder = steps.journal.folder
    whole = all(folder.exists(shard.name) and folder.size(shard.name) == shard.packed_bytes for shard in packed.shards)
    return packed if whole else None


def _tally(packed: Iterable[Packed]) -> Tally:
    shards = [shard for part in packed for shard in part.shards]
    return Tally(
        sum(shard.documents for shard in shards),
        sum(shard.raw_bytes for shard in shards),
        sum(shard.packed_bytes for shard in shards),
    )


def _pack_job(
    settings: PackSettings,
    survey: Survey,
    kept: Mapping[int, ContentPlace],
    partitions: tuple[Partition, ...],
    threads: int,
) -> PackJob:
    """A job with just those rows and units that it needs."""
    begin, end = partitions[0].begin, partitions[-1].end
    rows = survey.rows_D[begin:end].copy()
    first_unit, last_unit = int(rows["unit"][0]), int(rows["unit"][-1])
    first_row = int(np.searchsorted(survey.rows_D["unit"], first_unit))
    kept_here = {unit - first_unit: kept[unit] for unit in range(first_unit, last_unit + 1) if unit in kept}
    if first_unit in kept:
        file, offset = kept[first_unit]
        kept_here[0] = ContentPlace(file, offset + int(survey.rows_D["raw_bytes"][first_row:begin].sum()))
    rows["unit"] -= first_unit
    units = survey.units.between(first_unit, last_unit + 1)
    return PackJob(
        settings=settings,
        partitions=partitions,
        units=units,
        rows_D=rows,
        before=begin - first_row,
        threads=threads,
        kept=kept_here,
    )
