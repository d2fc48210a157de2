"""Windows of raw bytes as ids that stand for several bytes each: what ``bytelm.packing.pack`` is for bytes.

The windows are those of a byte model: the same bytes, in the same order, with the same boundaries. Of a window of T
bytes and what lies ahead of it, a row takes the ids from the first place at which a word surely begins to the first
such place behind its T bytes. So a row holds the very ids that its document has there, no id is torn by a window, and
windows that follow one another leave no byte out. ``EOD`` and boundaries are treated as in ``bytelm.packing``.

Windows have different numbers of ids. So all of a batch stand side by side in one row, each a document of its own or
several, and nothing is computed for padding but for a few places at the end, which are no target.

Shapes: B windows, T ids of all of them, K prediction heads.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from bytelm.bpe import split_places
from bytelm.config import RunConfig
from bytelm.data.batches import WindowBatch
from bytelm.packing import PackedBatch, pack
from bytelm.vocab import BYTE_VOCABULARY, EOD, Vocab

_LENGTH_MULTIPLE: Final = 8
"""The row is padded to a multiple of this, so that few shapes occur."""
_NOTHING: Final = -1


def pack_batch(batch: WindowBatch, config: RunConfig, vocabulary: Vocab, device: torch.device) -> PackedBatch:
    """The windows of a loader as the model and the loss read them, whatever the vocabulary."""
    marks = batch.rows_N, batch.offsets_N, batch.document_start_N, batch.document_end_N, batch.data_bytes_B
    heads = config.heads.count
    if vocabulary.name == BYTE_VOCABULARY:
        return pack(batch.windows_BW.to(device, non_blocking=True), *marks, prediction_heads=heads)
    return pack_tokens(
        batch.windows_BW,
        *marks,
        vocabulary=vocabulary,
        window_bytes=config.data.window_bytes,
        prediction_heads=heads,
        device=device,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """Ids of a window.

    Attributes:
        ids: In order.
        documents: The piece that each is read in.
        owners: The piece that each is a target of.
        reads: How many of them are inputs.
    """

    ids: list[int]
    documents: list[int]
    owners: list[int]
    reads: int


def pack_tokens(
    windows_BW: torch.Tensor,
    rows_N: np.ndarray,
    offsets_N: np.ndarray,
    document_start_N: np.ndarray,
    document_end_N: np.ndarray,
    data_bytes_B: np.ndarray | None,
    *,
    vocabulary: Vocab,
    window_bytes: int,
    prediction_heads: int,
    device: torch.device | str = "cpu",
) -> PackedBatch:
    """Encode windows, insert ``EOD`` slots, and mark what must not cross a boundary.

    Args:
        windows_BW: Raw bytes, uint8, on the host: T bytes, and behind them those in which the last word may end.
        rows_N, offsets_N, document_start_N, document_end_N, data_bytes_B: As for ``bytelm.packing.pack``.
        vocabulary: Of the ids.
        window_bytes: T of the windows.
        prediction_heads: K.
        device: Of the result.
    """
    ids, targets, valid, documents = [], [], [], []
    pieces = 0
    for number, window in enumerate(windows_BW.numpy()):
        own = rows_N == number
        starts, ends = document_start_N[own].tolist(), document_end_N[own].tolist()
        boundaries = dict(zip(offsets_N[own].tolist(), zip(starts, ends, strict=True), strict=True))
        data = window.tobytes()[: None if data_bytes_B is None else int(data_bytes_B[number])]
        row = _row(data, boundaries, vocabulary, window_bytes, len(window) - window_bytes)
        document_T = np.array(row.documents[: row.reads], np.int64)
        behind = [EOD] * prediction_heads, [_NOTHING] * prediction_heads
        ids_TK, owners_TK = (
            sliding_window_view(np.array([*known[1 : row.reads + prediction_heads], *padding]), prediction_heads)
            for known, padding in zip((row.ids, row.owners), behind, strict=True)
        )
        ids.append(np.array(row.ids[: row.reads], np.int64))
        targets.append(ids_TK[: row.reads])
        valid.append(owners_TK[: row.reads] == document_T[:, None])
        documents.append(document_T + pieces)
        pieces += len(boundaries) + 1
    length = sum(map(len, ids))
    padding = -length % _LENGTH_MULTIPLE or _LENGTH_MULTIPLE * (length == 0)
    ids.append(np.full(padding, EOD))
    targets.append(np.full((padding, prediction_heads), EOD))
    valid.append(np.zeros((padding, prediction_heads), bool))
    documents.append(np.full(padding, max((some[-1] for some in documents if len(some)), default=0)))
    inputs_1T, targets_1TK, valid_1TK, documents_1T = (
        torch.from_numpy(np.concatenate(some)).unsqueeze(0) for some in (ids, targets, valid, documents)
    )
    several = bool(documents_1T[0, 0] != documents_1T[0, -1])
    return PackedBatch(
        inputs_1T.to(device),
        targets_1TK.to(device),
        valid_1TK.to(device),
        documents_1T.int().to(device) if several else None,
    )


def _row(
    data: bytes, boundaries: dict[int, tuple[bool, bool]], vocabulary: Vocab, window_bytes: int, ahead_bytes: int
) -> _Row:
    """Ids of a window.

    Args:
        data: Its bytes, without padding.
        boundaries: By place: whether a document begins there, and whether one ends in front of it.
        vocabulary: Of the ids.
        window_bytes: T.
        ahead_bytes: Bytes behind them, where there are as many.
    """
    places = sorted({*split_places(data), *(place for place in boundaries if place <= len(data))})
    # The window before sees the places of the first bytes, and ends at the first one; this one begins there.
    begin = next((place for place in places if place < ahead_bytes), 0)
    # A word that begins at T itself belongs to the next window: it begins there too, unless a boundary says so.
    behind = (place for place in places if place > window_bytes or (place == window_bytes and place in boundaries))
    end = next(behind, min(window_bytes, len(data)))
    known = max(end, places[-1]) if places else end
    ids, documents, owners = list[int](), list[int](), list[int]()
    reads, piece, start = 0, 0, begin
    cuts = [place for place in sorted(boundaries) if begin <= place <= known]
    for place in [*cuts, None]:
        stop = known if place is None else place
        if start < stop:
            found = vocabulary.encode(data[start:stop])
            ends = start + np.cumsum(vocabulary.sizes[found])
            reads = len(ids) + int(np.searchsorted(ends, end, "right")) if start < end else reads
            ids += found.tolist()
            documents += [piece] * len(found)
            owners += [piece] * len(found)
        if place is not None:
            starts, stops = boundaries[place][0], boundaries[place][1] and place > 0
            if starts or stops:
                ids.append(EOD)
                documents.append(piece + starts)
                owners.append(piece if stops else piece + 1)
                reads = len(ids) if place < end else reads
            piece += 1
            start = stop
    return _Row(ids, documents, owners, reads)
