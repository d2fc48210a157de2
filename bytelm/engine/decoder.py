"""Sequences side by side inside the library: draft, verify, accept, again, in blocks of steps."""

import threading
from typing import Final, NamedTuple

import numpy as np

from bytelm.engine.handles import (
    NOT_FINITE,
    Floats,
    Ids,
    Owned,
    StatusError,
    address_of,
    check_status,
    new_pointer,
    out_of_memory,
)
from bytelm.engine.interface import RECORD, CalibrationTable, CostTable, Pairs, SequenceSettings, StepBlock
from bytelm.engine.model import KINDS, MOST_SLOTS, Engine, most_rows
from bytelm.engine.session import CacheKind, Session, cache_bytes
from bytelm.errors import GenerationError

STEP_ROWS: Final = 48
"""Rows of one sequence in a step of a decoder, at most: the last id and its drafts."""


class Block(NamedTuple):
    """Results of some steps.

    Attributes:
        records: One for each sequence and step, as tuples in the order of ``Record``: making objects would cost more
            than a step of a small model.
        ids: The ids that the steps gave, record after record.
        sources: What each id was drafted by, as in ``Step``.
        logprobs: Log-probability of each id in nats; 0 where its sequence did not ask for it, empty where none did.
        drafted: What each verified draft was drafted by, record after record.
    """

    records: list[tuple[int, int, int, int, int, int, int, int, int, float]]
    ids: Ids
    sources: list[int]
    logprobs: list[float]
    drafted: list[int]


class Decoder(Owned):
    """Sequences side by side.

    Args:
        engine: The model.
        slots: Sequences at a time, 1 … 64.
        capacity: The most ids that one context can hold, at least 2.
        costs: Seconds that steps of different sizes take, from which the planner chooses the drafts of each step.
        calibration: How often drafts of each kind were right before; the decoder goes on counting.
        pairs: Correction of the draft heads: tables last (257, R), before (257, R), out (R, 257) and factors of_head
            and of_pair (K - 1), float32; None for none.
        trees: Whether the second-best bytes of heads are drafted as branches; off for comparisons alone.
        cache: Number format of the cached keys and values.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        slots: int,
        capacity: int,
        costs: CostTable,
        calibration: CalibrationTable,
        pairs: tuple[Floats, Floats, Floats, Floats, Floats] | None = None,
        trees: bool = True,
        cache: CacheKind = "float32",
    ) -> None:
        assert 1 <= slots <= MOST_SLOTS and capacity >= 2
        self.engine, self.slots, self.capacity = engine, slots, capacity
        self.cache: CacheKind = cache
        self.session = Session(
            engine, rows=max(slots, most_rows(engine, max(256, slots * STEP_ROWS))), capacity=capacity
        )
        self._lock = threading.Lock()
        call, struct = engine.call, None if pairs is None else self._pairs(pairs)
        pointer = new_pointer(
            lambda out: call.decoder_new(
                self.session.pointer, slots, capacity, KINDS[cache], trees, costs, calibration, struct, out
            ),
            f"{slots} sequences",
            lambda: slots * cache_bytes(engine, capacity, cache),
        )
        super().__init__(pointer, call.decoder_free, self.session)
        self._rooms: dict[int, _Room] = {}

    def _pairs(self, pairs: tuple[Floats, Floats, Floats, Floats, Floats]) -> Pairs:
        last, before, out, of_head, of_pair = pairs
        rank, choices, heads = last.shape[-1], self.engine.vocabulary.count, self.engine.heads.count - 1
        shapes = [(choices, rank), (choices, rank), (rank, choices), (heads,), (heads,)]
        assert [table.shape for table in pairs] == shapes and 1 <= rank <= 256
        sizes = (choices * rank, choices * rank, rank * choices, heads, heads)
        tables = zip((last, before, out, of_head, of_pair), sizes, strict=True)
        return Pairs(rank, *(address_of(table, np.float32, size) for table, size in tables))

    def set_costs(self, costs: CostTable) -> None:
        """Plan with other costs; what was measured of the rate is forgotten."""
        with self._lock:
            check_status(self.engine.call.decoder_set_costs(self.pointer, costs))

    def calibration(self) -> CalibrationTable:
        """How often drafts were right, until now."""
        table = CalibrationTable()
        with self._lock:
            check_status(self.engine.call.decoder_calibration(self.pointer, table))
        return table

    def set_calibration(self, calibration: CalibrationTable) -> None:
        """Begin to count from here."""
        with self._lock:
            check_status(self.engine.call.decoder_set_calibration(self.pointer, calibration))

    def begin(self, slot: int, ids: Ids, settings: SequenceSettings) -> int:
        """Give a slot to a prompt.

        Args:
            slot: Free, or finished.
            ids: ``EOD`` and the whole prompt.
            settings: How the prompt is continued.

        Returns:
            Ids that ``prefill`` must read; fewer than there are where a cache holds some of them.

        Raises:
            GenerationError: There is not enough memory.
        """
        assert ids.ndim == 1 and len(ids) >= 1
        with self._lock:
            address = address_of(ids, np.int32, len(ids))
            return self._left(self.engine.call.decoder_begin(self.pointer, slot, address, len(ids), settings))

    def prefill(self, slot: int, most_ids: int) -> int:
        """Read up to so many ids of a slot; returns those that are still to be read.

        Raises:
            GenerationError: The model's numbers are not finite.
        """
        with self._lock:
            return self._left(self.engine.call.decoder_prefill(self.pointer, slot, most_ids))

    def run(self, *, steps: int, microseconds: int, logprobs: bool) -> Block:
        """Some steps of all sequences, until their number, the time (0: no limit) or one that finished ends the block.

        Raises:
            GenerationError: There is not enough memory.
        """
        with self._lock:
            room = self._rooms.get(steps)
            if room is None:
                room = self._rooms[steps] = _Room(steps, self.slots)
            return self._run(room, steps, microseconds, logprobs)

    def end(self, slot: int) -> None:
        """Free a slot; what its cache holds stays for prompts that begin like it."""
        with self._lock:
            check_status(self.engine.call.decoder_end(self.pointer, slot))

    def _run(self, room: "_Room", steps: int, microseconds: int, logprobs: bool) -> Block:
        block = room.block
        block.logprobs = room.logprobs.ctypes.data if logprobs else None
        try:
            check_status(self.engine.call.decoder_run(self.pointer, steps, microseconds, block))
        except StatusError as status:
            raise self._memory() from status
        count, drafted = block.id_count, block.drafted_count
        return Block(
            room.record[: block.records].tolist(),
            room.ids[:count],
            room.sources[:count].tolist(),
            room.logprobs[:count].tolist() if logprobs else [],
            room.drafted[:drafted].tolist(),
        )

    def _left(self, answer: int) -> int:
        if answer >= 0:
            return answer
        try:
            check_status(-answer)
        except StatusError as status:
            raise GenerationError(NOT_FINITE) if status.not_finite else self._memory() from status
        raise AssertionError

    def _memory(self) -> GenerationError:
        size = cache_bytes(self.engine, self.capacity, self.cache)
        return out_of_memory(f"a sequence of {self.capacity} ids", size)


class _Room:
    """Arrays that blocks of a decoder are written into."""

    def __init__(self, steps: int, slots: int) -> None:
        records, ids = steps * slots, steps * slots * STEP_ROWS
        self.record = np.zeros(records, RECORD)
        self.ids = np.zeros(ids, np.int32)
        self.sources, self.drafted = np.zeros(ids, np.int8), np.zeros(ids, np.int8)
        self.logprobs = np.zeros(ids, np.float64)
        self.block = StepBlock(
            most_records=records,
            most_ids=ids,
            most_drafted=ids,
            record=address_of(self.record, RECORD, records),
            ids=address_of(self.ids, np.int32, ids),
            sources=address_of(self.sources, np.int8, ids),
            drafted=address_of(self.drafted, np.int8, ids),
        )
