"""``metrics.jsonl``: what happened at each logged step of a run, one JSON object a line, each step once.

A record has at least ``kind`` (what it tells) and ``step``. Lines are appended and reach the operating system at
once, so that a run can be watched while it works and a kill loses nothing that was logged. A run that goes on from
a checkpoint forgets what it had logged after that checkpoint, and a line that a power cut left half written is
forgotten too. What a full disk does not take is kept and written as soon as there is room.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bytelm.bounded_reading import lines_of
from bytelm.errors import CheckpointError, SourceError, TrainingError
from bytelm.files import flush_folder, refusals_named, write_file
from bytelm.own_files import ANYTHING, FINITE, TEXT, WHOLE, Fields, FormError, ListOf, Nullable, Number, parse_json

PATH_OF_LOG: Final = "metrics.jsonl"

_LINE_BYTES: Final = 4 << 20
_LOG_BYTES: Final = 2 << 30
_BY_HEAD: Final = Nullable(ListOf(Nullable(FINITE), most=1024))
_RATE: Final = Nullable(Number(0.0))
_RECORD: Final = Fields({"kind": TEXT, "step": WHOLE}, others=ANYTHING)
_NUMBERS: Final = {
    "bytes_seen": Nullable(WHOLE),
    "flops": _RATE,
    "elapsed_s": _RATE,
    "bits_per_byte": Nullable(FINITE),
    "bits_per_byte_by_head": _BY_HEAD,
}
_KINDS: Final = {
    "step": Fields(
        optional={
            **_NUMBERS,
            "fraction": Nullable(FINITE),
            "loss": Nullable(FINITE),
            "grad_norm": _RATE,
            "learning_rate": _RATE,
            "bytes_per_second": _RATE,
            "mfu": _RATE,
            "memory_bytes": Nullable(WHOLE),
            "peak_memory_bytes": Nullable(WHOLE),
        },
        others=ANYTHING,
    ),
    "validation": Fields(
        optional={
            **_NUMBERS,
            "best_bits_per_byte": Nullable(FINITE),
            "agreement_by_head": _BY_HEAD,
            "bytes_per_step_estimate": _RATE,
            "scored_bytes": Nullable(WHOLE),
            "prompt": Nullable(TEXT),
            "sample": Nullable(TEXT),
        },
        others=ANYTHING,
    ),
}
"""What reports draw. Logs of older versions hold less, those of newer ones more."""


class RunLog:
    """Appends records to the log of a run; made by ``start`` or ``go_on``, closed by ``with`` or ``close``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = b""  # of the records appended, what the disk has not taken yet
        with refusals_named(path):
            self._file = path.open("ab", buffering=0)
            self._folder = path.parent.stat()

    @classmethod
    def start(cls, run: Path) -> Self:
        """An empty log in a run folder; an older one there is emptied.

        Raises:
            StorageError: The disk refuses.
        """
        path = run / PATH_OF_LOG
        write_file(path, b"")
        return cls(path)

    @classmethod
    def go_on(cls, run: Path, step: int, *, again: Collection[str] = ()) -> Self:
        """The log of a run that continues behind a step: later records, which will be made again, are dropped.

        Args:
            run: Folder of the run.
            step: The step of the checkpoint; its own records stay.
            again: Kinds of its own records that will be made again, too.

        Raises:
            CheckpointError: A line is no record (of this program).
            StorageError: The disk refuses.
        """
        path = run / PATH_OF_LOG
        if path.exists():
            _drop_after(path, step, again)
        return cls(path)

    def go_back(self, step: int, *, again: Collection[str] = ()) -> None:
        """Drop the records behind a step, because they will be made again.

        Args:
            step: Its own records stay.
            again: Kinds of its own records that go, too.

        Raises:
            CheckpointError: A line is no record (of this program).
            StorageError: The disk refuses; nothing was dropped.
        """
        self._write()
        _drop_after(self._path, step, again)
        self._file.close()
        with refusals_named(self._path):
            self._file = self._path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record. If the disk refuses, it is kept and written with the next one.

        Args:
            record: JSON values with at least ``kind`` and ``step``; no NaN and no infinity (None says "unknown").

        Raises:
            StorageError: The disk refuses.
            TrainingError: The folder of the run has vanished.
        """
        assert "kind" in record
        assert isinstance(record["step"], int)
        self._left += _line(record)
        self._write()

    def flush(self) -> None:
        """Flush the records to the disk, so that they survive a power cut.

        Raises:
            StorageError: The disk refuses.
            TrainingError: The folder of the run has vanished.
        """
        self._write()
        with refusals_named(self._path):
            os.fsync(self._file.fileno())
            flush_folder(self._path.parent)

    def close(self) -> None:
        """Close the file; nothing can be appended any more."""
        self._file.close()

    def _find(self) -> None:
        """Go on in the file that has the log's name: what is written into one that was taken away is lost."""
        run = self._path.parent
        try:
            there = os.path.samestat(run.stat(), self._folder)
        except (FileNotFoundError, NotADirectoryError):
            there = False
        if not there:
            raise TrainingError(
                f"{run} has vanished while it was trained: it was deleted, moved or is on a disk that has gone; "
                "put it back and go on with --resume auto, or start again"
            )
        try:
            same = os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            same = False
        if not same:
            self._file.close()
            self._file = self._path.open("ab", buffering=0)

    def _write(self) -> None:
        with refusals_named(self._path):
            self._find()
            while self._left:  # a disk that is nearly full takes a part, then refuses
                self._left = self._left[self._file.write(self._left) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """All records of a run, oldest first. A last line without its newline was cut short and is left out.

    Raises:
        CheckpointError: There is no log, or a line is no record.
    """
    path = run / PATH_OF_LOG
    remedy = "remove that line (the weights do not depend on it)"

    def too_large(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: {what}; is it the log of a run?")

    records = []
    try:
        for number, line in enumerate(lines_of(path, _LINE_BYTES, _LOG_BYTES, too_large, whole=True), start=1):
            try:
                record = parse_json(line, _RECORD)
            except FormError as error:
                raise CheckpointError(f"{path} line {number} is no record of a run: {error}; {remedy}") from error
            if (schema := _KINDS.get(record["kind"])) is not None:
                try:
                    schema.check(record)
                except FormError as error:
                    raise CheckpointError(f"{path} line {number}: {error}; {remedy}") from error
            records.append(record)
    except SourceError as error:
        cause = str(error).partition(";")[0]
        raise CheckpointError(f"{cause}; is {run} the folder of a run?") from error
    return records


def _drop_after(path: Path, step: int, again: Collection[str]) -> None:
    kept = [
        _line(record)
        for record in read_log(path.parent)
        if record["step"] < step or (record["step"] == step and record["kind"] not in again)
    ]
    write_file(path, b"".join(kept))


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
