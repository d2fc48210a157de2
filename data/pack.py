"""The second reading of an ingestion: partitions, each read again, checked against the survey, cut, split and written.

Writing a partition is a pure function of its job, so any process can do it and the same files come out. A document
that is no longer what the survey saw is an error, or is left out as if it had not been there: documents of up to
1 MiB are checked before a byte of them is written, and for a longer one the partition is begun again without it.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bytelm.data.documents import BLOCK_BYTES, Document
from bytelm.data.file_names import packed_numbers
from bytelm.data.frame_packer import FramePacker
from bytelm.data.index import DIGEST_BYTES, Count, ShardEntry
from bytelm.data.journal import Journal
from bytelm.data.kept_content import ContentPlace
from bytelm.data.kinds import KINDS
from bytelm.data.plan import Partition
from bytelm.data.shard_file import ShardWriter
from bytelm.data.sources import ReadOptions
from bytelm.data.split import TRAIN, VALIDATION, CutPiece, Decision, cut
from bytelm.data.storage import Folder
from bytelm.data.survey import KEPT, OnError, reread, vanished
from bytelm.data.unit_table import UnitTable
from bytelm.data.workers import NOTHING, Tally, Tell, added
from bytelm.errors import SourceError
from bytelm.files import refusals_named

PART: Final = ".part"
"""What is added to the name of a shard while it is written."""

_TELL_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSettings:
    """How partitions are written.

    Attributes:
        folder: The corpus.
        options: How sources are read.
        piece_bytes: Longest piece of a document for the split.
        decision: Which pieces are held out.
        level: zstd level.
        frame_bytes: Raw bytes of a frame.
        shard_bytes: Raw bytes after which a shard takes no further document.
        first_source: Index of the first source in the corpus.
        on_error: What to do with a document that has changed.
    """

    folder: Folder
    options: ReadOptions
    piece_bytes: int
    decision: Decision
    level: int
    frame_bytes: int
    shard_bytes: int
    first_source: int
    on_error: OnError


@dataclass(frozen=True, slots=True, kw_only=True)
class PackJob:
    """Consecutive partitions that are to be written.

    Attributes:
        settings: How.
        partitions: Them.
        units: The units that they are in.
        rows_D: Rows of the survey from the first partition's first on, units counted from the first of ``units``.
        before: Documents of the first unit that come before the first row.
        threads: How many pack; what is written does not depend on it.
        kept: Units whose content is kept, each with the place of its first document in ``rows_D``.
    """

    settings: PackSettings
    partitions: tuple[Partition, ...]
    units: UnitTable
    rows_D: NDArray[np.void]
    before: int
    threads: int
    kept: Mapping[int, ContentPlace]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the documents that stay."""
        return int(self.rows_D["raw_bytes"][self.rows_D["reason"] == KEPT].sum())


@dataclass(frozen=True, slots=True)
class Packed:
    """A partition that was written.

    Attributes:
        number: Which one.
        shards: Its shards, in their places.
        changed: Rows of documents that were left out because they had changed.
        rows: For each shard the row of the document of each piece, as ``packed_numbers``.
    """

    number: int
    shards: tuple[ShardEntry, ...]
    changed: tuple[int, ...]
    rows: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "Packed":
        """What ``as_json`` was called on."""
        shards = tuple(map(ShardEntry.from_json, tree["shards"]))
        return cls(tree["number"], shards, tuple(tree["changed"]), tuple(tree["rows"]))


def pack(job: PackJob, tell: Tell) -> list[Packed]:
    """Write some partitions, and note each in the journal when its shards are in their places.

    The last one is left to be completed by who waits for it: while the disk gets hold of it, the next job is done.

    Args:
        job: The partitions and what is in them.
        tell: Called with what has been written.

    Returns:
        The partitions; the last still has to be handed to ``complete``.

    Raises:
        SourceError: A document has changed, has vanished or cannot be read any more, and ``on_error`` is ``stop``.
        StorageError: The disk or the server refuses.
    """
    with _scratch(job.settings.folder) as scratch, FramePacker(job.settings.level, job.threads) as packer:
        return _Partitions(job, tell, scratch, packer).write()


def complete(folder: Folder, packed: Packed) -> None:
    """Wait until the disk has a partition that was written last, and note it in the journal.

    Raises:
        StorageError: The disk or the server refuses.
    """
    for shard in packed.shards:
        folder.flush(shard.name)
    Journal(folder).write_partition(packed.number, packed.as_json())


class _Changed(Exception):  # noqa: N818  no error: the partition is begun again
    """A document that was written in part turned out to have changed."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


class _Partitions:
    """The partitions of one job."""

    def __init__(self, job: PackJob, tell: Tell, scratch: Path, packer: FramePacker) -> None:
        self._job = job
        self._settings = job.settings
        self._tell_engine = tell
        self._scratch = scratch
        self._packer = packer
        self._first_row = job.partitions[0].begin
        self._digests = job.rows_D["digest"].tobytes()
        self._sizes = job.rows_D["raw_bytes"].tolist()
        self._kinds = job.rows_D["kind"].tolist()
        sources_U = job.units.sources_U + job.settings.first_source
        self._sources = sources_U[job.rows_D["unit"]].tolist()
        self._told = NOTHING

    def write(self) -> list[Packed]:
        documents = self._documents_from(0)
        packed: list[Packed] = []
        for partition in self._job.partitions:
            changed: set[int] = set()
            while True:
                try:
                    shards, rows_of_shards = self._write(partition, documents, changed)
                    break
                except _Changed as found:
                    changed.add(found.row)
                    documents = self._documents_from(partition.begin - self._first_row)
            rows = tuple(row + self._first_row for row in sorted(changed))
            packed.append(Packed(partition.number, tuple(shards), rows, tuple(rows_of_shards)))
            if partition is not self._job.partitions[-1]:
                complete(self._settings.folder, packed[-1])
        return packed

    def _documents_from(self, row: int) -> "Iterator[tuple[int, Document | SourceError]]":
        job = self._job
        return reread(job.units, job.rows_D, self._settings.options, first_row=row, before=job.before, kept=job.kept)

    def _write(
        self, partition: Partition, documents: "Iterator[tuple[int, Document | SourceError]]", changed: set[int]
    ) -> tuple[list[ShardEntry], list[str]]:
        """The shards of a partition, and the rows of each as in ``Packed``.

        Documents whose rows are, or come to be, in ``changed`` are not in them.
        """
        reasons = self._job.rows_D["reason"][partition.begin - self._first_row : partition.end - self._first_row]
        both = [
            _Series(self._settings, split, partition.first_shard, self._scratch, self._packer)
            for split in (TRAIN, VALIDATION)
        ]
        train, validation = both
        holds_out = self._settings.decision.holds_out
        untold_documents = untold_bytes = 0
        try:
            for row, found in islice(documents, int(np.count_nonzero(reasons == KEPT))):
                if row in changed:
                    continue
                kind, source, document = self._kinds[row], self._sources[row], row + self._first_row
                try:
                    for piece in self._pieces(row, found):
                        held_out = holds_out(document, piece.number, piece.data)
                        (validation if held_out else train).append(piece, document, source, kind)
                        untold_bytes += len(piece.data)
                        untold_documents += piece.last
                        if untold_bytes >= _TELL_BYTES:
                            self._tell(untold_documents, untold_bytes, train.packed_bytes + validation.packed_bytes)
                            untold_documents = untold_bytes = 0
                except SourceError:
                    if self._settings.on_error != "skip":
                        raise
                    changed.add(row)  # not a byte of it has been given
            for series in both:
                series.close()
        except BaseException as failure:
            for series in both:
                series.remove()
            if isinstance(failure, _Changed):
                self._take_back()
            raise
        self._tell(untold_documents, untold_bytes, train.packed_bytes + validation.packed_bytes)
        self._told = NOTHING
        return [*train.entries, *validation.entries], [*train.rows, *validation.rows]

    def _pieces(self, row: int, found: Document | SourceError) -> Iterator[CutPiece]:
        if isinstance(found, SourceError):
            raise found
        size, digest = self._sizes[row], self._digests[DIGEST_BYTES * row : DIGEST_BYTES * (row + 1)]
        if size > BLOCK_BYTES:
            return cut(self._checked_blocks(row, found, size, digest), self._settings.piece_bytes)
        data = b""
        for block in found.blocks():
            data = data + block if data else block
            if len(data) > size:
                break
        if len(data) != size or xxhash.xxh3_128_digest(data) != digest:
            raise vanished(found.name)
        if size <= self._settings.piece_bytes:
            return iter((CutPiece(data, 0, True),))
        return cut((data,), self._settings.piece_bytes)

    def _checked_blocks(self, row: int, document: Document, size: int, digest: bytes) -> Iterator[bytes]:
        """The blocks of a document that is too long to be held; its end tells whether it was what it should be."""
        hasher = xxhash.xxh3_128()
        given = 0
        try:
            for block in document.blocks():
                given += len(block)
                if given > size:
                    break
                hasher.update(block)
                yield block
            if given != size or hasher.digest() != digest:
                raise vanished(document.name)
        except SourceError as error:
            if self._settings.on_error != "skip":
                raise
            raise _Changed(row) from error

    def _tell(self, documents: int, raw_bytes: int, packed_bytes: int) -> None:
        """Tell what has been done of the partition since the last time, and how many bytes it has now."""
        tally = Tally(documents, raw_bytes, packed_bytes - self._told.packed_bytes)
        self._tell_engine(tally)
        self._told = added(self._told, tally)

    def _take_back(self) -> None:
        documents, raw_bytes, packed_bytes = self._told
        self._tell_engine(Tally(-documents, -raw_bytes, -packed_bytes))
        self._told = NOTHING


class _Series:
    """The shards of one split of one partition, one after another; usually there is one."""

    def __init__(
        self, settings: PackSettings, split: str, first_number: int, scratch: Path, packer: FramePacker
    ) -> None:
        self._settings = settings
        self._split = split
        self._next_number = first_number
        self._scratch = scratch
        self._packer = packer
        self._file: BinaryIO | None = None
        self._writer: ShardWriter | None = None
        self._expected = (-1, -1)  # document and number of the piece that would go on where the last one ended
        self._kinds: dict[int, list[int]] = {}
        self._closed_bytes = 0
        self._rows: list[int] = []
        self.entries: list[ShardEntry] = []
        self.rows: list[str] = []

    @property
    def packed_bytes(self) -> int:
        return self._closed_bytes + (self._writer.packed_bytes if self._writer else 0)

    def append(self, piece: CutPiece, document: int, source: int, kind: int) -> None:
        writer = self._writer or self._open()
        data, number, last = piece
        counts = self._kinds.get(kind)
        if counts is None:
            counts = self._kinds[kind] = [0, 0]
        counts[0] += number == 0
        counts[1] += len(data)
        try:
            writer.append(
                data,
                starts=number == 0,
                ends=last,
                source=source,
                kind=kind,
                continues=(document, number) == self._expected,
            )
        except OSError as error:
            with refusals_named(self._part):
                raise error
        if (document, number) != self._expected:
            self._rows.append(document)
        self._expected = (document, number + 1)
        if writer.raw_bytes < self._settings.shard_bytes:
            return
        # A document is cut only where it would make the shard twice as large as it should be.
        if last or writer.raw_bytes >= 2 * self._settings.shard_bytes:
            self.close()

    def close(self) -> None:
        """Complete the open shard, if there is one."""
        if self._writer is None or self._file is None:
            return
        with refusals_named(self._part):
            summary = self._writer.finish()
            self._file.close()
        self._settings.folder.put(self._part, self._name)
        kinds = {KINDS[kind]: Count(*counts) for kind, counts in sorted(self._kinds.items())}
        self.entries.append(ShardEntry(name=self._name, split=self._split, **asdict(summary), kinds=kinds))
        self.rows.append(packed_numbers(self._rows))
        self._rows = []
        self._closed_bytes += summary.packed_bytes
        self._file = self._writer = None
        self._expected = (-1, -1)
        self._kinds = {}
        self._next_number += 1

    def remove(self) -> None:
        """Take everything back that was written."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk refuses what is still buffered; it is not wanted
                self._file.close()
            self._part.unlink(missing_ok=True)
        for entry in self.entries:
            self._settings.folder.remove(entry.name)

    @property
    def _name(self) -> str:
        return f"{self._split}-{self._next_number:05d}.zst"

    @property
    def _part(self) -> Path:
        return self._scratch / (self._name + PART)

    def _open(self) -> ShardWriter:
        with refusals_named(self._part):
            self._file = self._part.open("wb")
        self._writer = ShardWriter(self._file, self._packer, frame_bytes=self._settings.frame_bytes)
        return self._writer


@contextlib.contextmanager
def _scratch(folder: Folder) -> Iterator[Path]:
    """Where shards are written until they are complete: the corpus itself, or a temporary folder if it is remote."""
    if folder.local is not None:
        yield folder.local
        return
    with tempfile.TemporaryDirectory(prefix="bytelm-") as place:
        yield Path(place)
