"""The plan: partitions and jobs cover every document once, whatever the workers."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.data.plan import jobs_of, partitions_of, threads_of
from bytelm.data.sources import Unit
from bytelm.data.split import HEAD_BYTES
from bytelm.data.survey import KEPT, ROW_TYPE, Survey
from bytelm.data.unit_table import UnitTable


def survey_of(documents: Sequence[tuple[int, int, bool]]) -> Survey:
    """A survey of documents, each with its unit, its bytes and whether it is kept."""
    rows = np.zeros(len(documents), ROW_TYPE)
    for row, (unit, raw_bytes, kept) in enumerate(documents):
        rows[row]["unit"], rows[row]["raw_bytes"], rows[row]["reason"] = unit, raw_bytes, KEPT if kept else 1
    units = UnitTable.of([Unit(0, b"%d" % number, "file", 1) for number in range(len(documents))])
    return Survey(units, rows, {}, np.empty((len(rows), 0), np.uint32))


DOCUMENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300), st.booleans()), min_size=1, max_size=40).map(
    lambda found: [
        (unit, size, kept) for unit, (_, size, kept) in zip(sorted(one[0] for one in found), found, strict=True)
    ]
)


@given(DOCUMENTS, st.integers(1, 500), st.integers(0, 9), st.integers(1, 9))
def test_partitions_and_jobs_cover_every_kept_document_once_in_order(
    documents: list[tuple[int, int, bool]], shard_bytes: int, first_shard: int, workers: int
) -> None:
    survey = survey_of(documents)
    partitions = partitions_of(survey, shard_bytes=shard_bytes, first_shard=first_shard)
    kept = [row for row, (_, _, is_kept) in enumerate(documents) if is_kept]
    covered = [row for part in partitions for row in range(part.begin, part.end) if documents[row][2]]
    assert covered == kept
    assert [part.number for part in partitions] == list(range(len(partitions)))
    number = first_shard
    for place, part in enumerate(partitions):
        sizes = [size for _, size, is_kept in documents[part.begin : part.end] if is_kept]
        assert sizes, "no partition is empty"
        assert sum(sizes[:-1]) < shard_bytes, "it ends with the document that fills it"
        assert place == len(partitions) - 1 or sum(sizes) >= shard_bytes
        assert part.first_shard == number
        number += 1 + sum(sizes) // (2 * shard_bytes)
    jobs = list(jobs_of(survey, partitions, workers))
    assert [part for job in jobs for part in job] == partitions
    for job in jobs:
        for part in job[1:]:  # partitions share a job only where they share a unit
            assert documents[part.begin][0] == documents[part.begin - 1][0]


def test_partitions_are_a_64th_of_the_corpus_within_limits() -> None:
    for total, expected in ((100 << 20, 16 << 20), (4 << 30, 64 << 20), (64 << 30, 256 << 20)):
        documents = [(number, total // 1024, True) for number in range(1024)]
        partitions = partitions_of(survey_of(documents), shard_bytes=256 << 20, first_shard=0)
        sizes = [(part.end - part.begin) * (total // 1024) for part in partitions]
        assert all(expected <= size < expected + total // 1024 for size in sizes[:-1])


@pytest.mark.parametrize(("workers", "jobs"), [(1, 1), (2, 1), (8, 1), (16, 2), (24, 3), (100, 10)])
def test_what_one_unit_stretches_over_is_dealt_to_a_job_for_every_eight_workers(workers: int, jobs: int) -> None:
    survey = survey_of([(0, 100, True)] * 100)
    partitions = partitions_of(survey, shard_bytes=1000, first_shard=0)
    assert len(partitions) == 10
    assert len(list(jobs_of(survey, partitions, workers))) == jobs


def test_partitions_of_whole_units_are_jobs_of_their_own() -> None:
    survey = survey_of([(number // 10, 100, True) for number in range(100)])
    partitions = partitions_of(survey, shard_bytes=1000, first_shard=0)
    assert [len(job) for job in jobs_of(survey, partitions, 1)] == [1] * 10


def test_partitions_that_are_not_next_to_each_other_are_no_job_together() -> None:
    survey = survey_of([(0, 100, True)] * 100)
    partitions = partitions_of(survey, shard_bytes=1000, first_shard=0)
    todo = [partitions[number] for number in (0, 1, 5, 6, 9)]
    jobs = list(jobs_of(survey, todo, 1))
    assert [[part.number for part in job] for job in jobs] == [[0, 1], [5, 6], [9]]


def test_a_job_gets_threads_by_its_share_of_the_bytes() -> None:
    def threads(documents: list[tuple[int, int, bool]], workers: int) -> list[int]:
        survey = survey_of(documents)
        partitions = partitions_of(survey, shard_bytes=1000, first_shard=0)
        return threads_of(survey, list(jobs_of(survey, partitions, workers)), workers)

    one_archive = [(0, 100, True)] * 100
    assert [threads(one_archive, workers) for workers in (1, 2, 5, 16)] == [[1], [2], [5], [8, 8]]
    assert threads([*one_archive, (1, 900, False), (1, 50, True)], 4) == [4, 1]
    assert threads([(0, 1000, True), (1, 1000, True)], 2) == [1, 1]
    assert threads([(number, 1000, True) for number in range(20)], 4) == [1] * 20
    assert threads([(0, 100_000, True)], 100) == [8]


def test_the_head_is_of_what_stays() -> None:
    from bytelm.data.plan import choose_rule

    small = [(number, 1 << 20, number % 2 == 0) for number in range(20)]
    assert choose_rule(survey_of(small), 0.01).name == "small corpus"
    large = [(number, 1 << 20, True) for number in range(HEAD_BYTES >> 20)]
    assert choose_rule(survey_of(large), 0.01).name == "large corpus"
    assert choose_rule(survey_of([(0, 100, True)]), 0.01).name == "all train"
    assert choose_rule(survey_of(large), 0.0).name == "off"
    short = [(number, 1, True) for number in range(140_000)]
    assert choose_rule(survey_of(short), 0.01).name == "large corpus"
