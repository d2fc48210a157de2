"""From sources to a corpus: documents in order, split, packed into shards, and the index last.

Nothing that is not finished can be taken for a corpus: shards are written as ``.part`` and renamed when they are
complete, the index is written after all of them, and a failure removes what it has written. A corpus that is to be
replaced stays whole until the index of the new one has taken its place: shard numbers go on from the old ones.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from bytelm import __version__
from bytelm.data.shard_file import FRAME_BYTES, MOST_PIECES, ShardWriter
from bytelm.data.shards import INDEX, SHARD_NAME, Corpus, Count, Index, Ingestion, ShardEntry
from bytelm.data.sources import (
    KINDS,
    SKIP_REASONS,
    FileIdentity,
    Skipped,
    check_sources,
    find_documents,
    kind_of,
    name_of,
)
from bytelm.data.split import TRAIN, VALIDATION, Block, CutPiece, split
from bytelm.errors import ConfigError, CorpusError, SourceError, StorageError
from bytelm.files import flush_folder, refusals_named, write_file

SHARD_BYTES: Final = 256 << 20
"""Raw bytes after which a shard takes no further document."""

_LEVELS: Final = (1, 22)
_MOST_VALIDATION: Final = 0.5
_MOST_FRAME_BYTES: Final = 64 << 20
_LOCK: Final = ".ingest.lock"
_PART: Final = ".part"
_OURS: Final = re.compile(rf"{SHARD_NAME.pattern}({re.escape(_PART)})?|\.{re.escape(INDEX)}\.\d+{re.escape(_PART)}")
"""Shards, complete or not, and indices that were not renamed any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestProgress:
    """How far an ingestion is.

    Attributes:
        documents: Documents read to their end.
        raw_bytes: Bytes read from them.
        packed_bytes: Bytes written.
        elapsed_s: Seconds since the beginning.
    """

    documents: int
    raw_bytes: int
    packed_bytes: int
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """What an ingestion has made.

    Attributes:
        corpus: The folder.
        fingerprint: Hash of the content, hexadecimal.
        documents: Documents in it, empty ones left out.
        raw_bytes: Their bytes.
        packed_bytes: Bytes of all shards.
        train_bytes: Bytes of the train split.
        validation_bytes: Bytes of the validation split.
        shards: Number of shards.
        skipped: Paths that gave no document, counted by reason.
        split_rule: Name of the rule that decided the splits.
        elapsed_s: Seconds from beginning to end.
    """

    corpus: Path
    fingerprint: str
    documents: int
    raw_bytes: int
    packed_bytes: int
    train_bytes: int
    validation_bytes: int
    shards: int
    skipped: dict[str, int]
    split_rule: str
    elapsed_s: float

    @property
    def ratio(self) -> float:
        """Raw bytes for each packed byte."""
        return self.raw_bytes / self.packed_bytes

    @property
    def bytes_per_second(self) -> float:
        """Raw bytes in a second."""
        return self.raw_bytes / self.elapsed_s

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            **asdict(self),
            "corpus": name_of(self.corpus),
            "ratio": round(self.ratio, 4),
            "elapsed_s": round(self.elapsed_s, 3),
            "bytes_per_second": round(self.bytes_per_second),
        }


def ingest(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    level: int = 9,
    validation_fraction: float = 0.01,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    frame_bytes: int = FRAME_BYTES,
    on_progress: Callable[[IngestProgress], None] | None = None,
) -> IngestReport:
    """Make a corpus from files and folders, in constant memory.

    Args:
        sources: Files and folders; their order is the order of the corpus.
        out: Folder of the corpus, made if missing. It is never read as a source.
        level: zstd level, 1 to 22.
        validation_fraction: Share of the content that is held out, 0 to 0.5; small corpora hold out more, see
            ``bytelm.data.split``. 0 makes a corpus without validation.
        overwrite: Replace a corpus that is already at ``out``.
        shard_bytes: Raw bytes after which a shard takes no further document.
        frame_bytes: Raw bytes of a frame.
        on_progress: Called after every piece of a document that was written.

    Returns:
        What was made.

    Raises:
        ConfigError: A setting is out of its range.
        SourceError: A source is missing or cannot be read, or there is not one byte to ingest.
        CorpusError: ``out`` already holds a corpus or other files, or another process writes there.
        StorageError: The disk refuses. What was at ``out`` before is untouched then, as after any failure.
    """
    begun_s = time.monotonic()
    _check_settings(level, validation_fraction, shard_bytes, frame_bytes)
    paths = [Path(source) for source in sources]
    folder = Path(out)
    check_sources(paths)
    _check_apart(paths, folder)
    with _sole_writer(folder):
        with refusals_named(folder):
            old_shards = _old_shards(folder, overwrite=overwrite)
        number = _free_number(old_shards)
        train, validation = (
            _ShardSeries(folder, name, number, level=level, shard_bytes=shard_bytes, frame_bytes=frame_bytes)
            for name in (TRAIN, VALIDATION)
        )
        with _removed_on_failure(folder, train, validation):
            reading = _Reading(paths, folder)
            rule, pieces = split(reading.blocks(), validation_fraction)
            for where, piece in pieces:
                (train if where == TRAIN else validation).append(piece)
                if on_progress is not None:
                    on_progress(
                        IngestProgress(
                            documents=reading.documents,
                            raw_bytes=reading.raw_bytes,
                            packed_bytes=train.packed_bytes + validation.packed_bytes,
                            elapsed_s=time.monotonic() - begun_s,
                        )
                    )
            train.close()
            validation.close()
            shards = [*train.entries, *validation.entries]
            if not shards:
                raise SourceError(f"nothing to ingest: not one byte was found ({_counts(reading.skipped)})")
            index = Index(
                frame_bytes=frame_bytes,
                all_shards=tuple(shards),
                digests=(),
                ingestions=(
                    Ingestion(
                        made_by=f"bytelm {__version__}",
                        settings={},
                        sources=tuple(reading.summary()),
                        skipped={name: Count(count, 0) for name, count in reading.skipped.items() if count},
                    ),
                ),
                kinds=KINDS,
                split_rule=asdict(rule),
            )
            write_file(folder / INDEX, index.to_text())
            fingerprint = index.fingerprint
        for name in old_shards:
            (folder / name).unlink(missing_ok=True)
    return IngestReport(
        corpus=folder,
        fingerprint=fingerprint,
        documents=reading.documents,
        raw_bytes=reading.raw_bytes,
        packed_bytes=train.packed_bytes + validation.packed_bytes,
        train_bytes=train.raw_bytes,
        validation_bytes=validation.raw_bytes,
        shards=len(shards),
        skipped=reading.skipped,
        split_rule=rule.name,
        elapsed_s=time.monotonic() - begun_s,
    )


class _Reading:
    """The documents of all sources as blocks, and what was counted on the way."""

    def __init__(self, sources: Sequence[Path], out: Path) -> None:
        self._sources = sources
        status = out.stat()
        self._out: FileIdentity = (status.st_dev, status.st_ino)
        self._documents = [0] * len(sources)
        self._raw_bytes = [0] * len(sources)
        self.skipped: dict[str, int] = dict.fromkeys(SKIP_REASONS, 0)

    @property
    def documents(self) -> int:
        return sum(self._documents)

    @property
    def raw_bytes(self) -> int:
        return sum(self._raw_bytes)

    def blocks(self) -> Iterator[Block]:
        number = 0
        for found in find_documents(self._sources, without={self._out}):
            if isinstance(found, Skipped):
                self.skipped[found.reason] += 1
                continue
            blocks = found.blocks()
            data = next(blocks, None)
            if data is None:
                self.skipped["empty"] += 1
                continue
            kind = kind_of(data)
            self._documents[found.source] += 1
            while data is not None:  # one block ahead, because a document's last block has to be known as such
                following = next(blocks, None)
                self._raw_bytes[found.source] += len(data)
                yield Block(data, number, following is None, found.source, kind)
                data = following
            number += 1

    def summary(self) -> list[dict[str, Any]]:
        return [
            {"name": name_of(source), "documents": documents, "raw_bytes": raw_bytes}
            for source, documents, raw_bytes in zip(self._sources, self._documents, self._raw_bytes, strict=True)
        ]


class _ShardSeries:
    """The shards of one split, one after another."""

    def __init__(
        self, folder: Path, split: str, first_number: int, *, level: int, shard_bytes: int, frame_bytes: int
    ) -> None:
        self._folder = folder
        self._split = split
        self._first_number = first_number
        self._level = level
        self._shard_bytes = shard_bytes
        self._frame_bytes = frame_bytes
        self._file: BinaryIO | None = None
        self._writer: ShardWriter | None = None
        self._expected = (-1, -1)  # document and number of the piece that would go on where the last one ended
        self._raw_bytes = 0
        self._packed_bytes = 0
        self.entries: list[ShardEntry] = []
        self._name_next()

    @property
    def raw_bytes(self) -> int:
        return self._raw_bytes + (self._writer.raw_bytes if self._writer else 0)

    @property
    def packed_bytes(self) -> int:
        return self._packed_bytes + (self._writer.packed_bytes if self._writer else 0)

    def append(self, piece: CutPiece) -> None:
        with refusals_named(self._part):
            writer = self._writer or self._open()
            writer.append(
                piece.data,
                starts=piece.number == 0,
                ends=piece.last,
                source=piece.source,
                kind=piece.kind,
                continues=(piece.document, piece.number) == self._expected,
            )
        self._expected = (piece.document, piece.number + 1)
        full = writer.raw_bytes >= self._shard_bytes or writer.pieces >= MOST_PIECES
        # A document is cut only where it would make the shard twice as large as it should be.
        if (full and piece.last) or writer.raw_bytes >= 2 * self._shard_bytes:
            self.close()

    def close(self) -> None:
        """Complete the open shard, if there is one."""
        if self._writer is None or self._file is None:
            return
        with refusals_named(self._part):
            summary = self._writer.finish()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.rename(self._place)
            flush_folder(self._folder)
        self.entries.append(ShardEntry(name=self._place.name, split=self._split, **asdict(summary), kinds={}))
        self._raw_bytes += summary.raw_bytes
        self._packed_bytes += summary.packed_bytes
        self._file = self._writer = None
        self._expected = (-1, -1)
        self._name_next()

    def remove(self, *, keep: Collection[str]) -> None:
        """Take everything back that was written, but for the names in ``keep``."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk refuses what is still buffered; it is not wanted
                self._file.close()
        for path in (self._part, self._place, *(self._folder / entry.name for entry in self.entries)):
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def _name_next(self) -> None:
        name = f"{self._split}-{self._first_number + len(self.entries):05d}.zst"
        self._place = self._folder / name
        self._part = self._folder / (name + _PART)

    def _open(self) -> ShardWriter:
        self._file = self._part.open("xb")
        self._writer = ShardWriter(self._file, level=self._level, frame_bytes=self._frame_bytes)
        return self._writer


@contextlib.contextmanager
def _removed_on_failure(folder: Path, *series: _ShardSeries) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # An interrupt may come when the index has just taken its place: then these shards are the corpus.
        named = _named_shards(folder)
        for one in series:
            one.remove(keep=named)
        raise


def _named_shards(folder: Path) -> set[str]:
    try:
        return {shard.name for shard in Corpus.open(folder).all_shards}
    except CorpusError:
        return set()


@contextlib.contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; a folder that was made and stayed empty goes again."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"cannot write {folder}: it is a file, not a folder; choose another --out")
    made = not folder.exists()
    place = folder / _LOCK
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _locked(lock, place):
            raise CorpusError(
                f"another process is ingesting into {folder}; wait until it has finished, or choose another --out"
            )
        try:
            yield
        finally:
            place.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # not empty: the corpus is in it
                    folder.rmdir()
    finally:
        os.close(lock)


def _locked(lock: int, place: Path) -> bool:
    """Take the lock if nobody has it; the kernel lets go of it however this process ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), place.stat())  # else its last holder has just taken it away
    except (BlockingIOError, FileNotFoundError):
        return False


def _old_shards(folder: Path, *, overwrite: bool) -> list[str]:
    """Files that a new index will make superfluous; what a killed ingestion left is removed at once.

    Raises:
        CorpusError: There is a corpus that is not to be replaced, or something that is no corpus.
    """
    names = sorted(path.name for path in folder.iterdir())
    ours = [name for name in names if _OURS.fullmatch(name)]
    if INDEX in names:
        if not overwrite:
            raise CorpusError(
                f"{folder} already holds a corpus; choose another --out, or add --overwrite to replace it"
            )
        return ours
    foreign = [name for name in names if name not in ours and name != _LOCK]
    if foreign:
        raise CorpusError(
            f"{folder} is not empty and holds no corpus, but {foreign[0]!r}; choose a new or empty folder for --out"
        )
    for name in ours:
        (folder / name).unlink()
    return []


def _free_number(old_shards: Sequence[str]) -> int:
    """The first number above those of all old shards."""
    numbers = [int(match["number"]) for match in map(SHARD_NAME.match, old_shards) if match]
    return max(numbers, default=-1) + 1


def _check_settings(level: int, validation_fraction: float, shard_bytes: int, frame_bytes: int) -> None:
    if not _LEVELS[0] <= level <= _LEVELS[1]:
        raise ConfigError(f"level = {level}: zstd has the levels {_LEVELS[0]} to {_LEVELS[1]}; 9 is the default")
    if not 0 <= validation_fraction <= _MOST_VALIDATION:
        raise ConfigError(
            f"validation_fraction = {validation_fraction}: a share from 0 to {_MOST_VALIDATION} is needed"
        )
    if not (1 <= frame_bytes <= _MOST_FRAME_BYTES and shard_bytes >= 1):
        raise ConfigError(
            f"frame_bytes = {frame_bytes}, shard_bytes = {shard_bytes}: "
            f"at least 1, and a frame at most {_MOST_FRAME_BYTES}"
        )


def _check_apart(sources: Sequence[Path], folder: Path) -> None:
    out = folder.resolve()
    for source in sources:
        if source.resolve().is_relative_to(out):
            raise SourceError(f"{name_of(source)!r} lies in {folder}, which is --out; choose another --out")


def _counts(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count) or "no files"
