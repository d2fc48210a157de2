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

from bytelm.errors import CheckpointError
from bytelm.files import flush_folder, refusals_named, write_file

PATH_OF_LOG: Final = "metrics.jsonl"


class RunLog:
    """Appends records to the log of a run; made by ``start`` or ``go_on``, closed by ``with`` or ``close``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = b""  # of the records appended, what the disk has not taken yet
        with refusals_named(path):
            self._file = path.open("ab", buffering=0)

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
        """
        assert "kind" in record
        assert isinstance(record["step"], int)
        self._left += _line(record)
        self._write()

    def flush(self) -> None:
        """Flush the records to the disk, so that they survive a power cut.

        Raises:
            StorageError: The disk refuses.
        """
        self._write()
        with refusals_named(self._path):
            os.fsync(self._file.fileno())
            flush_folder(self._path.parent)

    def close(self) -> None:
        """Close the file; nothing can be appended any more."""
        self._file.close()

    def _write(self) -> None:
        with refusals_named(self._path):
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
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; is {run} the folder of a run?") from error
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not (isinstance(record, dict) and isinstance(record.get("step"), int) and "kind" in record):
            raise CheckpointError(
                f"{path} line {number} is no record of a run; remove that line (the weights do not depend on it)"
            )
        records.append(record)
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
