"""What an ingestion will write, decided from its survey alone: which documents stay, the split, the partitions.

A partition is some consecutive documents that become the next shards: each is written on its own, by any process, and
is the unit of what ``--resume`` finds complete. Where partitions end depends on the documents that stay, never on
workers: a 64th of the corpus, between 16 MiB and the size of a shard.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bytelm.data.documents import SKIP_REASONS
from bytelm.data.duplicates import NEAR_LEAST_BYTES, exact_duplicates, near_duplicates
from bytelm.data.index import Count
from bytelm.data.shard_file import MOST_PIECES
from bytelm.data.split import HEAD_BYTES, HEAD_DOCUMENTS, SplitRule
from bytelm.data.survey import KEPT, REASON_CODES, Survey

_LEAST_PARTITION_BYTES: Final = 16 << 20
_MOST_PARTITIONS: Final = 64  # as long as none becomes larger than a shard
_MOST_THREADS: Final = 8  # that one reader can keep packing


@dataclass(frozen=True, slots=True)
class Partition:
    """Consecutive rows of a survey that are written together.

    Attributes:
        number: Which one.
        begin: Its first row.
        end: The row behind its last one.
        first_shard: The number of its first shard of each split; they are reserved up to the next partition's.
    """

    number: int
    begin: int
    end: int
    first_shard: int


def leave_out_duplicates(survey: Survey, *, before: bytes, near: float | None, keep_exact: bool) -> None:
    """Mark duplicates in a survey, in place.

    Args:
        survey: It.
        before: Digests of documents that come before all of it; what equals them is left out in any case, so that
            what was trained on is never validated on.
        near: Least similarity of near-duplicates; None not to look for them.
        keep_exact: Keep documents that equal one of the same survey.
    """
    rows_D = survey.rows_D
    kept_D = np.flatnonzero(rows_D["reason"] == KEPT)
    digests = rows_D["digest"][kept_D]
    before_E = np.frombuffer(before, "<u8").reshape(-1, 2)
    if keep_exact:
        duplicates = np.isin(_joined(digests), _joined(before_E)) if len(before_E) else np.zeros(len(digests), np.bool_)
    else:
        duplicates = exact_duplicates(digests, before_E)
    rows_D["reason"][kept_D[duplicates]] = REASON_CODES["duplicate"]
    if near is not None:
        candidates = kept_D[~duplicates & (rows_D["raw_bytes"][kept_D] >= NEAR_LEAST_BYTES)]
        rows_D["reason"][near_duplicates(survey.signatures_D, candidates.tolist(), near)] = REASON_CODES[
            "near_duplicate"
        ]


def choose_rule(survey: Survey, fraction: float) -> SplitRule:
    """The split rule of a new corpus of the documents that stay."""
    sizes = _kept_sizes(survey)
    sizes = sizes[sizes > 0]
    head_bytes = min(int(sizes[:HEAD_DOCUMENTS].sum()), HEAD_BYTES)
    whole = len(sizes) <= HEAD_DOCUMENTS and head_bytes < HEAD_BYTES
    return SplitRule.choose(head_bytes, whole=whole, fraction=fraction)


def partitions_of(survey: Survey, *, shard_bytes: int, first_shard: int) -> list[Partition]:
    """Cut the documents that stay into partitions.

    Args:
        survey: It.
        shard_bytes: Raw bytes after which a shard takes no further document.
        first_shard: Number of the first shard of all.

    Returns:
        Partitions, in order, none of them without a document.
    """
    sizes_D = _kept_sizes(survey)
    bytes_until = np.cumsum(sizes_D)
    documents_until = np.cumsum(sizes_D > 0)
    total_bytes = int(bytes_until[-1]) if len(sizes_D) else 0
    partition_bytes = min(max(total_bytes // _MOST_PARTITIONS, _LEAST_PARTITION_BYTES), shard_bytes)
    partitions: list[Partition] = []
    begin = bytes_before = documents_before = 0
    while bytes_before < total_bytes:
        by_bytes = int(np.searchsorted(bytes_until, bytes_before + partition_bytes))
        by_documents = int(np.searchsorted(documents_until, documents_before + MOST_PIECES))
        end = min(by_bytes, by_documents, len(sizes_D) - 1) + 1
        partitions.append(Partition(len(partitions), begin, end, first_shard))
        # A shard ends at the latest with twice its bytes, and before that only with the partition.
        raw_bytes = int(bytes_until[end - 1]) - bytes_before
        first_shard += 1 + raw_bytes // (2 * shard_bytes)
        begin, bytes_before, documents_before = end, int(bytes_until[end - 1]), int(documents_until[end - 1])
    return partitions


def jobs_of(
    survey: Survey, partitions: Sequence[Partition], workers: int, kept: Collection[int] = ()
) -> Iterator[tuple[Partition, ...]]:
    """Deal partitions out to jobs; what is written does not depend on it.

    A job that begins within an archive or a table has to read it from its beginning on, and while one reads, several
    threads can pack. So the partitions that a unit stretches over go to one job, or where there are many workers for
    it, to a job for every ``_MOST_THREADS`` of them.

    Args:
        survey: What the partitions are of.
        partitions: Them.
        workers: As many jobs are done at a time.
        kept: Units whose content is kept: in these a job can begin anywhere.
    """
    begin_units = survey.rows_D["unit"][[partition.begin for partition in partitions]].tolist()
    before_units = [
        int(survey.rows_D["unit"][partition.begin - 1]) if partition.begin else -1 for partition in partitions
    ]
    inside = [begin == before and begin not in kept for begin, before in zip(begin_units, before_units, strict=True)]
    stretched = Counter(unit for unit, is_inside in zip(begin_units, inside, strict=True) if is_inside)
    jobs_each = -(-workers // (len(stretched) * _MOST_THREADS)) if stretched else 0
    run: list[Partition] = []
    for number, partition in enumerate(partitions):
        unit = begin_units[number]
        length = -(-(stretched[unit] + 1) // jobs_each) if inside[number] else 0
        follows = bool(run) and run[-1].end == partition.begin
        if run and not (follows and inside[number] and len(run) < length):
            yield tuple(run)
            run = []
        run.append(partition)
    if run:
        yield tuple(run)


def threads_of(survey: Survey, jobs: Sequence[tuple[Partition, ...]], workers: int) -> list[int]:
    """How many threads should pack in each job, at least one: a job with half of the bytes gets half of the workers.

    Args:
        survey: What the partitions are of.
        jobs: What ``jobs_of`` gave.
        workers: As many jobs are done at a time.
    """
    bytes_until = np.concatenate([[0], np.cumsum(_kept_sizes(survey))])
    weights = [int(bytes_until[job[-1].end] - bytes_until[job[0].begin]) for job in jobs]
    total_bytes = sum(weights)
    return [min(max((2 * weight * workers + total_bytes) // (2 * total_bytes), 1), _MOST_THREADS) for weight in weights]


def left_out(survey: Survey) -> dict[str, Count]:
    """What a survey leaves out, by reason; reasons without anything are not in it."""
    counts: dict[str, Count] = {}
    for reason in SKIP_REASONS:
        rows = survey.rows_D[survey.rows_D["reason"] == REASON_CODES[reason]]
        documents = len(rows) + survey.skipped.get(reason, 0)
        if documents:
            counts[reason] = Count(documents, int(rows["raw_bytes"].sum()))
    return counts


def _kept_sizes(survey: Survey) -> NDArray[np.int64]:
    """Bytes of each document, 0 for those that are left out."""
    rows_D = survey.rows_D
    return np.where(rows_D["reason"] == KEPT, rows_D["raw_bytes"], 0).astype(np.int64)


def _joined(digests: NDArray[np.uint64]) -> NDArray[np.void]:
    """Digests of two numbers as single values that can be compared."""
    return np.ascontiguousarray(digests).view([("high", "<u8"), ("low", "<u8")])[:, 0]
