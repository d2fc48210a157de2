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

from bytelm.engine.decoder import STEP_ROWS, Block, Decoder
from bytelm.engine.handles import NOT_FINITE, Floats, Ids, StatusError, out_of_memory
from bytelm.engine.interface import (
    END_OF_DOCUMENT,
    GOES_ON,
    LOGITS_NOT_FINITE,
    MAX_IDS,
    MOST_PASTS,
    MOST_ROW_COUNTS,
    CalibrationTable,
    CostTable,
    Counter,
    Record,
    SequenceSettings,
)
from bytelm.engine.model import MOST_ROWS, MOST_SLOTS, Engine, MatrixKind, most_rows
from bytelm.engine.session import MOST_TREE_ROWS, Cache, CacheKind, Session, cache_bytes

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
    "StatusError",
    "cache_bytes",
    "most_rows",
    "out_of_memory",
]
