"""The survey: the same rows whoever reads, and the same documents a second time."""

import gzip
import random
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from bytelm.data.documents import Document
from bytelm.data.filters import Filters
from bytelm.data.journal import Journal
from bytelm.data.kinds import KINDS
from bytelm.data.sources import ReadOptions, Skipped, Unit, find_units
from bytelm.data.split import Decision
from bytelm.data.storage import folder_at
from bytelm.data.survey import KEPT, REASON_CODES, OnError, Survey, SurveyJob, reread, survey
from bytelm.data.unit_table import UnitTable
from bytelm.data.workers import Tally
from bytelm.errors import SourceError

UNITS = st.lists(
    st.builds(
        Unit,
        st.integers(0, 9),
        st.binary(max_size=20),
        st.sampled_from(["file", "zip", "tar+gz"]),
        st.integers(0, 1 << 50),
        st.integers(0, 5),
        st.integers(1, 9),
    ),
    max_size=8,
)


@given(UNITS, UNITS)
def test_a_table_gives_its_units_back_whole_in_parts_and_joined(one: list[Unit], other: list[Unit]) -> None:
    table = UnitTable.of(one)
    assert list(table) == [table[number] for number in range(len(table))] == one
    joined = UnitTable.joined([table, UnitTable.of(other)])
    assert list(joined) == one + other
    for begin in range(len(joined) + 1):
        for end in range(begin, len(joined) + 1):
            assert list(joined.between(begin, end)) == (one + other)[begin:end]
    assert UnitTable.from_arrays(table.arrays()) == table
    assert (table == UnitTable.of(other)) == (one == other)
    assert list(table.form_is("zip")) == [unit.form == "zip" for unit in one]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Files, an archive of 30, a compressed file, an empty one."""
    folder = tmp_path / "files"
    folder.mkdir()
    chance = random.Random(1)
    for number in range(10):
        (folder / f"{number}.py").write_bytes(b"print('%d')\n" % chance.getrandbits(60) * 20)
    (folder / "empty").touch()
    (folder / "large").write_bytes(chance.randbytes(3 << 20))
    (folder / "packed.txt.gz").write_bytes(gzip.compress(b"packed\n" * 1000))
    with tarfile.open(folder / "archive.tar.gz", "w:gz") as archive:
        for number in range(30):
            (tmp_path / "member").write_bytes(b"member %d\n" % (number % 25) * 100)
            archive.add(tmp_path / "member", f"{number}")
    return folder


def units_of(place: Path) -> list[Unit]:
    return [unit for unit in find_units([str(place)], ReadOptions()) if isinstance(unit, Unit)]


def survey_of(units: Sequence[Unit], on_error: OnError = "stop", tallies: list[Tally] | None = None) -> Survey:
    job = SurveyJob(
        units=UnitTable.of(units), options=ReadOptions(), filters=Filters(), on_error=on_error, with_signatures=False
    )
    return survey(job, (tallies if tallies is not None else []).append)


def test_rows_tell_what_documents_are(place: Path) -> None:
    tallies: list[Tally] = []
    found = survey_of(units_of(place), tallies=tallies)
    content = {path.name: path.read_bytes() for path in place.iterdir()}
    rows = found.rows_D
    assert len(rows) == 10 + 1 + 1 + 1 + 30
    assert [unit.address.rpartition(b"/")[2] for unit in found.units] == sorted(name.encode() for name in content)
    for name in ("3.py", "large"):
        unit = sorted(content).index(name)
        (row,) = rows[rows["unit"] == unit]
        assert row["digest"].tobytes() == xxhash.xxh3_128_digest(content[name])
        assert row["raw_bytes"] == len(content[name])
        assert row["reason"] == KEPT
    assert KINDS[int(rows[0]["kind"])] == "python"
    (empty,) = rows[rows["unit"] == sorted(content).index("empty")]
    assert empty["reason"] == REASON_CODES["empty"]
    assert sum(tally.documents for tally in tallies) == len(rows)
    assert sum(tally.raw_bytes for tally in tallies) == rows["raw_bytes"].sum()


def test_parts_joined_are_the_whole(place: Path) -> None:
    units = units_of(place)
    whole = survey_of(units)
    parts = Survey.joined(survey_of(units[begin : begin + 3]) for begin in range(0, len(units), 3))
    assert parts.units == whole.units
    assert np.array_equal(parts.rows_D, whole.rows_D)
    assert len(Survey.joined([]).rows_D) == 0


def test_kept_documents_are_read_again_from_any_row_on(place: Path) -> None:
    found = survey_of(units_of(place))
    rows = found.rows_D
    rows["reason"][5:20:3] = REASON_CODES["duplicate"]
    kept = np.flatnonzero(rows["reason"] == KEPT).tolist()
    for first in range(0, len(rows), 7):
        again = list(digests_of(reread(found.units, rows, ReadOptions(), first_row=first)))
        assert again == [(row, rows["digest"][row].tobytes()) for row in kept if row >= first]
        # The same from a slice, whose first unit may have begun before it.
        unit = int(rows["unit"][first])
        part = rows[first:].copy()
        part["unit"] -= unit
        units = found.units.between(unit, len(found.units))
        before = first - int(np.searchsorted(rows["unit"], unit))
        sliced = digests_of(reread(units, part, ReadOptions(), before=before))
        assert [(row + first, digest) for row, digest in sliced] == again


def digests_of(documents: Iterable[tuple[int, Document | SourceError]]) -> Iterator[tuple[int, bytes]]:
    for row, found in documents:
        assert isinstance(found, Document)
        yield row, xxhash.xxh3_128_digest(b"".join(found.blocks()))


def test_documents_that_are_gone_are_told_row_by_row(place: Path) -> None:
    found = survey_of(units_of(place))
    with tarfile.open(place / "archive.tar.gz", "w:gz") as archive:
        archive.add(place / "1.py", "1")
    (place / "3.py").unlink()
    (place / "large").unlink()
    lost: dict[str, list[int]] = {"3.py': there is no": [], "archive.tar.gz' has changed since it was surveyed": []}
    for row, document in reread(found.units, found.rows_D, ReadOptions()):
        if isinstance(document, SourceError):
            lost[next(what for what in lost if what in str(document))].append(row)
        elif document.name.endswith(b"/large"):
            with pytest.raises(SourceError, match=r"large': there is no such file"):
                list(document.blocks())
    names = [unit.address.rpartition(b"/")[2] for unit in found.units]
    small, members = (
        np.flatnonzero(found.rows_D["unit"] == names.index(name)).tolist() for name in (b"3.py", b"archive.tar.gz")
    )
    assert list(lost.values()) == [small, members[1:]]


def test_what_is_damaged_stops_or_is_counted(place: Path) -> None:
    archive = place / "archive.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-20])
    packed = place / "packed.txt.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"archive\.tar\.gz"):
        survey_of(units_of(place))
    found = survey_of(units_of(place), "skip")
    damaged = int((found.rows_D["reason"] == REASON_CODES["damaged"]).sum()) + found.skipped.get("damaged", 0)
    assert damaged == 2
    assert int((found.rows_D["reason"] == KEPT).sum()) >= 11


def test_the_journal_gives_back_what_it_was_given(place: Path, tmp_path: Path) -> None:
    journal = Journal(folder_at(tmp_path / "corpus"))
    assert journal.job() is None
    assert not journal.has_progress()
    found = survey_of([*units_of(place)])
    job: dict[str, Any] = {
        "mode": "new",
        "settings": {"level": 3},
        "sources": ["a"],
        "first_shard": 0,
        "base": None,
    }
    journal.begin(job)
    journal.write_survey(2, found)
    journal.complete_survey(7, {"link": 3})
    decision = Decision((1 << 64) - 1, (3, 4), frozenset([(0, 1), (2, 0)]))
    journal.write_decision(decision)
    partition = {"number": 5, "shards": [], "changed": [3], "rows": []}
    journal.write_partition(5, partition)
    again = Journal(folder_at(tmp_path / "corpus"))
    assert again.job() == job
    assert again.has_progress()
    noted = again.survey(2)
    assert noted is not None
    assert noted.units == found.units
    assert np.array_equal(noted.rows_D, found.rows_D)
    assert noted.skipped == found.skipped
    assert again.survey(1) is None
    assert again.surveyed() == (7, {"link": 3})
    assert again.decision() == decision
    assert (again.partition(5), again.partition(4)) == (partition, None)
    for wrong in ({**partition, "changed": [-1]}, {**partition, "shards": [{}]}, {"number": 5}):
        journal.write_partition(6, wrong)  # its checksum holds, and it makes no sense
        assert again.partition(6) is None
    journal.begin({**job, "sources": 3})
    assert again.job() is None
    again.remove()
    assert list((tmp_path / "corpus").iterdir()) == []


def test_listing_gives_skipped_paths_too(place: Path) -> None:
    (place / "link").symlink_to("nowhere")
    assert [unit.reason for unit in find_units([str(place)], ReadOptions()) if isinstance(unit, Skipped)] == ["link"]
