"""Decoded groups in memory, and batches cut out of them in a few steps for many windows at once.

A group is decoded once, by a thread, when a window of it is near, into a slot of one large array; a window is a copy
out of that array. What is planned tells which groups are needed and which have served, so memory depends on the
windows and not on the corpus, and nothing is done in Python for a single window or document.

Suffixes: N windows, S slots, M boundaries, W bytes of a window.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from bytelm.data.fetcher import Fetcher
from bytelm.data.order import distinct
from bytelm.data.shard_file import ENDS, MARK_SHIFT, STARTS
from bytelm.data.windows import CutGroups, Epoch, Windows
from bytelm.errors import ShardError

_AHEAD_BYTES: Final = 32 << 20  # for groups that are decoded while others are still in use
_FETCHED: Final = 512
MOST_DAMAGE: Final = 100
_NO_MARKS: Final = np.zeros(0, np.int64)
_NO_SLOT: Final = -1
_NO_KEY: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Plan:
    """Windows that are to come, N of them.

    Attributes:
        sources_N: Index of each one's source, int64.
        epochs_N: Its epoch, int64.
        keys_N: Number of its group among the groups of all sources and epochs, int64.
        indices_N: Place within the group, int64.
    """

    sources_N: NDArray[np.int64]
    epochs_N: NDArray[np.int64]
    keys_N: NDArray[np.int64]
    indices_N: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Windows that are there: the beginning of a plan, a whole number of batches.

    Attributes:
        plan: Where they come from.
        at_N: Where each begins in the pool's memory, int64.
        data_bytes_N: Bytes of each that are data, int64; None where all are.
        rows_M: Row of each boundary within its batch, int64.
        offsets_M: Its offset, int64.
        starts_M: A document begins there.
        ends_M: A document ends in front of it, within the window.
        first_marks: Number of each batch's first boundary, and at the end how many there are.
        replaced_N: Windows that stand in for damaged ones; None where there are none.
    """

    plan: Plan
    at_N: NDArray[np.int64]
    data_bytes_N: NDArray[np.int64] | None
    rows_M: NDArray[np.int64]
    offsets_M: NDArray[np.int64]
    starts_M: NDArray[np.bool_]
    ends_M: NDArray[np.bool_]
    first_marks: list[int]
    replaced_N: NDArray[np.bool_] | None


_NOTHING_ASKED: Final[tuple[Plan | None, NDArray[np.int64]]] = None, np.zeros(0, np.int64)


class WindowPool:
    """Groups of one or several sources, decoded by threads.

    Args:
        sources: What windows come from.
        width: W, bytes of a window.
        threads: How many decode.
        replace_damaged: Where a group is damaged, take the next one of the epoch that is not, in its place.

    Attributes:
        damage: What was found damaged and replaced: one line for each group, the first ``MOST_DAMAGE`` of them.
    """

    def __init__(self, sources: Sequence[Windows], *, width: int, threads: int, replace_damaged: bool = False) -> None:
        self._sources = sources
        self._width = width
        self._threads = threads
        self._replace_damaged = replace_damaged
        self.damage: dict[str, None] = {}
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="bytelm-loader")
        self._first_groups: list[int] = np.cumsum([0, *(source.groups for source in sources)]).tolist()
        self._epochs: dict[tuple[int, int], Epoch] = {}
        self._slot_bytes = max(source.buffer_bytes for source in sources)
        self._columns = max(source.most_windows for source in sources)
        self._has_padding = any(source.has_padding for source in sources)
        self._fetcher = None
        if any(source.is_remote for source in sources):
            self._fetcher = Fetcher(_FETCHED)
        lanes = sum(source.lanes for source in sources)
        self._make_slots(lanes + max(2, min(lanes, _AHEAD_BYTES // self._slot_bytes)))

    def plan(self, sources_N: NDArray[np.int64], windows_N: NDArray[np.int64]) -> Plan:
        """Where windows will be found.

        Args:
            sources_N: Index of each one's source.
            windows_N: Its number in that source, over all epochs.
        """
        epochs_N, keys_N, indices_N = np.empty((3, len(windows_N)), np.int64)
        for source in np.flatnonzero(np.bincount(sources_N)).tolist():
            of_source = slice(None) if len(self._sources) == 1 else sources_N == source
            windows_n = windows_N[of_source]
            per_epoch = self._sources[source].windows_per_epoch
            epochs_n = windows_n // per_epoch
            keys_n, indices_n = np.empty((2, len(windows_n)), np.int64)
            for epoch in range(int(epochs_n.min()), int(epochs_n.max()) + 1):
                inside_n = epochs_n == epoch
                places = self._epoch(source, epoch).places(windows_n[inside_n] - epoch * per_epoch)
                keys_n[inside_n] = places.groups_N + (epoch * self._first_groups[-1] + self._first_groups[source])
                indices_n[inside_n] = places.indices_N
            epochs_N[of_source], keys_N[of_source], indices_N[of_source] = epochs_n, keys_n, indices_n
        return Plan(sources_N, epochs_N, keys_N, indices_N)

    def ask(self, plan: Plan) -> None:
        """Begin to decode what a plan needs, as far as there is room."""
        self._asked = plan, self._assign(plan.keys_N)

    @property
    def fetches(self) -> bool:
        """Whether anything is behind a network."""
        return self._fetcher is not None

    def fetch(self, plan: Plan) -> None:
        """Begin to fetch what a plan needs from behind a network."""
        if self._fetcher is not None:
            keys, first = distinct(plan.keys_N)
            self._fetcher.ask(self._fetching(keys[np.argsort(first)].tolist()))

    def cut(self, plan: Plan, batch_windows: int) -> Block:
        """Wait for the windows of a plan. The memory of what was cut before may then be used again.

        Args:
            plan: At least one batch.
            batch_windows: Windows of a batch.

        Returns:
            Whole batches: those that there is room for, and no damaged window.

        Raises:
            ShardError: The first batch needs a shard that is missing or damaged.
        """
        (asked, slots_N), self._asked = self._asked, _NOTHING_ASKED
        if asked is not plan:
            slots_N = self._assign(plan.keys_N)
        self._release(slots_N)
        if (slots_N == _NO_SLOT).any():
            slots_N = self._assign(plan.keys_N)
            missing_N = slots_N == _NO_SLOT
            if missing_N[:batch_windows].any():  # one batch is spread over more groups than are usually needed
                self.clear(slots=len(self._marks) + len(distinct(plan.keys_N[:batch_windows])[0]))
                slots_N = self._assign(plan.keys_N)
                missing_N = slots_N == _NO_SLOT
            if missing_N.any():
                slots_N = slots_N[: int(np.argmax(missing_N))]
        self._wait()
        if self._failed:
            failed_N = np.isin(slots_N, list(self._failed))
            sound = int(np.argmax(failed_N)) if failed_N.any() else len(slots_N)
            if sound < batch_windows:
                error = self._failed[int(slots_N[sound])]
                self._let_go([int(plan.keys_N[sound])])  # whoever asks again tries again
                raise error
            slots_N = slots_N[:sound]
        slots_N = slots_N[: len(slots_N) // batch_windows * batch_windows]
        return self._block(plan, slots_N, batch_windows)

    def copy(self, at_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The bytes of windows of the block that was cut last: a fresh array (N, W)."""
        return self._overlapping[at_N]

    def clear(self, slots: int | None = None) -> None:
        """Let go of everything, and have another number of slots if one is given."""
        if self._fetcher is not None:
            self._fetcher.clear()
        for task, _ in self._running:
            if not task.cancel():
                task.result()
        self._make_slots(slots or len(self._marks))

    def close(self) -> None:
        """Stop the threads."""
        if self._fetcher is not None:
            self._fetcher.close()
        self._executor.shutdown(cancel_futures=True)

    def _block(self, plan: Plan, slots_N: NDArray[np.int64], batch_windows: int) -> Block:
        count = len(slots_N)
        cell_N = slots_N * self._columns + plan.indices_N[:count]
        starts_N = self._starts.take(cell_N)
        counts_N = self._mark_counts.take(cell_N)
        before_N = np.zeros(count + 1, np.int64)
        np.cumsum(counts_N, out=before_N[1:])
        slots = sorted(self._slot_of.values())
        lengths = [len(self._marks[slot]) for slot in slots]
        gathered = np.concatenate([self._marks[slot] for slot in slots])
        base_S = np.zeros(len(self._marks), np.int64)
        base_S[slots] = np.cumsum([0, *lengths[:-1]])
        # From a place among all boundaries of the block to one among those that were gathered.
        shift_N = base_S[slots_N] + self._first_marks.take(cell_N) - before_N[:-1]
        marks_M = gathered[np.repeat(shift_N, counts_N) + np.arange(before_N[-1])]
        offsets_M = (marks_M >> MARK_SHIFT) - np.repeat(starts_N, counts_N)
        return Block(
            plan=plan,
            at_N=slots_N * self._slot_bytes + starts_N,
            data_bytes_N=self._data_bytes.take(cell_N) if self._has_padding else None,
            rows_M=np.repeat(np.arange(count) % batch_windows, counts_N),
            offsets_M=offsets_M,
            starts_M=marks_M & STARTS != 0,
            ends_M=(marks_M & ENDS != 0) & (offsets_M > 0),
            first_marks=before_N[::batch_windows].tolist(),
            replaced_N=np.isin(slots_N, list(self._stand_ins)) if self._stand_ins else None,
        )

    def _assign(self, keys_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of the groups with these keys; new ones are asked for, and get none where there is no room."""
        at_N = np.searchsorted(self._keys, keys_N)
        missing_N = self._keys[at_N] != keys_N
        if not missing_N.any():
            return self._slots[at_N]
        wanted, first = distinct(keys_N[missing_N])
        self._decode_soon(wanted[np.argsort(first)][: len(self._free)].tolist())
        at_N = np.searchsorted(self._keys, keys_N)
        return np.where(self._keys[at_N] == keys_N, self._slots[at_N], _NO_SLOT)

    def _decode_soon(self, keys: list[int]) -> None:
        each = max(1, -(-len(keys) // self._threads))
        for begin in range(0, len(keys), each):
            part = keys[begin : begin + each]
            slots = [self._free.pop() for _ in part]
            jobs: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for key, slot in zip(part, slots, strict=True):
                source, epoch, group = self._group_of(key)
                jobs.setdefault((source, epoch), []).append((slot, group))
            work = [(self._sources[source], self._epoch(source, epoch), job) for (source, epoch), job in jobs.items()]
            if self._fetcher is not None:
                self._fetcher.ask(self._fetching(part))
            task = self._executor.submit(self._decode, work, part)
            self._running.append((task, slots))
            self._slot_of.update(zip(part, slots, strict=True))
        self._list_keys()

    def _decode(self, work: list[tuple[Windows, Epoch, list[tuple[int, int]]]], keys: list[int]) -> None:
        """Decode groups, by source and epoch, into their slots; runs in a thread."""
        if self._fetcher is not None:
            self._fetcher.wait(keys)
        for source, epoch, slots_and_groups in work:
            slots, groups = zip(*slots_and_groups, strict=True)
            found = source.cut(epoch, groups, [self._buffer(slot) for slot in slots])
            first_cell_G = np.array(slots) * self._columns - (np.cumsum(found.windows_G) - found.windows_G)
            self._keep(found, np.repeat(first_cell_G, found.windows_G) + np.arange(len(found.starts_N)))
            for slot, marks_P in zip(slots, found.marks, strict=True):
                self._marks[slot] = marks_P
            for number, error in found.failed.items():
                if not (self._replace_damaged and self._replaced(source, epoch, groups[number], slots[number])):
                    self._failed[slots[number]] = error
                elif len(self.damage) < MOST_DAMAGE:
                    self.damage[str(error)] = None

    def _keep(self, found: CutGroups, cells_N: NDArray[np.int64]) -> None:
        self._starts[cells_N] = found.starts_N
        self._first_marks[cells_N] = found.first_marks_N
        self._mark_counts[cells_N] = found.mark_counts_N
        if self._has_padding:
            self._data_bytes[cells_N] = self._width if found.data_bytes_N is None else found.data_bytes_N

    def _replaced(self, source: Windows, epoch: Epoch, group: int, slot: int) -> bool:
        """Fill a slot from the next group that is sound, whose windows are given round and round."""
        for step in range(1, source.groups):
            found = source.cut(epoch, [(group + step) % source.groups], [self._buffer(slot)])
            count = len(found.starts_N)
            if count:
                first = slot * self._columns
                self._keep(found, np.arange(first, first + count))
                for cells in (self._starts, self._first_marks, self._mark_counts, self._data_bytes):
                    row = cells[first : first + self._columns]
                    row[:] = np.resize(row[:count], len(row))
                self._marks[slot] = found.marks[0]
                self._stand_ins.add(slot)
                return True
        return False

    def _fetching(self, keys: list[int]) -> dict[int, Callable[[], object]]:
        """What fetches the groups with these keys, if they are behind a network."""
        places = {key: self._group_of(key) for key in keys}
        return {
            key: partial(self._sources[source].fetch, self._epoch(source, epoch), group)
            for key, (source, epoch, group) in places.items()
            if self._sources[source].is_remote
        }

    def _group_of(self, key: int) -> tuple[int, int, int]:
        epoch, number = divmod(key, self._first_groups[-1])
        source = bisect_right(self._first_groups, number) - 1
        return source, epoch, number - self._first_groups[source]

    def _buffer(self, slot: int) -> memoryview:
        return self._memory[slot * self._slot_bytes : (slot + 1) * self._slot_bytes].data

    def _epoch(self, source: int, epoch: int) -> Epoch:
        if (source, epoch) not in self._epochs:
            for old in [key for key in self._epochs if key[0] == source and abs(key[1] - epoch) > 1]:
                del self._epochs[old]
            self._epochs[source, epoch] = self._sources[source].epoch(epoch)
        return self._epochs[source, epoch]

    def _wait(self) -> None:
        for task, _ in self._running:
            task.result()
        self._running.clear()

    def _release(self, slots_N: NDArray[np.int64]) -> None:
        """Let go of all groups but those in these slots."""
        needed_S = np.zeros(len(self._marks) + 1, np.bool_)
        needed_S[slots_N] = True
        needed_S[_NO_SLOT] = True
        unneeded = ~needed_S[self._slots]
        if unneeded.any():
            self._wait()
            self._let_go(self._keys[unneeded].tolist())

    def _let_go(self, keys: list[int]) -> None:
        for key in keys:
            slot = self._slot_of.pop(key)
            self._failed.pop(slot, None)
            self._stand_ins.discard(slot)
            self._marks[slot] = _NO_MARKS
            self._free.append(slot)
        self._list_keys()

    def _list_keys(self) -> None:
        keys = np.fromiter(self._slot_of, np.int64, len(self._slot_of))
        slots = np.fromiter(self._slot_of.values(), np.int64, len(self._slot_of))
        ascending = np.argsort(keys)
        self._keys = np.append(keys[ascending], _NO_KEY)
        self._slots = np.append(slots[ascending], _NO_SLOT)

    def _make_slots(self, count: int) -> None:
        # Memory that nothing was written to is only an address: slots that are never used cost nothing.
        self._memory = np.empty(count * self._slot_bytes, np.uint8)
        self._overlapping = as_strided(self._memory, (len(self._memory) - self._width + 1, self._width), (1, 1))
        self._starts = np.empty(count * self._columns, np.int64)
        self._first_marks = np.empty(count * self._columns, np.int64)
        self._mark_counts = np.empty(count * self._columns, np.int64)
        self._data_bytes = np.empty(count * self._columns if self._has_padding else 0, np.int64)
        self._marks = [_NO_MARKS] * count
        self._running: list[tuple[Future[None], list[int]]] = []
        self._failed: dict[int, ShardError] = {}
        self._stand_ins: set[int] = set()
        self._slot_of: dict[int, int] = {}
        """Slots of the groups that are there or asked for, by key."""
        self._free = list(range(count))[::-1]
        self._asked = _NOTHING_ASKED
        self._list_keys()
