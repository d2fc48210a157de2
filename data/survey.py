"""The first reading of an ingestion: what every document is, before anything is decided or written.

A survey is rows, one for each document that its units give, in order: digest, bytes, kind, and why it is left out, if
it is. Whatever is wrong with a source is found here. It is a pure function of its units, so any process can do any
part of it; ``reread`` gives the same documents a second time, row by row.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from bytelm.data.documents import SKIP_REASONS, Document, Skipped, SkipReason, shown_path
from bytelm.data.duplicates import StringSampler, signatures_of
from bytelm.data.filters import DensityMeter, Filters
from bytelm.data.kept_content import ContentPlace, ContentReader, ContentWriter, is_dear
from bytelm.data.kinds import kind_of
from bytelm.data.sources import ReadOptions, Unit, read_unit, read_whole
from bytelm.data.table_rows import SEPARATOR, no_column
from bytelm.data.unit_table import UnitTable
from bytelm.data.workers import Tally, Tell
from bytelm.errors import SourceError

ROW_TYPE: Final = np.dtype(
    [("digest", "<u8", (2,)), ("raw_bytes", "<u8"), ("unit", "<u4"), ("kind", "<u2"), ("reason", "u1"), ("row", "u1")]
)
"""A document: XXH3-128 of its bytes, how many, the unit it is in, its kind, the code of why it is left out, and 1 if it
is a row of a table."""

KEPT: Final = 0
"""The code of a document that is not left out."""

REASON_CODES: Final[dict[SkipReason, int]] = {reason: code for code, reason in enumerate(SKIP_REASONS, 1)}
"""The codes of the others."""

OnError = Literal["named", "stop", "skip"]
"""Where something cannot be read or is damaged: stop if it was named as a source, but leave it out if a folder holds
it; stop; or leave it out. What is left out is counted and named."""

MOST_FAULTS: Final = 1000
"""As many things that went wrong are told; all are counted."""

_FAULTS_OF_A_UNIT: Final = 3

_TELL_BYTES: Final = 1 << 20
_CHUNK_UNITS: Final = 1024
_UNKNOWN_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found in some units, D documents.

    Attributes:
        units: The units.
        rows_D: One ``ROW_TYPE`` for each document, with the number of its unit in ``units``.
        skipped: What gave no document at all, counted by reason.
        signatures_D: MinHash signatures, one a row, where near-duplicates are looked for; else no columns.
        faults: One line for each fault: a few of each unit, at most ``MOST_FAULTS`` in all.
    """

    units: UnitTable
    rows_D: NDArray[np.void]
    skipped: dict[str, int]
    signatures_D: NDArray[np.uint32]
    faults: tuple[str, ...] = ()

    @classmethod
    def joined(cls, surveys: Iterable["Survey"]) -> "Survey":
        """One survey of the units of several, in order."""
        parts = list(surveys)
        rows = np.concatenate([np.empty(0, ROW_TYPE), *(part.rows_D for part in parts)])
        first_unit = first_row = 0
        skipped: Counter[str] = Counter()
        for part in parts:
            rows["unit"][first_row : first_row + len(part.rows_D)] += first_unit
            first_unit += len(part.units)
            first_row += len(part.rows_D)
            skipped.update(part.skipped)
        return cls(
            units=UnitTable.joined(part.units for part in parts),
            rows_D=rows,
            skipped=dict(skipped),
            signatures_D=np.concatenate([part.signatures_D for part in parts])
            if parts
            else np.empty((0, 0), np.uint32),
            faults=tuple(fault for part in parts for fault in part.faults)[:MOST_FAULTS],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyJob:
    """Units that are to be surveyed.

    Attributes:
        units: Them.
        options: How they are read.
        filters: What documents have to be.
        on_error: What to do where one cannot be read.
        with_signatures: Near-duplicates will be looked for.
    """

    units: UnitTable
    options: ReadOptions
    filters: Filters
    on_error: OnError
    with_signatures: bool

    @property
    def weight_bytes(self) -> int:
        """Bytes as they are stored; a data set may be of any size."""
        return int(np.where(self.units.form_is("hf"), _UNKNOWN_BYTES, self.units.stored_bytes_U).sum())


def survey(job: SurveyJob, tell: Tell, kept: Path | None = None) -> Survey:
    """Read every document of some units once.

    Args:
        job: The units, and what documents have to be.
        tell: Called with what has been read.
        kept: Where content is kept that is dear to read again; None to keep none. It may be that nothing is.

    Raises:
        SourceError: A source cannot be read or is damaged, and ``on_error`` does not leave it out.
    """
    keeper = None if kept is None else ContentWriter(kept)
    surveyor = _Surveyor(job, tell, keeper)
    try:
        for number, unit in enumerate(job.units):
            surveyor.read_unit(number, unit)
    except BaseException:
        if keeper is not None:
            keeper.give_up()
        raise
    if keeper is not None:
        keeper.finish()
    return surveyor.finish()


def reread(
    units: UnitTable,
    rows_D: NDArray[np.void],
    options: ReadOptions,
    *,
    first_row: int = 0,
    before: int = 0,
    kept: Mapping[int, ContentPlace] | None = None,
) -> Iterator[tuple[int, Document | SourceError]]:
    """Read the kept documents of a survey again; units without any are not opened.

    Args:
        units: The units that the rows are of.
        rows_D: Rows of the survey; their units count from the first of ``units``.
        options: How they were read.
        first_row: The row to begin with.
        before: Documents of the first unit that come before the first row.
        kept: Units whose content is kept, each with the place of its first document in ``rows_D``.

    Yields:
        The index of each kept row and its document, or what was raised where it should be.
    """
    rows = np.flatnonzero(rows_D["reason"][first_row:] == KEPT) + first_row
    numbers, firsts = np.unique(rows_D["unit"][rows], return_index=True)
    edges = [*firsts.tolist(), len(rows)]
    reader: ContentReader | None = None
    for chunk in range(0, len(numbers), _CHUNK_UNITS):
        some = numbers[chunk : chunk + _CHUNK_UNITS]
        # Counted from the first document of each unit, which may stand before the first row.
        starts = np.searchsorted(rows_D["unit"], some).tolist()
        for place, (unit, start) in enumerate(zip(units.at(some), starts, strict=True), chunk):
            wanted = rows[edges[place] : edges[place + 1]].tolist()
            content = kept.get(int(numbers[place])) if kept else None
            if content is None:
                yield from _reread_unit(unit, options, wanted, start if start else -before)
                continue
            if reader is None or reader.file != content.file:
                reader = ContentReader(content.file)
            sizes = rows_D["raw_bytes"][start : wanted[-1] + 1].astype(np.int64)
            ends = (content.offset + np.cumsum(sizes)).tolist()
            for row in wanted:
                size = int(sizes[row - start])
                yield row, Document(unit.address, partial(reader.blocks, ends[row - start] - size, size))


def _reread_unit(
    unit: Unit, options: ReadOptions, wanted: list[int], row: int
) -> Iterator[tuple[int, Document | SourceError]]:
    """The documents of one unit that are wanted; its first document would have the index ``row``."""
    missing = iter(wanted)
    following = next(missing)
    try:
        if (content := read_whole(unit)) is not None:
            yield row, Document(unit.address, partial(iter, (content,)))
            return
        for found in read_unit(unit, options):
            if isinstance(found, Skipped):
                continue
            if row == following:
                yield row, found
                following = next(missing, -1)
                if following < 0:
                    return
            row += 1
    except SourceError as error:
        lost = error
    else:
        lost = vanished(unit.address)
    while following >= 0:
        yield following, lost
        following = next(missing, -1)


def vanished(name: bytes) -> SourceError:
    """A document is not what it was when it was surveyed."""
    return SourceError(
        f"{shown_path(name)} has changed since it was surveyed; run the same command with --resume --on-error skip "
        "to leave it out, or with --overwrite to read everything again"
    )


def job_tolerates(on_error: OnError, unit: Unit) -> bool:
    """Whether a unit that cannot be read is left out, and not an end of everything."""
    return on_error == "skip" or (on_error == "named" and unit.in_folder)


class _Table:
    """Notices a table in which not one row has the column that was asked for: its name is wrong then."""

    def __init__(self) -> None:
        self._name = b""
        self._columns: tuple[str, ...] | None = None

    def met(self, found: Document | Skipped, unit: Unit, options: ReadOptions) -> SourceError | None:
        """What is wrong with the table before, if another begins here."""
        name = found.name if isinstance(found, Document) else found.path
        table = name.rpartition(SEPARATOR)[0]
        error = None
        if isinstance(found, Document):
            if found.is_row:
                error = self.ended(unit, options) if table != self._name else None
                self._name, self._columns = table, None
        elif found.columns is not None:
            if table != self._name:
                error = self.ended(unit, options)
                self._name, self._columns = table, found.columns
        elif found.reason == "no_field":  # null there: the column exists
            self._name, self._columns = table, None
        return error

    def ended(self, unit: Unit, options: ReadOptions) -> SourceError | None:
        """What is wrong with the last table; of one that is read in parts only the first is judged."""
        columns, self._columns = self._columns, None
        if columns is None or unit.part or options.field is None:
            return None
        return no_column(self._name, options.field, columns)


class _Surveyor:
    """Reads units and gathers rows."""

    def __init__(self, job: SurveyJob, tell: Tell, keeper: ContentWriter | None) -> None:
        self._job = job
        self._keeper = keeper
        self._tell = tell
        self._digests = bytearray()
        self._rows: list[tuple[int, int, int, int, int]] = []  # bytes, unit, kind, reason, is a row
        self._skipped: Counter[str] = Counter()
        self._meter = DensityMeter() if job.filters.max_bits_per_byte is not None else None
        self._hashes: list[NDArray[np.uint64]] = []
        self._filters = job.filters if job.filters != Filters() else None
        self._told = 0
        self._untold_bytes = 0
        self._faults: list[str] = []
        self._unit_faults = 0
        self._tolerates = False

    def read_unit(self, number: int, unit: Unit) -> None:
        self._unit_faults = 0
        self._tolerates = job_tolerates(self._job.on_error, unit)
        try:
            if (content := read_whole(unit)) is not None:
                self._read(Document(unit.address, partial(iter, (content,))), number)
                return
            keeper = self._keeper if is_dear(unit) else None
            table = _Table()
            for found in read_unit(unit, self._job.options):
                if (error := table.met(found, unit, self._job.options)) is not None:
                    self._fault(error)
                if isinstance(found, Skipped):
                    self._skipped[found.reason] += 1
                else:
                    self._read(found, number, keeper)
            if (error := table.ended(unit, self._job.options)) is not None:
                self._fault(error)
        except SourceError as error:
            if not self._tolerates:
                raise
            self._fault(error)
            self._skipped[error.reason] += 1

    def _fault(self, error: SourceError) -> None:
        """Note what went wrong, or stop."""
        if not self._tolerates:
            raise error
        self._unit_faults += 1
        if self._unit_faults <= _FAULTS_OF_A_UNIT and len(self._faults) < MOST_FAULTS:
            self._faults.append(str(error))

    def finish(self) -> Survey:
        self._tell_now()
        rows = np.zeros(len(self._rows), ROW_TYPE)
        if self._rows:
            rows["digest"] = np.frombuffer(bytes(self._digests), "<u8").reshape(-1, 2)
            columns = np.array(self._rows, np.uint64).T
            for name, column in zip(("raw_bytes", "unit", "kind", "reason", "row"), columns, strict=True):
                rows[name] = column
        none = np.empty((len(rows), 0), np.uint32)
        signatures = signatures_of(self._hashes) if self._job.with_signatures else none
        return Survey(self._job.units, rows, dict(self._skipped), signatures, tuple(self._faults))

    def _read(self, document: Document, unit: int, keeper: ContentWriter | None = None) -> None:
        sampler = StringSampler() if self._job.with_signatures else None
        if self._meter is not None:
            self._meter.start()
        first = b""
        raw_bytes = 0
        hasher = None
        reason: SkipReason | None = None
        try:
            for block in document.blocks():
                if keeper is not None:
                    keeper.add(block, begins=not raw_bytes)
                if not raw_bytes:
                    first = block
                else:
                    if hasher is None:
                        hasher = xxhash.xxh3_128(first)
                    hasher.update(block)
                raw_bytes += len(block)
                if sampler is not None:
                    sampler.add(block)
                if self._meter is not None:
                    self._meter.add(block)
                self._untold_bytes += len(block)
                if self._untold_bytes >= _TELL_BYTES:
                    self._tell_now()
        except SourceError as error:
            self._fault(error)
            reason = error.reason
        kind = kind_of(document.name, first)
        if reason is None:
            reason = self._verdict(kind, raw_bytes)
        self._digests += hasher.digest() if hasher is not None else xxhash.xxh3_128_digest(first)
        self._rows.append((raw_bytes, unit, kind, REASON_CODES[reason] if reason else KEPT, document.is_row))
        if sampler is not None:
            self._hashes.append(sampler.hashes())

    def _verdict(self, kind: int, raw_bytes: int) -> SkipReason | None:
        if not raw_bytes:
            return "empty"
        if self._filters is None:
            return None
        reason = self._filters.verdict(kind, raw_bytes)
        most_bits = self._filters.max_bits_per_byte
        if reason is None and self._meter is not None and most_bits is not None:
            return "dense" if self._meter.bits_per_byte() > most_bits else None
        return reason

    def _tell_now(self) -> None:
        self._tell(Tally(len(self._rows) - self._told, self._untold_bytes, 0))
        self._told, self._untold_bytes = len(self._rows), 0
