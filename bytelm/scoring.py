"""Windows over documents, and what every head makes of them: the one way in which bytes are scored.

Each document begins with ``EOD`` and is read alone. A window reads ids p = a … a + context - 1 of ``EOD`` and the
document's bytes, and at p head k predicts byte p + k (0-based). Each p is used once, in the first window that reads
it. The context that a byte gets is therefore a function of its place in its document, of nothing else: scores of
parts add up to the score of the whole. Where ids stand for several bytes, a window reads those that lie whole in the
same bytes, and one that is longer than what a window advances is read all the same.

Shapes: B windows of a batch, L ids of a window, k heads that are asked, V vocabulary.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm.errors import ConfigError
from bytelm.model import ByteLM
from bytelm.vocab import BYTES, EOD, Vocab

BATCH_IDS: Final = 8192
"""Ids that are scored at a time: enough to fill a processor, little beside the weights."""

_WINDOWS_SORTED: Final = 256
"""Windows that are sorted by length before they are batched, so that short documents are not padded to long ones."""


@dataclass(frozen=True, slots=True)
class Window:
    """Ids p = start … of a document, as many as are read and K more where the document has them.

    Attributes:
        ids: int64; the first ``reads`` are inputs.
        reads: Inputs.
        first: The first of them that is used here, and in no window before.
        document: Number of the document among those that were given.
        start: Place of the first input.
    """

    ids: npt.NDArray[np.int64]
    reads: int
    first: int
    document: int
    start: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What the heads made of a batch of windows.

    Attributes:
        windows: The batch.
        used_BL: Places that count here.
        bytes_kBL: Bytes that a head's target stands for where that counts, 0 elsewhere.
        nats_kBL: -log of what a head gave its target, float32; meaningless where ``scored_kBL`` is false.
        scored_kBL: Whether the place is used and the document has the head's target.
        named_kBL: The id that a head gave most, of those that decoding can choose.
    """

    windows: list[Window]
    used_BL: Tensor
    bytes_kBL: Tensor
    nats_kBL: Tensor
    scored_kBL: Tensor
    named_kBL: Tensor


def default_stride(context: int) -> int:
    """Half of a window."""
    return max(1, context // 2)


def check_stride(stride: int, context: int) -> int:
    """The stride, if it is possible.

    Raises:
        ConfigError: Not 1 … context.
    """
    if not 1 <= stride <= context:
        raise ConfigError(f"a stride of {stride} skips bytes or stands still; choose 1 … {context} (the context)")
    return stride


def windows(
    documents: Iterable[bytes],
    vocabulary: Vocab = BYTES,
    *,
    context: int,
    stride: int,
    heads: int,
    begins: Iterable[int] | None = None,
) -> Iterator[Window]:
    """Cut documents into windows.

    Args:
        documents: Raw bytes; taken one by one.
        vocabulary: What the ids stand for.
        context: Bytes of a window, ``EOD`` counted as one.
        stride: Bytes that a window advances, 1 … context.
        heads: Ids behind the inputs that a window keeps as targets.
        begins: For each document the first id that is asked for; windows without such an id are left out. All where
            None.

    Example:
        A document of 4 bytes, context 3, stride 1: windows read p = 0 1 2 and 1 2 3; p = 3 alone is used in the second.
    """
    firsts = itertools.repeat(0) if begins is None else begins
    for number, (document, begin) in enumerate(zip(documents, firsts, strict=False)):
        if vocabulary is BYTES:
            yield from _of_bytes(document, number, begin, context, stride, heads)
            continue
        ids = np.concatenate(([EOD], vocabulary.encode(document)))
        inputs = len(ids) - 1  # of the last id nothing is asked
        size_I = vocabulary.sizes[ids]
        size_I[0] = 1
        end_I = np.cumsum(size_I)
        seen = start = 0
        while seen < inputs:
            first = min(int(np.searchsorted(end_I - size_I, start)), seen)
            end = min(max(int(np.searchsorted(end_I, start + context, "right")), seen + 1), inputs)
            if end > begin:
                yield Window(ids[first : end + heads], end - first, max(seen, begin) - first, number, first)
            seen, start = end, start + stride


def _of_bytes(document: bytes, number: int, begin: int, context: int, stride: int, heads: int) -> Iterator[Window]:
    """The same where every byte is an id: a document's ids are eight times its size and need not be there at once."""
    inputs, seen = len(document), 0
    for start in itertools.count(0, stride):
        if seen >= inputs:
            return
        end = min(start + context, inputs)
        if end > begin:
            ids = BYTES.encode(document[max(0, start - 1) : end + heads - 1])
            ids = ids if start else np.concatenate(([EOD], ids))
            yield Window(ids, end - start, max(seen, begin) - start, number, start)
        seen = end


def batches(cut: Iterator[Window]) -> Iterator[list[Window]]:
    """Windows of similar length together."""
    while pool := list(itertools.islice(cut, _WINDOWS_SORTED)):
        pool.sort(key=lambda window: window.reads, reverse=True)
        while pool:
            rows = max(1, BATCH_IDS // pool[0].reads)
            yield pool[:rows]
            del pool[:rows]


@torch.no_grad()
def score(model: ByteLM, batch: list[Window], heads: int) -> Scores:
    """Run the trunk and the first heads over a batch of windows.

    Args:
        model: On any device; under autocast if the caller wants that.
        batch: One window or more.
        heads: k, how many heads are asked, from head 0.
    """
    device = model.embedding.device
    length = max(window.reads for window in batch)
    ids = np.full((len(batch), length + heads), EOD)
    for row, window in enumerate(batch):
        ids[row, : len(window.ids)] = window.ids[: length + heads]
    ids_BL = torch.from_numpy(ids).to(device)
    first_B1, reads_B1, size_B1 = (
        torch.tensor(column, device=device).unsqueeze(1)
        for column in zip(*((w.first, w.reads, len(w.ids)) for w in batch), strict=True)
    )
    place_L = torch.arange(length, device=device)
    used_BL = (place_L >= first_B1) & (place_L < reads_B1)
    # What pads a short window comes after all that is scored, and nothing sees what comes after it.
    hidden_BLD = model.trunk(ids_BL[:, :length])
    shared = model.heads.window_pass(hidden_BLD, None)
    sizes_V = torch.from_numpy(model.vocabulary.sizes).to(device)
    bytes_kBL = torch.zeros(heads, *used_BL.shape, dtype=torch.int64, device=device)
    nats_kBL = torch.zeros(heads, *used_BL.shape, device=device)
    scored_kBL = torch.zeros(heads, *used_BL.shape, dtype=torch.bool, device=device)
    named_kBL = torch.zeros(heads, *used_BL.shape, dtype=torch.int64, device=device)
    for head, state_BLD in model.heads.states(hidden_BLD, shared, range(heads)):
        target_BL = ids_BL[:, 1 + head : 1 + head + length]
        logits_BLV = model.heads.unembed(head, state_BLD).float()
        nats_BL = F.cross_entropy(logits_BLV.flatten(0, 1), target_BL.flatten(), reduction="none")
        nats_kBL[head] = nats_BL.view(used_BL.shape)
        scored_kBL[head] = used_BL & (place_L + 1 + head < size_B1)
        bytes_kBL[head] = sizes_V[target_BL] * scored_kBL[head]
        named_kBL[head] = logits_BLV[..., : model.vocabulary.count].argmax(-1)
    return Scores(batch, used_BL, bytes_kBL, nats_kBL, scored_kBL, named_kBL)


def agreement(scores: Scores) -> Tensor:
    """Where heads 0 … k all named what head 0 names once it has read that far, (K, B, L).

    False where the window does not read far enough to ask head 0 about the last head: everywhere in a batch of
    documents that are shorter than K.
    """
    heads, length = len(scores.named_kBL), scores.used_BL.shape[1]
    reads_B1 = torch.tensor([window.reads for window in scores.windows], device=scores.used_BL.device).unsqueeze(1)
    place_L = torch.arange(length, device=scores.used_BL.device)
    agreed_BL = scores.used_BL & (place_L + heads <= reads_B1)
    kept = []
    for head in range(heads):
        same_BL = torch.zeros_like(agreed_BL)
        far = max(0, length - head)  # places at which the window goes on that far
        same_BL[:, :far] = scores.named_kBL[head, :, :far] == scores.named_kBL[0, :, length - far :]
        agreed_BL = agreed_BL & same_BL
        kept.append(agreed_BL)
    return torch.stack(kept)
