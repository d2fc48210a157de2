"""What the last two bytes say of the next one: a correction of the draft heads, which know nothing of each other.

Head k predicts the byte k places on without knowing the bytes between. Where two continuations compete, a chain of the
heads' best bytes mixes them up. The drafter knows the bytes that it has drafted so far, and the last two of them say
much of the next: the logits of head k become

    a_k · logits + b_k · (last[x] + before[y]) · out        x, y: the last byte and the one before it

a map of low rank, which ``bytelm.pairs`` fits. It changes drafts, never a byte: what is drafted is only ever compared
with what the trunk chooses.

Shapes: N = K - 1 draft heads, V ids that can be chosen, R rank.

Source: independent heads rescored by an n-gram model, Kim et al. 2024, arXiv 2404.09221; here the rescoring is learnt.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bytelm.files import write_file
from bytelm.sampling import CHOICES
from bytelm.vocab import EOD

PATH_OF_PAIRS: Final = "pairs.safetensors"

_MOST_RANK: Final = 4096
_NAMES: Final = ("last_VR", "before_VR", "out_RV", "of_head_N", "of_pair_N")


@dataclass(frozen=True, slots=True, eq=False)
class PairCorrection:
    """A fitted correction.

    Attributes:
        last_VR: By the last id; ``EOD`` stands for none.
        before_VR: By the id before it.
        out_RV: To logits.
        of_head_N: a_k of each draft head.
        of_pair_N: b_k.
    """

    last_VR: npt.NDArray[np.float32]
    before_VR: npt.NDArray[np.float32]
    out_RV: npt.NDArray[np.float32]
    of_head_N: npt.NDArray[np.float32]
    of_pair_N: npt.NDArray[np.float32]

    def corrected(self, draft_head: int, logits_V: npt.NDArray[np.float32], recent: bytes) -> npt.NDArray[np.float32]:
        """Logits of a draft head where the bytes before its byte are known.

        Args:
            draft_head: From 0, which is head 1.
            logits_V: At least V of them.
            recent: The bytes before; the last two are looked at.

        Returns:
            (V,).
        """
        last = recent[-1] if recent else EOD
        before = recent[-2] if len(recent) > 1 else EOD
        pair_V = (self.last_VR[last] + self.before_VR[before]) @ self.out_RV
        return self.of_head_N[draft_head] * logits_V[:CHOICES] + self.of_pair_N[draft_head] * pair_V


def write_pairs(folder: Path, pairs: PairCorrection, weights: str) -> None:
    """Write ``pairs.safetensors`` beside a run; ``weights`` is the digest of those that it was fitted to."""
    arrays = {name: getattr(pairs, name).astype(np.float16) for name in _NAMES}
    write_file(folder / PATH_OF_PAIRS, save(arrays, {"weights": weights}))


def read_pairs(folder: Path, weights: str, draft_heads: int) -> tuple[PairCorrection | None, str]:
    """The correction of a run, if it is there and was fitted to these weights.

    Returns:
        It and "", or None and why one that is there is not used.
    """
    path = folder / PATH_OF_PAIRS
    if not path.is_file():
        return None, ""
    again = "and is not used; run bytelm tune again"
    try:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("weights") != weights:
                return None, f"{path} was fitted to other weights {again}"
            rank = file.get_slice(_NAMES[0]).get_shape()[-1:] or [0]
            shapes = [(CHOICES, *rank), (CHOICES, *rank), (*rank, CHOICES), (draft_heads,), (draft_heads,)]
            # Of a table of another shape not even the numbers are read.
            if not 1 <= rank[0] <= _MOST_RANK or [tuple(file.get_slice(name).get_shape()) for name in _NAMES] != shapes:
                return None, f"{path} holds other tables than this model needs {again}"
            found = [file.get_tensor(name).astype(np.float32) for name in _NAMES]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:  # a dtype that numpy has not, too
        return None, f"{path} cannot be read ({error}) {again}"
    for name, one in zip(_NAMES, found, strict=True):
        if not np.isfinite(one).all():
            return None, f"{path}: {name} is not finite {again}"
    return PairCorrection(*found), ""
