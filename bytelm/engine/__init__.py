"""The compiled engine, seen from Python: a thin layer of ctypes that checks everything before a pointer is made of it.

    Engine    a model: its weights inside the library, its shape, its vocabulary
    Session   room for the numbers of a pass, and the threads that compute it
    Cache     what has been read of one sequence
    Decoder   sequences side by side: draft, verify, accept, again, in blocks of steps

One ``Engine`` serves several Python threads, each through sessions of its own; a session or a decoder serves one caller
at a time, which a lock sees to. After a fork the child may go on. The library is found and checked by
``bytelm.engine.library``; weights come from ``bytelm.engine.weights``. No torch is needed.

Shapes: D width, V ids of an unembedding, K prediction heads, M rows of a pass.
"""

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from ctypes import c_int32, c_void_p
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from bytelm.engine.interface import (
    END_OF_DOCUMENT,
    GOES_ON,
    LOGITS_NOT_FINITE,
    MAX_IDS,
    MOST_PASTS,
    MOST_ROW_COUNTS,
    RECORD,
    CalibrationTable,
    CostTable,
    Counter,
    Functions,
    Pairs,
    Record,
    SequenceSettings,
    Shape,
    StepBlock,
)
from bytelm.engine.library import Library, load_library, unavailable_reason
from bytelm.errors import ConfigError, GenerationError
from bytelm.model_shape import HeadsShape, TrunkShape, trunk_layers
from bytelm.vocab import Vocab

__all__ = [
    "END_OF_DOCUMENT",
    "GOES_ON",
    "LOGITS_NOT_FINITE",
    "MAX_IDS",
    "MOST_PASTS",
    "MOST_ROWS",
    "MOST_ROW_COUNTS",
    "MOST_SLOTS",
    "MOST_TREE_ROWS",
    "NOT_FINITE",
    "STEP_ROWS",
    "Block",
    "Cache",
    "CacheKind",
    "CalibrationTable",
    "CostTable",
    "Counter",
    "Decoder",
    "Engine",
    "Floats",
    "Ids",
    "MatrixKind",
    "Record",
    "SequenceSettings",
    "Session",
    "Status",
    "cache_bytes",
    "most_rows",
    "out_of_memory",
]

T = TypeVar("T")

MatrixKind = Literal["float32", "bfloat16", "int8"]
CacheKind = Literal["float32", "bfloat16"]

MOST_SLOTS: Final = 64
"""Sequences of a decoder, at most."""
MOST_ROWS: Final = 4096
"""Rows of a session, at most."""
MOST_TREE_ROWS: Final = 64
"""Rows of one sequence in a pass, where they are a tree."""
STEP_ROWS: Final = 48
"""Rows of one sequence in a step of a decoder, at most: the last id and its drafts."""
NOT_FINITE: Final = "the model's logits are not finite: its weights have diverged; use another checkpoint"

_KINDS: Final[dict[MatrixKind, int]] = {"float32": 0, "bfloat16": 1, "int8": 2}
_FAMILIES: Final = ("linear", "mlp", "transformer", "causal", "anticausal", "shared")
_ATTEND: Final = _FAMILIES[2:]
_WRONG_SIZE, _NOT_FINITE, _OUT_OF_MEMORY = 1, 2, 3
_PANEL: Final = 64
_LANES: Final = 16
_MOST_THREADS: Final = 64

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class Status(Exception):  # noqa: N818  it is told apart and becomes an error of bytelm before a caller sees it
    """A function of the library did not succeed; ``code`` is its status."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the engine answered {code}")
        self.code = code

    @property
    def not_finite(self) -> bool:
        """A weight, a state or a logit is not finite."""
        return self.code == _NOT_FINITE


class Block(NamedTuple):
    """Results of some steps.

    Attributes:
        records: As tuples in the order of ``Record``, for a step costs a few microseconds.
        ids: Of all records.
        sources: Of each id, as in ``Step``.
        logprobs: Of each id, nats; 0 where the sequence did not ask; empty where nobody asked.
        drafted: Sources of the verified drafts.
    """

    records: list[tuple[int, int, int, int, int, int, int, int, int, float]]
    ids: Ids
    sources: list[int]
    logprobs: list[float]
    drafted: list[int]


def _succeeded(status: int) -> None:
    """Raise ``Status`` for what the caller must put into words; everything else is a mistake of ours."""
    if status in (_NOT_FINITE, _OUT_OF_MEMORY):
        raise Status(status)
    assert status == 0, f"the engine refuses an argument ({status})"


def _address(array: npt.NDArray[Any], dtype: npt.DTypeLike, size: int) -> int:
    """The address of an array's numbers, once it is what the library expects."""
    assert isinstance(array, np.ndarray), type(array)
    assert array.dtype == dtype, f"{array.dtype} in place of {np.dtype(dtype)}"
    assert array.size == size, f"{array.size} numbers in place of {size}"
    assert array.flags.c_contiguous and array.flags.aligned, "numbers must lie one behind the other"
    return array.ctypes.data


class _Owned:
    """Something inside the library, freed when it is closed or when nobody refers to it any more."""

    def __init__(self, pointer: int, free: Callable[[int], None], *parents: "_Owned") -> None:
        self._address = pointer
        self._parents = parents  # they live as long as this does
        self._free = weakref.finalize(self, free, pointer)
        self._free.atexit = False  # a process that ends gives everything back anyway, and sooner

    @property
    def pointer(self) -> int:
        """Where it is, as long as it is there.

        Raises:
            GenerationError: It was closed, or what it belongs to was.
        """
        if not self._free.alive:
            raise GenerationError(f"this {type(self).__name__} was closed; make a new one")
        for parent in self._parents:
            _ = parent.pointer
        return self._address

    def close(self) -> None:
        """Give its memory back at once; to use it afterwards is an error."""
        self._free()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the engine's {type(self).__name__} lives in this process alone and cannot be pickled; pickle a "
            "LanguageModel that was loaded from a path, or the path"
        )


def _made(make: Callable[[Any], int], what: str, size_bytes: Callable[[], int]) -> int:
    """The pointer that a function of the library hands out.

    Raises:
        GenerationError: There is not enough memory.
    """
    out = c_void_p()
    try:
        _succeeded(make(ctypes.byref(out)))
    except Status as status:
        raise out_of_memory(what, size_bytes()) from status
    assert out.value is not None
    return out.value


def out_of_memory(what: str, size_bytes: int) -> GenerationError:
    """The error for memory that is used up."""
    return GenerationError(
        f"memory is used up: the engine needs {size_bytes / 1e6:,.0f} MB for {what}; take a smaller model or context, "
        "fewer sequences at a time, or a machine with more memory"
    )


class Engine(_Owned):
    """A model inside the library. ``bytelm.engine.weights`` makes one from a file or from a torch model.

    Args:
        config: Of the trunk.
        heads: Family and number.
        vocabulary: What ids stand for.
        kind: Of the matrices.
        threads: Of the sessions that decode, the caller's included.
        library: Loaded; the one of this package where None.

    Attributes:
        config: As given.
        heads: As given; ``heads.count`` is K.
        vocabulary: As given.
        kind: Of the matrices.
        threads: As given.
        isa: Instruction set of the library's variant.
        layers: Layers of the trunk.
        all_layers: These and the blocks of the heads.
        source: File that its weights were read from; None for none.
        spare: Decoders that nobody uses at the moment.

    Raises:
        ConfigError: There is no library, or it cannot run a model of this shape.
    """

    def __init__(
        self,
        config: TrunkShape,
        heads: HeadsShape,
        vocabulary: Vocab,
        kind: MatrixKind,
        *,
        threads: int = 1,
        library: Library | None = None,
    ) -> None:
        library = load_library() if library is None else library
        if library is None:
            raise ConfigError(f"the engine cannot be used: {unavailable_reason()}")
        self.config, self.heads, self.vocabulary = config, heads, vocabulary
        self.kind: MatrixKind = kind
        self.isa = library.isa
        self.source: Path | None = None
        self.threads = min(max(1, threads), _MOST_THREADS)
        self.layers = trunk_layers(config, heads)
        attends = heads.family in _ATTEND
        self.all_layers = self.layers + (1 if heads.family == "shared" else heads.count if attends else 0)
        self.cache_layers = self.layers + (heads.count if attends else 0)
        self.call = Functions(library)
        self.spare = Spare()
        # A head that attends does so as the model's last layer would.
        kinds = [config.attention_kind(layer) for layer in range(self.layers)]
        kinds += [config.attention_kind(config.layers - 1)] * (self.all_layers - self.layers)
        local = np.array([kind == "local" for kind in kinds], np.uint8)
        shape, address = self._shape(), _address(local, np.uint8, self.all_layers)
        try:
            pointer = _made(
                lambda out: self.call.model_new(ctypes.byref(shape), address, self.all_layers, out),
                "a model's layers",
                lambda: self.all_layers * 1024,
            )
        except AssertionError as error:
            raise ConfigError(f"the engine cannot run a model of this shape ({config})") from error
        super().__init__(pointer, self.call.model_free)

    def _shape(self) -> Shape:
        config, sizes = self.config, self.config.ngram_sizes
        return Shape(
            width=config.d_model,
            layers=self.layers,
            heads=config.attention_heads,
            groups=config.kv_heads,
            channels=config.head_channels,
            inner=config.d_ff,
            vocabulary=config.vocabulary_size,
            choices=self.vocabulary.count,
            head_count=self.heads.count,
            family=_FAMILIES.index(self.heads.family),
            ngrams=len(sizes),
            ngram_rows=config.ngram_rows,
            ngram_width=config.ngram_width,
            ngram_size=(c_int32 * 7)(*sizes),
            kind=_KINDS[self.kind],
            local_window=min(config.local_window_ids, 2**31 - 1),
            norm_epsilon=config.norm_epsilon,
            rope_base=config.rope_base,
        )

    @property
    def head_count(self) -> int:
        """K."""
        return self.heads.count

    @property
    def matrix_bytes(self) -> int:
        """Bytes of all matrices: what a step reads of them at least."""
        return self.call.model_matrix_bytes(self.pointer)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all weights."""
        return self.call.model_bytes(self.pointer)

    def elements(self, part: int, index: int) -> int:
        """Numbers of a weight; 0 for one that a model of this shape does not have."""
        return self.call.model_elements(self.pointer, part, index)

    def set_weight(self, part: int, index: int, weight: npt.NDArray[Any]) -> None:
        """Give the model a weight; it is copied, packed and rounded to the model's kind where it is a matrix.

        Args:
            part: ``WeightPart`` in model.cpp.
            index: Of the layer or the head; 0 where there is one alone.
            weight: float32, or bfloat16 as uint16; of as many numbers as ``elements`` says.

        Raises:
            Status: A number is not finite.
            GenerationError: There is not enough memory.
        """
        dtype = np.dtype(np.uint16 if weight.dtype == np.uint16 else np.float32)
        size = self.elements(part, index)
        assert size > 0, f"a model of this shape has no weight ({part}, {index})"
        address = _address(weight, dtype, size)
        try:
            _succeeded(self.call.model_set(self.pointer, part, index, int(dtype == np.uint16), address, size))
        except Status as status:
            if status.not_finite:
                raise
            raise out_of_memory("the model's weights", size * 4) from status

    @property
    def complete(self) -> bool:
        """Whether all weights are there."""
        return bool(self.call.model_complete(self.pointer))


def most_rows(engine: Engine, wanted: int) -> int:
    """Rows of a session that is asked for so many: fewer where a row's logits are large."""
    return max(1, min(wanted, MOST_ROWS, max(_PANEL, (64 << 20) // (4 * engine.config.vocabulary_size))))


class Session(_Owned):
    """Room for the numbers of a pass, and the threads that compute it.

    Args:
        engine: The model.
        rows: Of a pass, at most.
        capacity: Ids of a cache that is attended to, at most.
        threads: The caller's included; the engine's where None.
    """

    def __init__(self, engine: Engine, *, rows: int, capacity: int, threads: int | None = None) -> None:
        assert 1 <= rows <= MOST_ROWS
        self.engine, self.rows, self.capacity = engine, rows, capacity
        self.threads = engine.threads if threads is None else threads
        self._lock = threading.Lock()
        call = engine.call
        pointer = _made(
            lambda out: call.session_new(engine.pointer, self.threads, rows, capacity, out),
            f"passes of {rows} rows",
            self._size_bytes,
        )
        super().__init__(pointer, call.session_free, engine)

    def _size_bytes(self) -> int:
        config, heads = self.engine.config, self.engine.heads
        of_row = 8 * config.d_model + 3 * config.d_ff + config.vocabulary_size
        states = heads.count * config.d_model if heads.family in _ATTEND else 0
        return 4 * (self.rows * (of_row + states) + self.threads * 16 * self.capacity)

    def prefill(self, cache: "Cache", ids: Ids) -> None:
        """Read ids behind those of a cache.

        Raises:
            GenerationError: The model's numbers are not finite.
        """
        assert ids.ndim == 1
        assert len(ids) <= cache.capacity - cache.length
        with self._lock, _named():
            _succeeded(
                self.engine.call.prefill(self.pointer, cache.pointer, _address(ids, np.int32, len(ids)), len(ids))
            )

    def run(self, caches: Sequence["Cache"], rows: Sequence[int], ids: Ids, parents: Ids | None = None) -> Floats:
        """One pass over rows of some sequences; ``accept`` then makes rows real, before the next pass.

        Args:
            caches: Of the sequences, each another one.
            rows: Of each.
            ids: Of all rows, one sequence behind the other.
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
        with self._lock, _named():
            _succeeded(
                getattr(self.engine.call, "pass")(
                    self.pointer,
                    len(caches),
                    _address(pointers, np.uintp, len(caches)),
                    _address(counts, np.int32, len(caches)),
                    None if parents is None else _address(parents, np.int32, total),
                    _address(ids, np.int32, total),
                    _address(logits, np.float32, logits.size),
                )
            )
        return logits

    def accept(self, cache: "Cache", count: int, *, first: int = 0, rows: int, path: Ids | None = None) -> None:
        """Make rows of the last pass of a cache real.

        Args:
            cache: Whose rows.
            count: How many: those of ``path``, or the first ones.
            first: Number of the sequence's row 0 in the pass.
            rows: Of the sequence in the pass.
            path: Rows in the order of their depth; None for a chain.
        """
        address = None if path is None else _address(path, np.int32, count)
        with self._lock:
            _succeeded(self.engine.call.accept_path(self.pointer, cache.pointer, first, rows, address, count))

    def draft_head(self, cache: "Cache", head: int) -> Floats:
        """Logits (V,) of head 1 … K - 1 after the last accepted id; after each accept in ascending order, from 1."""
        assert 1 <= head < self.engine.heads.count and cache.length > 0
        logits = np.empty(self.engine.config.vocabulary_size, np.float32)
        with self._lock:
            address = _address(logits, np.float32, logits.size)
            _succeeded(self.engine.call.draft_head(self.pointer, cache.pointer, head, address))
        return logits

    def score_window(self, cache: "Cache", ids: Ids, *, reads: int, heads: int = 1) -> tuple[Floats, Ids]:
        """What some heads make of the ids behind each id of a window; the cache is filled afresh.

        Args:
            cache: Of at least ``reads`` ids.
            ids: What is read, and what is known behind it.
            reads: Ids that are read.
            heads: The first k; 1 where heads attend.

        Returns:
            (reads, k): -log of the probability of ids[t + 1 + head], nats, 0 where there is no such id; and the id
            that is most probable of those that can be chosen.

        Raises:
            GenerationError: Logits are not finite.
        """
        assert 1 <= reads <= min(len(ids), cache.capacity) and 1 <= heads <= self.engine.heads.count
        assert heads == 1 or self.engine.heads.family not in _ATTEND
        nats, best = np.empty((reads, heads), np.float32), np.empty((reads, heads), np.int32)
        with self._lock, _named():
            _succeeded(
                self.engine.call.score_window(
                    self.pointer,
                    cache.pointer,
                    _address(ids, np.int32, len(ids)),
                    reads,
                    len(ids),
                    heads,
                    _address(nats, np.float32, nats.size),
                    _address(best, np.int32, best.size),
                )
            )
        return nats, best


class Cache(_Owned):
    """What has been read of one sequence.

    Args:
        engine: The model.
        capacity: Ids at most.
        kind: Of keys and values.
    """

    def __init__(self, engine: Engine, capacity: int, kind: CacheKind = "float32") -> None:
        self.engine, self.capacity = engine, capacity
        call = engine.call
        pointer = _made(
            lambda out: call.cache_new(engine.pointer, capacity, _KINDS[kind], out),
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
        _succeeded(self.engine.call.cache_truncate(self.pointer, length))


def cache_bytes(engine: Engine, capacity: int, kind: CacheKind) -> int:
    """Bytes of a cache, to within its tables of rotations."""
    channels = engine.config.head_channels
    padded = channels + -(-channels // _LANES) * _LANES
    keys = engine.cache_layers * engine.config.kv_heads * padded * (4 if kind == "float32" else 2)
    attends, chain = engine.heads.family in _ATTEND, engine.heads.family in ("causal", "shared")
    history = engine.config.d_model * 4 * (engine.heads.count if chain else 1 if attends else 0)
    return capacity * (keys + history + 4 * channels)


class Decoder(_Owned):
    """Sequences side by side.

    Args:
        engine: The model.
        slots: Sequences at a time, 1 … 64.
        capacity: Ids of each context, at least 2.
        costs: Of steps.
        calibration: Of drafts.
        pairs: Correction of the draft heads: tables last (257, R), before (257, R), out (R, 257) and factors of_head
            and of_pair (K - 1), float32; None for none.
        trees: Whether the second-best bytes of heads are drafted as branches; off for comparisons alone.
        cache: Kind of keys and values.
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
        pointer = _made(
            lambda out: call.decoder_new(
                self.session.pointer, slots, capacity, _KINDS[cache], trees, costs, calibration, struct, out
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
        return Pairs(rank, *(_address(table, np.float32, size) for table, size in tables))

    def set_costs(self, costs: CostTable) -> None:
        """Plan with other costs; what was measured of the rate is forgotten."""
        with self._lock:
            _succeeded(self.engine.call.decoder_set_costs(self.pointer, costs))

    def calibration(self) -> CalibrationTable:
        """How often drafts were right, until now."""
        table = CalibrationTable()
        with self._lock:
            _succeeded(self.engine.call.decoder_calibration(self.pointer, table))
        return table

    def set_calibration(self, calibration: CalibrationTable) -> None:
        """Begin to count from here."""
        with self._lock:
            _succeeded(self.engine.call.decoder_set_calibration(self.pointer, calibration))

    def begin(self, slot: int, ids: Ids, settings: SequenceSettings) -> int:
        """Give a slot to a prompt.

        Args:
            slot: Free, or finished.
            ids: ``EOD`` and the whole prompt.
            settings: Of its continuation.

        Returns:
            Ids that ``prefill`` must read; fewer than there are where a cache holds some of them.

        Raises:
            GenerationError: There is not enough memory.
        """
        assert ids.ndim == 1 and len(ids) >= 1
        with self._lock:
            address = _address(ids, np.int32, len(ids))
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
            _succeeded(self.engine.call.decoder_end(self.pointer, slot))

    def _run(self, room: "_Room", steps: int, microseconds: int, logprobs: bool) -> Block:
        block = room.block
        block.logprobs = room.logprobs.ctypes.data if logprobs else None
        try:
            _succeeded(self.engine.call.decoder_run(self.pointer, steps, microseconds, block))
        except Status as status:
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
            _succeeded(-answer)
        except Status as status:
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
            record=_address(self.record, RECORD, records),
            ids=_address(self.ids, np.int32, ids),
            sources=_address(self.sources, np.int8, ids),
            drafted=_address(self.drafted, np.int8, ids),
        )


class Spare:
    """What nobody uses at the moment, with all that it has read: the next prompt may begin alike.

    There is no lock: each operation on the list is one of the interpreter's, so that neither a fork nor a generator
    that is collected at any moment can find it taken.
    """

    _KEPT: Final = 3

    def __init__(self) -> None:
        self._free: list[tuple[Hashable, Any]] = []

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        """Something with this key, what was used last if there are several; a new one if there is none."""
        for entry in reversed(list(self._free)):
            if entry[0] == key:
                try:
                    self._free.remove(entry)
                except ValueError:  # another thread has just taken it
                    continue
                return entry[1]
        return make()

    def give_back(self, key: Hashable, thing: object) -> None:
        """Keep something for the next caller; of too many things the oldest goes."""
        self._free.append((key, thing))
        while len(self._free) > self._KEPT:
            del self._free[:1]


@contextlib.contextmanager
def _named(size_bytes: int = 1 << 20) -> Iterator[None]:
    """What the library could not do inside becomes an error of a caller's."""
    try:
        yield
    except Status as status:
        if status.not_finite:
            raise GenerationError(NOT_FINITE) from status
        raise out_of_memory("a pass", size_bytes) from status
