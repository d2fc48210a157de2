"""Chosen ids on their way out: the output ends where it must, what may begin a stop string is held back."""

from collections.abc import Iterable, Sequence

from bytelm.generation import FinishReason
from bytelm.vocab import BYTES, EOD, Vocab


class OutputBuffer:
    """The end of a decoder.

    Args:
        max_bytes: Of the output.
        stop: Strings before which it ends.
        vocabulary: Of the ids.

    Attributes:
        count: Bytes that were pushed, those of a stop string included.
    """

    def __init__(self, max_bytes: int, stop: Iterable[bytes], vocabulary: Vocab = BYTES) -> None:
        self.count = 0
        self._max_bytes, self._vocabulary = max_bytes, vocabulary
        self._stops = sorted(stop, key=len, reverse=True)  # of two that end together, the longer cuts more
        self._held, self._sources, self._logprobs = bytearray(), list[int](), list[float]()

    def push(
        self, ids: Sequence[int] | bytes, sources: Sequence[int], logprobs: Sequence[float] = ()
    ) -> FinishReason | None:
        """Append chosen ids.

        Args:
            ids: As many as there are sources; bytes are ids too.
            sources: Of each id, as in ``Step``.
            logprobs: Of each id, nats; empty where nobody asked.

        Returns:
            Why the output ends, after which the rest is dropped; None where it goes on.
        """
        ended = not isinstance(ids, bytes) and EOD in ids
        if ended:
            ids = ids[: ids.index(EOD)]
        data, sources, logprobs = self._as_bytes(ids, sources, logprobs)
        data = data[: self._max_bytes - self.count]
        before = len(self._held)
        self._held += data
        self._sources += sources[: len(data)]
        self._logprobs += logprobs[: len(data)]
        if self._stops and (found := self._first_stop(before)) is not None:
            start, end = found
            self.count += end - before
            self._cut(start)
            return "stop"
        self.count += len(data)
        if self.count == self._max_bytes:
            return "max_bytes"
        return "end_of_document" if ended else None

    def pop_safe(self, *, last: bool) -> tuple[bytes, tuple[int, ...], tuple[float, ...]]:
        """Take the bytes that no stop string can take back, all in the last step, with sources and logprobs."""
        count = len(self._held) if last or not self._stops else len(self._held) - self._length_of_begun_stop()
        popped = bytes(self._held[:count]), tuple(self._sources[:count]), tuple(self._logprobs[:count])
        del self._held[:count], self._sources[:count], self._logprobs[:count]
        return popped

    def _as_bytes(
        self, ids: Sequence[int] | bytes, sources: Sequence[int], logprobs: Sequence[float]
    ) -> tuple[bytes, Sequence[int], Sequence[float]]:
        """The bytes of ids, and for each of them what is known of its id."""
        if isinstance(ids, bytes):
            return ids, sources, logprobs
        if self._vocabulary is BYTES:
            return bytes(ids), sources, logprobs
        pieces = [self._vocabulary.bytes_of(identifier) for identifier in ids]
        place_of_byte = [place for place, piece in enumerate(pieces) for _ in piece]
        return (
            b"".join(pieces),
            [sources[place] for place in place_of_byte],
            [logprobs[place] for place in place_of_byte] if logprobs else (),
        )

    def _first_stop(self, before: int) -> tuple[int, int] | None:
        """Start and end of the stop string that is complete first, behind the bytes that were held before."""
        found = []
        for stop in self._stops:
            start = self._held.find(stop, max(0, before - len(stop) + 1))
            if start >= 0:
                found.append((start, start + len(stop)))
        return min(found, key=lambda one: (one[1], one[0]), default=None)

    def _cut(self, length: int) -> None:
        del self._held[length:], self._sources[length:], self._logprobs[length:]

    def _length_of_begun_stop(self) -> int:
        """Length of the longest end of the held bytes with which a stop string begins."""
        for length in range(min(len(self._stops[0]) - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
