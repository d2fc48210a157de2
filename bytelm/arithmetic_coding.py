"""Arithmetic coding with a model: the proof that its bits per byte are a size that data can be brought to.

The encoder and the decoder read the same ids one by one, each in a pass of one row, so they compute the same bits of
the same distribution and divide the same interval. The distribution is head 0's softmax over all V ids; what it gives
to ids that are no bytes is one more symbol, which is never coded: exactly what bits per byte count as lost.

Shapes: V vocabulary.

Source:
    Witten, Neal, Cleary 1987, "Arithmetic coding for data compression"; Martin 1979, range encoding with carries.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from bytelm.engine import Cache, Engine, Session
from bytelm.vocab import BYTE_COUNT, EOD

if TYPE_CHECKING:
    from bytelm.model import ByteLM

_TOTAL_BITS: Final = 32
_TOTAL: Final = 1 << _TOTAL_BITS
_MASK: Final = (1 << 64) - 1
_SMALLEST_RANGE: Final = 1 << 48
_SHIFT: Final = 16
_ROWS: Final = 256
"""Ids that the engine reads in one pass, after a window has moved."""


@dataclass(frozen=True, slots=True)
class Coded:
    """Documents as one string of bits.

    Attributes:
        payload: The bits.
        lengths: Bytes of each document; the decoder is told them.
    """

    payload: bytes
    lengths: tuple[int, ...]


class RangeEncoder:
    """Divides an interval of 64 bits; symbols have integer shares of 2^32."""

    def __init__(self) -> None:
        self._low, self._range = 0, _MASK
        self._out = bytearray()

    def encode(self, start: int, share: int) -> None:
        """Take the part of the interval that begins at ``start`` and is ``share`` wide, of 2^32; share is 1 or more."""
        unit = self._range >> _TOTAL_BITS
        self._low += unit * start
        self._range = unit * share
        self._carry()
        while self._range < _SMALLEST_RANGE:
            self._out += (self._low >> 48).to_bytes(2, "big")
            self._low = self._low << _SHIFT & _MASK
            self._range <<= _SHIFT

    def finish(self) -> bytes:
        """The shortest bytes that name the interval, zeros behind them being understood."""
        for shift in range(64, -1, -8):
            name = -(-self._low >> shift) << shift
            if name < self._low + self._range:
                self._low = name
                self._carry()
                self._out += self._low.to_bytes(8, "big")[: 8 - shift // 8]
                break
        return bytes(self._out).rstrip(b"\0")

    def _carry(self) -> None:
        if self._low > _MASK:
            self._low &= _MASK
            place = len(self._out) - 1
            while self._out[place] == 0xFF:
                self._out[place] = 0
                place -= 1
            self._out[place] += 1


class RangeDecoder:
    """Reads what ``RangeEncoder`` wrote."""

    def __init__(self, payload: bytes) -> None:
        self._payload, self._read = payload, 8
        self._offset = int.from_bytes(payload[:8].ljust(8, b"\0"), "big")
        self._range = _MASK

    def decode(self, starts: npt.NDArray[np.int64]) -> int:
        """The next symbol.

        Args:
            starts: Where the share of each symbol begins, ascending, of 2^32.
        """
        unit = self._range >> _TOTAL_BITS
        symbol = int(np.searchsorted(starts, min(self._offset // unit, _TOTAL - 1), side="right")) - 1
        end = int(starts[symbol + 1]) if symbol + 1 < len(starts) else _TOTAL
        start = int(starts[symbol])
        self._offset -= unit * start
        self._range = unit * (end - start)
        while self._range < _SMALLEST_RANGE:
            following = self._payload[self._read : self._read + 2].ljust(2, b"\0")
            self._offset = self._offset << _SHIFT | int.from_bytes(following, "big")
            self._range <<= _SHIFT
            self._read += 2
        return symbol


def shares(logits_V: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Where the share of each byte begins, of 2^32, and last where that of all other ids does; (257,).

    Every symbol has a share of 1 or more, so that every byte can be coded; one that is less likely than that costs less
    than its bits per byte say.
    """
    scores_V = logits_V.astype(np.float64)
    weights_V = np.exp(scores_V - scores_V.max())
    probabilities = weights_V[:BYTE_COUNT] / weights_V.sum()
    widths = np.floor(probabilities * (_TOTAL - BYTE_COUNT - 1)).astype(np.int64) + 1
    return np.concatenate([[0], np.cumsum(widths)])


def encode(
    model: "ByteLM | Engine",
    documents: Sequence[bytes],
    *,
    context_bytes: int,
    stride: int,
    after_document: Callable[[int], None] = lambda _: None,
) -> Coded:
    """Code documents, each byte given those before it in its document, by the rule of ``bytelm.scoring``.

    Args:
        model: The engine, or a torch model in evaluation mode.
        documents: Raw bytes.
        context_bytes: Ids of a window.
        stride: Ids that a window advances.
        after_document: Called with the bytes that were coded last.
    """
    coder = RangeEncoder()
    for document in documents:
        for place, starts in enumerate(_all_shares(model, document, len(document), context_bytes, stride)):
            byte = document[place]
            coder.encode(int(starts[byte]), int(starts[byte + 1] - starts[byte]))
        after_document(len(document))
    return Coded(coder.finish(), tuple(len(document) for document in documents))


def decode(
    model: "ByteLM | Engine",
    coded: Coded,
    *,
    context_bytes: int,
    stride: int,
    after_document: Callable[[int], None] = lambda _: None,
) -> list[bytes]:
    """The documents of ``encode``, with the same model on the same machine, and the same arguments."""
    coder = RangeDecoder(coded.payload)
    documents = []
    for length in coded.lengths:
        document = bytearray()
        for starts in _all_shares(model, document, length, context_bytes, stride):
            document.append(min(coder.decode(starts), BYTE_COUNT - 1))
        documents.append(bytes(document))
        after_document(length)
    return documents


def _all_shares(
    model: "ByteLM | Engine", document: bytes | bytearray, length: int, context_bytes: int, stride: int
) -> Iterator[npt.NDArray[np.int64]]:
    """``shares`` of each byte of a document, which must hold all bytes before it when they are asked for."""
    reader = _EngineReader(model, context_bytes) if isinstance(model, Engine) else _TorchReader(model, context_bytes)
    start = 0
    for place in range(length):
        if place == start + context_bytes:
            start += stride
            reader.begin([EOD, *document[:place]][start:place])
        yield shares(reader.after(document[place - 1] if place else EOD))


class _EngineReader:
    """Logits of head 0 through the engine, id by id."""

    def __init__(self, engine: Engine, context_bytes: int) -> None:
        self._session = Session(engine, rows=_ROWS, capacity=context_bytes)
        self._cache = Cache(engine, context_bytes)

    def begin(self, ids: Sequence[int]) -> None:
        """Have read these ids and nothing else."""
        self._cache.truncate(0)
        self._session.prefill(self._cache, np.array(ids, np.int32))

    def after(self, identifier: int) -> npt.NDArray[np.float32]:
        """Read one id more; the logits after it, (V,)."""
        logits_1V = self._session.run([self._cache], [1], np.array([identifier], np.int32))
        self._session.accept(self._cache, 1, rows=1)
        return logits_1V[0]


class _TorchReader:
    """The same through torch."""

    def __init__(self, model: "ByteLM", context_bytes: int) -> None:
        self._model, self._cache = model, model.new_cache(1, context_bytes)

    def begin(self, ids: Sequence[int]) -> None:
        """See ``_EngineReader``."""
        import torch

        with torch.inference_mode():
            self._model.prefill(torch.tensor([ids], device=self._model.embedding.device), self._cache)

    def after(self, identifier: int) -> npt.NDArray[np.float32]:
        """See ``_EngineReader``."""
        import torch

        model, cache = self._model, self._cache
        with torch.inference_mode():
            shared = model.cached_pass(cache, batch=1, rows=1)
            hidden_11D = model.decode(torch.tensor([[identifier]], device=model.embedding.device), shared)
            logits_V = model.heads.decode_logits(hidden_11D, shared, range(1))[0, 0, 0]
            cache.advance([1])
            return logits_V.float().cpu().numpy()
