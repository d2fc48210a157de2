"""Windows of raw bytes as ids that stand for several bytes each: what ``bytelm.packing.pack`` is for bytes.

The windows are those of a byte model: the same bytes, in the same order, with the same boundaries. Of a window of T
bytes and what lies ahead of it, a row takes the ids from the first place at which a word surely begins to the first
such place behind its T bytes. So a row holds the very ids that its document has there, no id is torn by a window, and
windows that follow one another leave no byte out. ``EOD`` and boundaries are treated as in ``bytelm.packing``.

Rows have as many ids as their bytes make, and end in padding, which is no target and comes behind all that is one.

Shapes: B windows, T ids of the longest row, K prediction heads.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from bytelm.bpe import split_places
from bytelm.config import RunConfig
from bytelm.data.batches import WindowBatch
from bytelm.packing import PackedBatch, pack
from bytelm.vocab import BYTE_VOCABULARY, EOD, Vocab

_LENGTH_MULTIPLE: Final = 8
"""Rows are padded to a multiple of this, so that few shapes occur."""
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
    rows = []
    for number, window in enumerate(windows_BW.numpy()):
        own = rows_N == number
        starts, ends = document_start_N[own].tolist(), document_end_N[own].tolist()
        boundaries = dict(zip(offsets_N[own].tolist(), zip(starts, ends, strict=True), strict=True))
        data = window.tobytes()[: None if data_bytes_B is None else int(data_bytes_B[number])]
        rows.append(_row(data, boundaries, vocabulary, window_bytes, len(window) - window_bytes))
    longest = max(1, *(row.reads for row in rows))
    length = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    shape = len(rows), length + prediction_heads
    ids_BW, owners_BW, documents_BW = np.full(shape, EOD), np.full(shape, _NOTHING), np.full(shape, 0)
    for number, row in enumerate(rows):
        targets = min(row.reads + prediction_heads, len(row.ids))
        ids_BW[number, :targets] = row.ids[:targets]
        owners_BW[number, :targets] = row.owners[:targets]
        documents_BW[number, : row.reads] = row.documents[: row.reads]
        documents_BW[number, row.reads :] = row.documents[row.reads - 1] if row.reads else 0
    ids_BW, owners_BW, documents_BW = (torch.from_numpy(some).to(device) for some in (ids_BW, owners_BW, documents_BW))
    reads_B1 = torch.tensor([[row.reads] for row in rows], device=device)
    documents_BT = documents_BW[:, :length]
    valid_BTK = owners_BW[:, 1:].unfold(1, prediction_heads, 1) == documents_BT.unsqueeze(-1)
    valid_BTK &= (torch.arange(length, device=device) < reads_B1).unsqueeze(-1)
    inside = any(len(set(row.documents[: row.reads])) > 1 for row in rows)
    return PackedBatch(
        ids_BW[:, :length],
        ids_BW[:, 1:].unfold(1, prediction_heads, 1),
        valid_BTK,
        documents_BT.int() if inside else None,
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
