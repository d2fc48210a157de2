"""Generated ids on their way out: the output ends where it must, what may begin a stop string is held back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bytelm.generation import FinishReason
from bytelm.vocab import BYTES, EOD, Vocab


@dataclass(frozen=True, slots=True)
class Chosen:
    """An id that is certain.

    Attributes:
        identifier: Of the vocabulary.
        source: As in ``Step``.
        logprob: Nats, or None where nobody asked.
    """

    identifier: int
    source: int
    logprob: float | None = None


class Outlet:
    """The end of a decoder.

    Args:
        max_bytes: Of the output.
        stop: Strings before which it ends.
        vocabulary: Of the ids.

    Attributes:
        count: Bytes that were taken, those of a stop string included.
    """

    def __init__(self, max_bytes: int, stop: Iterable[bytes], vocabulary: Vocab = BYTES) -> None:
        self.count = 0
        self._max_bytes, self._vocabulary = max_bytes, vocabulary
        self._stops = sorted(stop, key=len, reverse=True)  # of two that end together, the longer cuts more
        self._held, self._chosen = bytearray(), list[Chosen]()

    def take(self, ids: Sequence[Chosen]) -> FinishReason | None:
        """Take the ids of a step; the reason to finish, after which the rest is dropped, or None."""
        for one in ids:
            if one.identifier == EOD:
                return "end_of_document"
            for byte in self._vocabulary.bytes_of(one.identifier):
                self._held.append(byte)
                self._chosen.append(one)
                self.count += 1
                for stop in self._stops:
                    if self._held.endswith(stop):
                        del self._held[-len(stop) :], self._chosen[-len(stop) :]
                        return "stop"
                if self.count == self._max_bytes:
                    return "max_bytes"
        return None

    def release(self, *, last: bool) -> tuple[bytes, list[Chosen]]:
        """Bytes that no stop string can take back, and what is known of them; everything in the last step."""
        certain = len(self._held) if last else len(self._held) - self._begun()
        released = bytes(self._held[:certain]), self._chosen[:certain]
        del self._held[:certain], self._chosen[:certain]
        return released

    def _begun(self) -> int:
        """Length of the longest end of the held bytes with which a stop string begins."""
        longest = len(self._stops[0]) - 1 if self._stops else 0
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
