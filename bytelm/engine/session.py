"""Passes of a model over sequences whose keys and values are cached."""

import threading
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from bytelm.engine.handles import Floats, Ids, Owned, address_of, check_status, new_pointer, status_errors
from bytelm.engine.model import ATTEND, KINDS, MOST_ROWS, MOST_SLOTS, Engine

CacheKind = Literal["float32", "bfloat16"]

MOST_TREE_ROWS: Final = 64
"""Rows of one sequence in a pass, where they are a tree."""

_LANES: Final = 16


class Session(Owned):
    """Room for the numbers of a pass, and the threads that compute it.

    Args:
        engine: The model.
        rows: The most rows that one pass can have.
        capacity: The most ids of a cache that a pass can attend to.
        threads: Threads that compute, the caller's included; None for those of the engine.
    """

    def __init__(self, engine: Engine, *, rows: int, capacity: int, threads: int | None = None) -> None:
        assert 1 <= rows <= MOST_ROWS
        self.engine, self.rows, self.capacity = engine, rows, capacity
        self.threads = engine.threads if threads is None else threads
        self._lock = threading.Lock()
        call = engine.call
        pointer = new_pointer(
            lambda out: call.session_new(engine.pointer, self.threads, rows, capacity, out),
            f"passes of {rows} rows",
            self._size_bytes,
        )
        super().__init__(pointer, call.session_free, engine)

    def _size_bytes(self) -> int:
        config, heads = self.engine.config, self.engine.heads
        of_row = 8 * config.d_model + 3 * config.d_ff + config.vocabulary_size
        states = heads.count * config.d_model if heads.family in ATTEND else 0
        return 4 * (self.rows * (of_row + states) + self.threads * 16 * self.capacity)

    def prefill(self, cache: "Cache", ids: Ids) -> None:
        """Read ids behind those of a cache.

        Raises:
            GenerationError: The model's numbers are not finite.
        """
        assert ids.ndim == 1
        assert len(ids) <= cache.capacity - cache.length
        with self._lock, status_errors(self._size_bytes):
            check_status(
                self.engine.call.prefill(self.pointer, cache.pointer, address_of(ids, np.int32, len(ids)), len(ids))
            )

    def run(self, caches: Sequence["Cache"], rows: Sequence[int], ids: Ids, parents: Ids | None = None) -> Floats:
        """One pass over rows of some sequences; ``accept`` then makes rows real, before the next pass.

        Args:
            caches: One cache for each sequence; no cache stands there twice.
            rows: Number of rows of each sequence.
            ids: One id for each row, sequence after sequence.
            parents: The row, within its sequence, that each row continues; -1 for the first. Chains where None.

        Returns:
            Logits of head 0, (M, V).

        Raises:
            GenerationError: They are not finite.
        """
        total = sum(rows)
        assert 1 <= len(caches) == len(rows) <= MOST_SLOTS
        assert len({cache.pointer for cache in caches}) == len(caches)
        assert min(rows) >= 1 and total <= self.rows
        pointers = np.array([cache.pointer for cache in caches], np.uintp)
        counts = np.array(rows, np.int32)
        logits = np.empty((total, self.engine.config.vocabulary_size), np.float32)
        with self._lock, status_errors(self._size_bytes):
            check_status(
                getattr(self.engine.call, "pass")(
                    self.pointer,
                    len(caches),
                    address_of(pointers, np.uintp, len(caches)),
                    address_of(counts, np.int32, len(caches)),
                    None if parents is None else address_of(parents, np.int32, total),
                    address_of(ids, np.int32, total),
                    address_of(logits, np.float32, logits.size),
                )
            )
        return logits

    def accept(self, cache: "Cache", count: int, *, first: int = 0, rows: int, path: Ids | None = None) -> None:
        """Make rows of the last pass of a cache real.

        Args:
            cache: Cache of the sequence that the rows belong to.
            count: Number of rows: those of ``path``, or the first ones.
            first: Place of the sequence's first row in the pass.
            rows: Number of rows that the sequence had in the pass.
            path: The rows that become real, from the shallowest to the deepest; None for a chain.
        """
        address = None if path is None else address_of(path, np.int32, count)
        with self._lock:
            check_status(self.engine.call.accept_path(self.pointer, cache.pointer, first, rows, address, count))

    def draft_head(self, cache: "Cache", head: int) -> Floats:
        """Logits (V,) of head 1 … K - 1 after the last accepted id; after each accept in ascending order, from 1."""
        assert 1 <= head < self.engine.heads.count and cache.length > 0
        logits = np.empty(self.engine.config.vocabulary_size, np.float32)
        with self._lock:
            address = address_of(logits, np.float32, logits.size)
            check_status(self.engine.call.draft_head(self.pointer, cache.pointer, head, address))
        return logits

    def score_window(self, cache: "Cache", ids: Ids, *, reads: int, heads: int = 1) -> tuple[Floats, Ids]:
        """What some heads make of the ids behind each id of a window; the cache is filled afresh.

        Args:
            cache: A cache whose capacity is at least ``reads``.
            ids: The ids that are read, and those behind them that are only scored.
            reads: Number of ids that are read.
            heads: Number k of heads that score, from head 0 on; 1 for a family whose heads attend.

        Returns:
            (reads, k): -log of the probability of ids[t + 1 + head], nats, 0 where there is no such id; and the id
            that is most probable of those that can be chosen.

        Raises:
            GenerationError: Logits are not finite.
        """
        assert 1 <= reads <= min(len(ids), cache.capacity) and 1 <= heads <= self.engine.heads.count
        assert heads == 1 or self.engine.heads.family not in ATTEND
        nats, best = np.empty((reads, heads), np.float32), np.empty((reads, heads), np.int32)
        with self._lock, status_errors(self._size_bytes):
            check_status(
                self.engine.call.score_window(
                    self.pointer,
                    cache.pointer,
                    address_of(ids, np.int32, len(ids)),
                    reads,
                    len(ids),
                    heads,
                    address_of(nats, np.float32, nats.size),
                    address_of(best, np.int32, best.size),
                )
            )
        return nats, best


class Cache(Owned):
    """What has been read of one sequence.

    Args:
        engine: The model.
        capacity: The most ids that it can hold.
        kind: Number format of keys and values.
    """

    def __init__(self, engine: Engine, capacity: int, kind: CacheKind = "float32") -> None:
        self.engine, self.capacity = engine, capacity
        call = engine.call
        pointer = new_pointer(
            lambda out: call.cache_new(engine.pointer, capacity, KINDS[kind], out),
            f"a context of {capacity} ids",
            lambda: cache_bytes(engine, capacity, kind),
        )
        super().__init__(pointer, call.cache_free, engine)

    @property
    def length(self) -> int:
        """Ids that are accepted."""
        return self.engine.call.cache_length(self.pointer)

    def truncate(self, length: int) -> None:
        """Forget all ids from ``length`` on."""
        assert 0 <= length <= self.length
        check_status(self.engine.call.cache_truncate(self.pointer, length))


def cache_bytes(engine: Engine, capacity: int, kind: CacheKind) -> int:
    """Bytes of a cache, to within its tables of rotations."""
    channels = engine.config.head_channels
    padded = channels + -(-channels // _LANES) * _LANES
    keys = engine.cache_layers * engine.config.kv_heads * padded * (4 if kind == "float32" else 2)
    attends, chain = engine.heads.family in ATTEND, engine.heads.family in ("causal", "shared")
    history = engine.config.d_model * 4 * (engine.heads.count if chain else 1 if attends else 0)
    return capacity * (keys + history + 4 * channels)
