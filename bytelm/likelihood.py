"""Log-probabilities of continuations, many at a time, exact and additive.

The context of a byte is a function of its place alone (``bytelm.scoring``), so that what a continuation costs does not
depend on where it is cut: ll(a, bc) = ll(a, b) + ll(ab, c), up to the rounding of float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bytelm.engine import NOT_FINITE
from bytelm.errors import GenerationError
from bytelm.model import ByteLM
from bytelm.scoring import batches, default_stride, score, windows


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What head 0 made of a continuation.

    Attributes:
        nats: Logarithm of the probability of each byte, at most 0.
        greedy: Whether each byte is the id that head 0 gave most.
    """

    nats: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]

    @property
    def total(self) -> float:
        """Of all bytes together, nats; 0 for none."""
        return float(self.nats.sum())

    @property
    def is_greedy(self) -> bool:
        """Greedy decoding would have written exactly this."""
        return bool(self.greedy.all())


def likelihoods(
    model: ByteLM,
    pairs: Sequence[tuple[bytes, bytes]],
    *,
    context_bytes: int,
    after_batch: Callable[[int], None] = lambda _: None,
) -> list[Likelihood]:
    """Score continuations, each given what stands before it from the beginning of a document.

    Args:
        model: Of bytes, in evaluation mode, on any device.
        pairs: Beginning of a document and continuation.
        context_bytes: Ids of a window; it advances by half.
        after_batch: Called with the windows that were scored last.

    Returns:
        One for each pair, in order.

    Raises:
        GenerationError: A score is not finite.
    """
    found = [Likelihood(np.zeros(len(after)), np.zeros(len(after), np.bool_)) for _, after in pairs]
    documents = (before + after for before, after in pairs)
    begins = [len(before) for before, _ in pairs]
    stride = default_stride(context_bytes)
    for batch in batches(windows(documents, context=context_bytes, stride=stride, heads=1, begins=begins)):
        scores = score(model, batch, 1)
        nats_BL = scores.nats_kBL[0].double().cpu().numpy()
        target_BL = np.zeros(nats_BL.shape, np.int64)
        for row, window in enumerate(batch):
            target_BL[row, : len(window.ids) - 1] = window.ids[1 : 1 + nats_BL.shape[1]]
        greedy_BL = scores.named_kBL[0].cpu().numpy() == target_BL
        for row, window in enumerate(batch):
            used = slice(window.first, window.reads)
            begin = window.start + window.first - begins[window.document]
            place = slice(begin, begin + window.reads - window.first)
            if not np.isfinite(nats_BL[row, used]).all():
                raise GenerationError(f"text {window.document + 1} of those that are scored: {NOT_FINITE}")
            found[window.document].nats[place] = -nats_BL[row, used]
            found[window.document].greedy[place] = greedy_BL[row, used]
        after_batch(len(batch))
    return found
