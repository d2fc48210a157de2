"""The next byte: what the settings make of the trunk's logits, and the choice from it.

    repetition penalty   logits of the last bytes are moved towards unlikely
    UTF-8                what is no UTF-8 here is excluded, also a character that would not fit into the bytes asked for
    temperature, top_k, top_p, min_p, noise of the position: the ``Sampler``

All of this is a function of the bytes before, never of who drafted them, so drafts change no byte.

Shapes: V vocabulary.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bytelm import utf8_automaton
from bytelm.sampling import Sampler
from bytelm.vocab import EOD

PENALTY_BYTES: Final = 64
"""Bytes back that a repetition penalty looks at: among bytes, all that a text needs have come up long ago."""


@dataclass(frozen=True, slots=True)
class DecodeContext:
    """What the choice of a byte depends on besides the logits.

    Attributes:
        position: Of the byte, in the output.
        utf8_state: Of the automaton after the bytes before it.
        recent: The bytes before it, at most ``PENALTY_BYTES``.
    """

    position: int
    utf8_state: int
    recent: bytes

    def after(self, identifier: int) -> "DecodeContext":
        """The context of the next byte, once this one is chosen."""
        if identifier >= EOD:  # or one that stands for several bytes: then nothing asks for what follows
            return DecodeContext(self.position + 1, utf8_automaton.START, self.recent)
        state = utf8_automaton.advance(self.utf8_state, (identifier,))
        return DecodeContext(self.position + 1, state, (self.recent + bytes((identifier,)))[-PENALTY_BYTES:])


class NextByte:
    """How one sequence chooses its bytes.

    Args:
        sampler: Temperature, restrictions, noise.
        utf8: Whether the output is UTF-8.
        repetition_penalty: Logits above 0 of bytes that came up are divided by it, those below multiplied; 1 for none.
        max_bytes: Of the output, for characters that would not fit.
    """

    def __init__(self, sampler: Sampler, *, utf8: bool, repetition_penalty: float, max_bytes: int) -> None:
        self.sampler = sampler
        self._utf8, self._penalty, self._max_bytes = utf8, repetition_penalty, max_bytes

    def first_context(self, prompt: bytes) -> DecodeContext:
        """Where the first byte is chosen. A prompt that is no UTF-8 counts as one that ends between characters."""
        return DecodeContext(0, utf8_automaton.state_at_end(prompt), prompt[-PENALTY_BYTES:])

    def logits(self, logits_V: npt.NDArray[np.float32], context: DecodeContext) -> npt.NDArray[np.float32]:
        """Logits with penalty and exclusions (257,); the given ones where there are none."""
        if not self._utf8 and self._penalty == 1.0:
            return logits_V[: self.sampler.choices]
        changed = logits_V[: self.sampler.choices].copy()
        if self._penalty != 1.0 and context.recent:
            seen = np.unique(np.frombuffer(context.recent, np.uint8))
            values = changed[seen]
            changed[seen] = np.where(values > 0, values / self._penalty, values * self._penalty)
        if self._utf8:
            changed[self._forbidden(context)] = -np.inf
        return changed

    def permits(self, identifier: int, context: DecodeContext) -> bool:
        """Whether an id may be chosen, whatever the logits."""
        return not self._utf8 or not self._forbidden(context)[identifier]

    def choose(self, logits_V: npt.NDArray[np.float32], context: DecodeContext) -> int:
        """The id, in [0, 257)."""
        return self.sampler.choose(self.logits(logits_V, context)[None], context.position)[0]

    def _forbidden(self, context: DecodeContext) -> npt.NDArray[np.bool_]:
        return utf8_automaton.forbidden(context.utf8_state, max(1, self._max_bytes - context.position))
