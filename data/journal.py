"""What an ingestion has done so far, kept beside what it writes, so that another one can go on from there.

    .ingest/job.json               what was asked for, and what was there before
    .ingest/survey-000000 …        finished parts of the survey, each with its units
    .ingest/surveyed.json          the survey is complete: how many parts
    .ingest/decision.json          which pieces of the head are held out
    .ingest/partition-000000 …     finished partitions: the entries of their shards
    .ingest/stdin                  what was read from standard input
    .ingest/content-000000 …       content that is dear to read again, by parts of the survey; not for resuming

Every file carries a checksum; one that is damaged counts as not there, and its work is done again. The folder goes
when the index is in its place. Nothing in it is unpickled.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from bytelm.data.index import MOST_INDEX_BYTES, SHARD_SCHEMA
from bytelm.data.split import Decision
from bytelm.data.storage import Folder
from bytelm.data.survey import ROW_TYPE, Survey, SurveyJob, survey
from bytelm.data.unit_table import UnitTable
from bytelm.data.workers import Tell
from bytelm.own_files import (
    ANYTHING,
    TEXT,
    WHOLE,
    Fields,
    FormError,
    ListOf,
    Nullable,
    Number,
    Schema,
    Text,
    parse_json,
)

JOURNAL: Final = ".ingest"

_VERSION: Final = 2
_JOB: Final = f"{JOURNAL}/job.json"
_SURVEYED: Final = f"{JOURNAL}/surveyed.json"
_DECISION: Final = f"{JOURNAL}/decision.json"
_CONTENT: Final = f"{JOURNAL}/content"
_STDIN: Final = "stdin"

_COUNTS: Final = Fields(others=WHOLE)
_JOB_SCHEMA: Final = Fields(
    {
        "mode": Text(("new", "overwrite", "append")),
        "settings": Fields(others=ANYTHING),
        "sources": ListOf(TEXT),
        "first_shard": WHOLE,
        "base": Nullable(TEXT),
        "journal": WHOLE,
    }
)
_SURVEYED_SCHEMA: Final = Fields({"parts": Number(least=0, most=1 << 30, whole=True), "skipped": _COUNTS})
_PAIR: Final = ListOf(WHOLE, least=2, most=2)
_DECISION_SCHEMA: Final = Fields(
    {"threshold": Number(least=0, most=1 << 64, whole=True), "head_end": _PAIR, "held_out": ListOf(_PAIR)}
)
_PARTITION_SCHEMA: Final = Fields(
    {"number": WHOLE, "shards": ListOf(SHARD_SCHEMA), "changed": ListOf(WHOLE), "rows": ListOf(TEXT)}
)
_MOST_JSON_BYTES: Final = 2 * MOST_INDEX_BYTES  # an index is in it, as text
_MOST_EXPANSION: Final = 10_000


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of an ingestion into a folder.

    Attributes:
        folder: The corpus that is being made.
    """

    folder: Folder

    def begin(self, job: Mapping[str, Any]) -> None:
        """Note what is to be done; from here on the folder holds an unfinished ingestion.

        Raises:
            StorageError: The disk or the server refuses.
        """
        self.folder.write(_JOB, _signed({**job, "journal": _VERSION}), durable=False)

    def job(self) -> dict[str, Any] | None:
        """What was noted to be done; None if there is no journal that this bytelm can read.

        Raises:
            OSError: The folder cannot be read.
        """
        job = self._read_signed(_JOB, _JOB_SCHEMA)
        return job if job is not None and job.pop("journal", None) == _VERSION else None

    def has_progress(self) -> bool:
        """Whether any part is finished."""
        return any(name.startswith(("survey", "partition")) for name in self.folder.names(JOURNAL))

    def write_survey(self, part: int, survey: Survey) -> None:
        """Note a finished part of the survey."""
        arrays = {
            **survey.units.arrays(),
            "rows": survey.rows_D,
            "signatures": survey.signatures_D,
            "skipped": np.frombuffer(json.dumps(survey.skipped).encode(), np.uint8),
            "faults": np.frombuffer(json.dumps(survey.faults).encode(), np.uint8),
        }
        self.folder.write(_survey_name(part), _packed(arrays), durable=False)

    def survey(self, part: int) -> Survey | None:
        """A finished part of the survey; None if it is not there."""
        arrays = _unpacked(self._read(_survey_name(part)))
        if arrays is None:
            return None
        try:
            found = Survey(
                units=UnitTable.from_arrays(arrays),
                rows_D=arrays["rows"].copy(),
                skipped=parse_json(arrays["skipped"].tobytes(), _COUNTS),
                signatures_D=arrays["signatures"],
                faults=tuple(parse_json(arrays["faults"].tobytes(), ListOf(TEXT))),
            )
        except (KeyError, ValueError):  # of another bytelm
            return None
        return found if found.rows_D.dtype == ROW_TYPE else None

    def complete_survey(self, parts: int, skipped: Mapping[str, int]) -> None:
        """Note that the survey is complete.

        Args:
            parts: How many parts it has.
            skipped: What gave no unit, counted by reason.
        """
        self.folder.write(_SURVEYED, _signed({"parts": parts, "skipped": dict(skipped)}), durable=False)

    def surveyed(self) -> tuple[int, dict[str, int]] | None:
        """Parts and skipped of a survey that is complete; None if it is not."""
        tree = self._read_signed(_SURVEYED, _SURVEYED_SCHEMA)
        return None if tree is None else (tree["parts"], tree["skipped"])

    def write_decision(self, decision: Decision) -> None:
        """Note which pieces are held out: the head may read otherwise when the ingestion is resumed."""
        tree = {
            "threshold": decision.threshold,
            "head_end": decision.head_end,
            "held_out": sorted(decision.held_out),
        }
        self.folder.write(_DECISION, _signed(tree), durable=False)

    def decision(self) -> Decision | None:
        """Which pieces are held out; None if that is not noted."""
        tree = self._read_signed(_DECISION, _DECISION_SCHEMA)
        if tree is None:
            return None
        held_out = frozenset((document, number) for document, number in tree["held_out"])
        document, number = tree["head_end"]
        return Decision(tree["threshold"], (document, number), held_out)

    def write_partition(self, number: int, tree: Mapping[str, Any]) -> None:
        """Note a finished partition; its shards must be in their places."""
        self.folder.write(_partition_name(number), _signed(tree), durable=False)

    def partition(self, number: int) -> dict[str, Any] | None:
        """What was noted of a finished partition; None if it is not there."""
        return self._read_signed(_partition_name(number), _PARTITION_SCHEMA)

    def content(self, part: int) -> Path | None:
        """Where content of a part of the survey is kept that is dear to read again; None if there is no disk for it."""
        return None if self.folder.local is None else self.folder.local / f"{_CONTENT}-{part:06d}"

    def remove_content(self) -> None:
        """Remove all such content: nobody knows what it is the content of, once an ingestion was given up.

        Raises:
            StorageError: The disk or the server refuses.
        """
        for name in self.folder.names(JOURNAL) if self.folder.local is not None else ():
            if f"{JOURNAL}/{name}".startswith(_CONTENT):
                self.folder.remove(f"{JOURNAL}/{name}")

    def stdin(self, scratch: Path) -> Path:
        """Where what is read from standard input is kept: here, or in ``scratch`` if this folder is elsewhere."""
        return (scratch if self.folder.local is None else self.folder.local / JOURNAL) / _STDIN

    def remove(self) -> None:
        """Remove the journal: the ingestion is finished, or given up.

        Raises:
            StorageError: The disk or the server refuses.
        """
        self.folder.remove(_JOB)  # first: without it the others count for nothing
        for name in self.folder.names(JOURNAL):
            self.folder.remove(f"{JOURNAL}/{name}")
        if self.folder.local is not None and (self.folder.local / JOURNAL).is_dir():
            (self.folder.local / JOURNAL).rmdir()

    def _read(self, name: str) -> bytes:
        try:
            return self.folder.read(name)
        except (FileNotFoundError, NotADirectoryError):
            return b""

    def _read_signed(self, name: str, schema: Schema) -> dict[str, Any] | None:
        try:
            content = self.folder.read_small(name, _MOST_JSON_BYTES)
            tree = parse_json(content or b"", Fields({"content": ANYTHING, "checksum": TEXT}))
            if tree["checksum"] != _checksum(tree["content"]):
                return None
            schema.check(tree["content"])
        except (FileNotFoundError, NotADirectoryError, FormError):
            return None
        return tree["content"]


@dataclass(frozen=True, slots=True)
class NotedSurveyJob:
    """A part of the survey that is noted in the journal when it is finished.

    Attributes:
        part: Which one.
        journal: It.
        job: The units.
    """

    part: int
    journal: Journal
    job: SurveyJob

    @property
    def weight_bytes(self) -> int:
        """As the job's."""
        return self.job.weight_bytes


def survey_and_note(noted: NotedSurveyJob, tell: Tell) -> Survey:
    """Survey some units and note it; see ``survey``."""
    found = survey(noted.job, tell, noted.journal.content(noted.part))
    noted.journal.write_survey(noted.part, found)
    return found


def _survey_name(part: int) -> str:
    return f"{JOURNAL}/survey-{part:06d}"


def _partition_name(number: int) -> str:
    return f"{JOURNAL}/partition-{number:06d}"


def _checksum(content: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


def _signed(content: Mapping[str, Any]) -> bytes:
    content = json.loads(json.dumps(content))  # as it will be read
    return json.dumps({"content": content, "checksum": _checksum(content)}, indent=1).encode("ascii")


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(file.getbuffer())


def _unpacked(content: bytes) -> dict[str, NDArray[Any]] | None:
    try:
        size = zstandard.get_frame_parameters(content).content_size
        if size > _MOST_EXPANSION * len(content):
            return None
        file = io.BytesIO(zstandard.ZstdDecompressor().decompress(content, max_output_size=1))
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (zstandard.ZstdError, zipfile.BadZipFile, ValueError, EOFError, KeyError):
        return None
