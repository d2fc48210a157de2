"""What the library takes and gives, as ctypes sees it: structs of decode.h and engine.h, and the exported functions.

Fields, their order and their types are those of the headers; the version of the interface (``bytelm.engine.build``) is
raised with every change of them.
"""

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from typing import Any, Final, NamedTuple

import numpy as np

from bytelm.engine.library import Library

MOST_PASTS: Final = 4
MOST_ROW_COUNTS: Final = 12
"""Entries of a table of costs."""


class Shape(Structure):
    """Shape of a model: ``Shape`` in engine.h."""

    _fields_ = [
        *((name, c_int32) for name in ("width", "layers", "heads", "groups", "channels", "inner")),
        *((name, c_int32) for name in ("vocabulary", "choices", "head_count", "family", "ngrams")),
        ("ngram_rows", c_int32),
        ("ngram_width", c_int32),
        ("ngram_size", c_int32 * 7),
        ("kind", c_int32),
        ("local_window", c_int32),
        ("norm_epsilon", c_float),
        ("rope_base", c_double),
    ]


class SequenceSettings(Structure):
    """What is asked of a sequence: ``Settings`` in decode.h."""

    _fields_ = [
        *((name, c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        ("seed", c_uint64),
        ("sequence", c_uint64),
        ("max_ids", c_int64),
        *((name, c_int32) for name in ("top_k", "utf8", "logprobs", "policy")),
    ]


class Counter(Structure):
    """How many drafts of a kind were right, and how many there were."""

    _fields_ = [("right", c_double), ("total", c_double)]


class CalibrationTable(Structure):
    """``Calibration`` in decode.h: ``head[rule][0 head, 1 agree][depth][bin]``; of matches ``[rule][bin]``."""

    _fields_ = [("head", Counter * 13 * 9 * 2 * 2), ("lookup", Counter * 8 * 2), ("against", Counter * 8 * 2)]


class CostTable(Structure):
    """``Costs`` in decode.h: seconds of a step by the ids before it and by its rows."""

    _fields_ = [
        ("pasts", c_int32),
        ("row_counts", c_int32),
        ("past", c_int32 * MOST_PASTS),
        ("rows", c_int32 * MOST_ROW_COUNTS),
        ("seconds", c_double * MOST_ROW_COUNTS * MOST_PASTS),
        ("head", c_double),
        ("sequence", c_double),
    ]


class Pairs(Structure):
    """Correction of the draft heads: ``Pairs`` in decode.h."""

    _fields_ = [("rank", c_int32), *((name, c_void_p) for name in ("last", "before", "out", "of_head", "of_pair"))]


RECORD: Final = np.dtype(
    [
        *((name, np.int32) for name in ("slot", "first", "id_count", "drafted_first", "drafted", "accepted", "rows")),
        ("asked", np.int32),
        ("finish", np.int32),
        ("expected", np.float32),
    ]
)


class StepBlock(Structure):
    """Room for the results of some steps: ``Block`` in decode.h."""

    _fields_ = [
        *((name, c_int32) for name in ("most_records", "most_ids", "most_drafted")),
        *((name, c_int32) for name in ("records", "id_count", "drafted_count", "steps", "ended")),
        *((name, c_void_p) for name in ("record", "ids", "sources", "logprobs", "drafted")),
    ]


# A library of another interface is refused by its number; this notices a struct that was changed without one.
for _struct, _size in (
    (Shape, 104),
    (SequenceSettings, 72),
    (Counter, 16),
    (CalibrationTable, 8000),
    (CostTable, 472),
    (Pairs, 48),
    (StepBlock, 72),
):
    assert ctypes.sizeof(_struct) == _size, _struct
assert RECORD.itemsize == 40


class Record(NamedTuple):
    """What one step gave to one sequence; indices count within the block.

    Attributes:
        slot: Slot of the sequence that made the step.
        first: Index of the first of its ids, sources and log-probabilities.
        id_count: Number of its ids; the end of a document is never among them.
        drafted_first: Index of the first of its verified drafts.
        drafted: Number of its verified drafts.
        accepted: Number of verified drafts that were right.
        rows: Rows of the pass that belong to the sequence.
        asked: Draft heads that ran before the pass.
        finish: 0 goes on, 1 end of the document, 2 as many ids as were asked for, 3 logits that are not finite.
        expected: Ids that the planner expected.
    """

    slot: int
    first: int
    id_count: int
    drafted_first: int
    drafted: int
    accepted: int
    rows: int
    asked: int
    finish: int
    expected: float


assert RECORD.names == Record._fields
GOES_ON, END_OF_DOCUMENT, MAX_IDS, LOGITS_NOT_FINITE = range(4)


_POINTER_OUT: Final = POINTER(c_void_p)
_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "model_new": (c_int, (POINTER(Shape), c_void_p, c_int, _POINTER_OUT)),
    "model_elements": (c_int64, (c_void_p, c_int, c_int)),
    "model_set": (c_int, (c_void_p, c_int, c_int, c_int, c_void_p, c_int64)),
    "model_complete": (c_int, (c_void_p,)),
    "model_matrix_bytes": (c_int64, (c_void_p,)),
    "model_bytes": (c_int64, (c_void_p,)),
    "model_free": (None, (c_void_p,)),
    "session_new": (c_int, (c_void_p, c_int, c_int, c_int, _POINTER_OUT)),
    "session_free": (None, (c_void_p,)),
    "cache_new": (c_int, (c_void_p, c_int, c_int, _POINTER_OUT)),
    "cache_free": (None, (c_void_p,)),
    "cache_length": (c_int, (c_void_p,)),
    "cache_truncate": (c_int, (c_void_p, c_int)),
    "prefill": (c_int, (c_void_p, c_void_p, c_void_p, c_int)),
    "pass": (c_int, (c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    "accept_path": (c_int, (c_void_p, c_void_p, c_int, c_int, c_void_p, c_int)),
    "draft_head": (c_int, (c_void_p, c_void_p, c_int, c_void_p)),
    "score_window": (c_int, (c_void_p, c_void_p, c_void_p, c_int, c_int, c_int, c_void_p, c_void_p)),
    "decoder_new": (
        c_int,
        (c_void_p, *[c_int32] * 4, POINTER(CostTable), POINTER(CalibrationTable), POINTER(Pairs), _POINTER_OUT),
    ),
    "decoder_free": (None, (c_void_p,)),
    "decoder_set_costs": (c_int, (c_void_p, POINTER(CostTable))),
    "decoder_calibration": (c_int, (c_void_p, POINTER(CalibrationTable))),
    "decoder_set_calibration": (c_int, (c_void_p, POINTER(CalibrationTable))),
    "decoder_begin": (c_int64, (c_void_p, c_int32, c_void_p, c_int64, POINTER(SequenceSettings))),
    "decoder_prefill": (c_int64, (c_void_p, c_int32, c_int64)),
    "decoder_run": (c_int, (c_void_p, c_int32, c_int64, POINTER(StepBlock))),
    "decoder_end": (c_int, (c_void_p, c_int32)),
}
"""Result and arguments of what the library exports; declared when it is first called."""


class Functions:
    """The functions of one variant of the library, with their types."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        result, arguments = _SIGNATURES[name]
        function = self._library.call(name)
        function.restype, function.argtypes = result, arguments
        setattr(self, name, function)
        return function
