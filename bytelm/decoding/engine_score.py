"""Log-probabilities of given bytes through the engine, each with the context that generation would have had there."""

from collections.abc import Hashable
from typing import Final

import numpy as np
import numpy.typing as npt

from bytelm.decoding.plan import context_start, slid_start
from bytelm.engine import Cache, Engine, Ids, Session
from bytelm.vocab import EOD

_ROWS: Final = 64
"""Of a pass: short enough for Ctrl-C, long enough to read each weight seldom."""


def score(engine: Engine, prompt: bytes, continuation: bytes, context_bytes: int) -> npt.NDArray[np.float64]:
    """Nats of each byte of a continuation, every byte before it being given; see ``LanguageModel.score``.

    Args:
        engine: Of a model whose ids are bytes.
        prompt: Beginning of a document.
        continuation: What follows.
        context_bytes: Slots of the context, at least 2.

    Raises:
        GenerationError: The model's logits are not finite, or memory is used up.
    """
    ids = np.frombuffer(bytes(1) + prompt + continuation, np.uint8).astype(np.int32)
    ids[0] = EOD
    row = len(prompt)  # place of the id after which the next byte is scored
    start = context_start(row + 1, context_bytes)
    scores = np.empty(len(continuation))
    key: Hashable = ("scorer", context_bytes)
    scorer = engine.spare.take(key, lambda: _Scorer(engine, context_bytes))
    try:
        while row < len(ids) - 1:
            if row - start == context_bytes:
                start = slid_start(row + 1, context_bytes)
            end = min(start + context_bytes, len(ids) - 1)
            scorer.begin(ids[start:row])
            for first in range(row, end, _ROWS):
                last = min(first + _ROWS, end)
                scores[first - len(prompt) : last - len(prompt)] = scorer.advance(
                    ids[first:last], ids[first + 1 : last + 1]
                )
            row = end
    finally:
        engine.spare.give_back(key, scorer)
    return scores


class _Scorer:
    """A window that is read piece by piece; what is there already is not read again."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self._session = Session(engine, rows=_ROWS, capacity=capacity)
        self._cache = Cache(engine, capacity)
        self._read = np.empty(capacity, np.int32)

    def begin(self, ids: Ids) -> None:
        """Have read these ids and nothing else."""
        length = min(len(ids), self._cache.length)
        other = np.flatnonzero(self._read[:length] != ids[:length])
        same = int(other[0]) if len(other) else length
        self._cache.truncate(same)
        for first in range(same, len(ids), _ROWS):
            piece = np.ascontiguousarray(ids[first : first + _ROWS])
            self._session.prefill(self._cache, piece)
            self._read[first : first + len(piece)] = piece

    def advance(self, ids: Ids, targets: Ids) -> npt.NDArray[np.float64]:
        """Read more ids; nats of the target behind each."""
        first, count = self._cache.length, len(ids)
        wide_MV = self._session.run([self._cache], [count], np.ascontiguousarray(ids)).astype(np.float64)
        self._session.accept(self._cache, count, rows=count)
        self._read[first : first + count] = ids
        wide_MV -= wide_MV.max(-1, keepdims=True)
        return wide_MV[np.arange(count), targets] - np.log(np.exp(wide_MV).sum(-1))
