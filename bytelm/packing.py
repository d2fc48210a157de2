"""From raw windows to what the model learns on: ids, the K targets of each, and which targets count.

A window of T + K raw bytes may hold pieces of several documents. One ``EOD`` slot goes where a document begins, where
one ends, and where one ends and the next begins, and the window is cut back to T + K ids. Read, an ``EOD`` begins the
document behind it; predicted, it ends the one in front. Where pieces of neither kind were only put side by side, no
``EOD`` appears. Nothing crosses a boundary: no attention, no position, no target.

Shapes: B windows, W = T + K ids of a window, T inputs, K prediction heads, N boundaries.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from bytelm.vocab import EOD

_GOLDEN: Final = 0.5 * (math.sqrt(5.0) - 1.0)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Windows as the model and the loss read them.

    Attributes:
        inputs_BT: Ids, int64.
        targets_BTK: Ids, int64: [b, t, k] is the id at t + 1 + k, a strided view of the same ids.
        valid_BTK: True where that id belongs to the document of the input: its bytes and the ``EOD`` that ends it.
        documents_BT: Number of the piece of each input, int32, non-decreasing in each row; an ``EOD`` slot belongs to
            the document that it begins, or else to the one that it ends. None where no boundary lies inside any
            window: each row is one document.
        draft_rows_R: Rows of B · T, int64, ascending, from which heads 1 … K - 1 learn; their targets of other rows
            are not valid. None for all.
    """

    inputs_BT: Tensor
    targets_BTK: Tensor
    valid_BTK: Tensor
    documents_BT: Tensor | None
    draft_rows_R: Tensor | None = None


def pack(
    windows_BW: Tensor,
    rows_N: np.ndarray,
    offsets_N: np.ndarray,
    document_start_N: np.ndarray,
    document_end_N: np.ndarray | None = None,
    data_bytes_B: np.ndarray | None = None,
    *,
    prediction_heads: int,
) -> PackedBatch:
    """Insert ``EOD`` slots, cut to T + K ids, and mark what must not cross a boundary.

    Bytes that the slots push off the end of a window are not learnt from this time; another epoch cuts elsewhere.

    Args:
        windows_BW: Raw bytes, uint8, on any device.
        rows_N: Row of each boundary.
        offsets_N: Byte of that row which is the first of another piece, in [0, W); no pair (row, offset) twice.
        document_start_N: Bool: a document begins there.
        document_end_N: Bool: a document ends in front of it; at offset 0 it is not seen. Where documents begin if None.
        data_bytes_B: Bytes of each row that are data; all if None. What follows is no target.
        prediction_heads: K, below W.

    Example:
        K = 1 and the window ``ab|cd`` with a true start at c:

        >>> raw = torch.tensor([list(b"abcd")], dtype=torch.uint8)
        >>> batch = pack(raw, np.array([0]), np.array([2]), np.array([True]), prediction_heads=1)
        >>> batch.inputs_BT.tolist(), batch.targets_BTK[..., 0].tolist(), batch.valid_BTK[..., 0].tolist()
        ([[97, 98, 256]], [[98, 256, 99]], [[True, True, True]])

        With a join there, c is no target of b, and no ``EOD`` appears:

        >>> batch = pack(raw, np.array([0]), np.array([2]), np.array([False]), prediction_heads=1)
        >>> batch.inputs_BT.tolist(), batch.targets_BTK[..., 0].tolist(), batch.valid_BTK[..., 0].tolist()
        ([[97, 98, 99]], [[98, 99, 100]], [[True, False, True]])
    """
    batch, width = windows_BW.shape
    assert 1 <= prediction_heads < width
    if len(rows_N) == 0 and data_bytes_B is None:
        return plain_batch(windows_BW, prediction_heads)
    device = windows_BW.device
    ends_N = document_start_N if document_end_N is None else document_end_N
    place_N = torch.tensor(rows_N, device=device), torch.tensor(offsets_N, device=device)
    boundary_BW, start_BW, end_BW = torch.zeros(3, batch, width, dtype=torch.int64, device=device)
    boundary_BW[place_N] = 1
    start_BW[place_N] = torch.tensor(document_start_N, dtype=torch.int64, device=device)
    end_BW[place_N] = torch.tensor(ends_N & (offsets_N > 0), dtype=torch.int64, device=device)
    piece_BW = boundary_BW.cumsum(1) - boundary_BW[:, :1]
    ids_BW, owner_BW = windows_BW.long(), piece_BW
    if data_bytes_B is not None:
        padding_BW = torch.arange(width, device=device) >= torch.tensor(data_bytes_B, device=device).unsqueeze(1)
        ids_BW, owner_BW = ids_BW.masked_fill(padding_BW, EOD), owner_BW.masked_fill(padding_BW, -1)
    # A byte moves right by the EOD slots in front of it. Each takes the place in front of its own byte last.
    slot_BW = start_BW | end_BW
    place_BW = torch.arange(width, device=device) + slot_BW.cumsum(1)
    before_BW = place_BW - slot_BW

    def spread(of_bytes_BW: Tensor, of_slots_BW: Tensor) -> Tensor:
        whole = torch.zeros(batch, 2 * width, dtype=torch.int64, device=device)
        return whole.scatter_(1, before_BW, of_slots_BW).scatter_(1, place_BW, of_bytes_BW)[:, :width].contiguous()

    inputs_BT, targets_BTK = _views(spread(ids_BW, torch.full_like(ids_BW, EOD)), prediction_heads)
    documents_BT = spread(piece_BW, piece_BW - 1 + start_BW)[:, : inputs_BT.shape[1]]
    valid_BTK = _views(spread(owner_BW, piece_BW - end_BW), prediction_heads)[1] == documents_BT.unsqueeze(-1)
    inside = bool((offsets_N > 0).any())  # decided on the host: asking the device would wait for it
    return PackedBatch(inputs_BT, targets_BTK, valid_BTK, documents_BT.int() if inside else None)


def plain_batch(ids_BW: Tensor, prediction_heads: int) -> PackedBatch:
    """Windows without a boundary: every target counts.

    Args:
        ids_BW: Integer ids, W = T + K of them in a row.
        prediction_heads: K, below W.
    """
    inputs_BT, targets_BTK = _views(ids_BW.long(), prediction_heads)
    return PackedBatch(inputs_BT, targets_BTK, torch.ones_like(targets_BTK, dtype=torch.bool), None)


def with_draft_rows(batch: PackedBatch, share: float, turn: int) -> PackedBatch:
    """The same batch, of which heads 1 … K - 1 learn from a share of the rows alone, evenly spread.

    Far heads need fewer rows than head 0 to become as good drafters as they can be, and every row costs time. The
    rows are at the same places in all windows, so that it does not matter how a step is divided into micro-batches and
    processes, and at other places in each step, so that no place is left out.

    Args:
        batch: Any.
        share: Share of the rows that heads 1 … K - 1 learn from, in (0, 1]; 1 gives the batch itself.
        turn: Number of the step: it decides where the rows begin, nothing is random.

    Example:
        >>> batch = plain_batch(torch.arange(18).view(2, 9), prediction_heads=2)
        >>> with_draft_rows(batch, 0.5, turn=0).draft_rows_R
        tensor([ 0,  2,  4,  6,  7,  9, 11, 13])
    """
    if share == 1.0 or batch.valid_BTK.shape[2] == 1:
        return batch
    windows, length = batch.inputs_BT.shape
    # Multiples of the golden ratio fill the gap between two rows evenly, whenever one stops.
    first = turn * _GOLDEN % 1.0
    places = ((np.arange(math.ceil(length * share)) + first) / share).astype(np.int64)
    rows_BR = np.arange(windows)[:, None] * length + places[places < length]
    rows_R = torch.from_numpy(rows_BR.reshape(-1)).to(batch.inputs_BT.device)
    chosen_BT = torch.zeros_like(batch.inputs_BT, dtype=torch.bool)
    chosen_BT.view(-1)[rows_R] = True
    valid_BTK = batch.valid_BTK.clone()
    valid_BTK[..., 1:] &= chosen_BT.unsqueeze(-1)
    return replace(batch, valid_BTK=valid_BTK, draft_rows_R=rows_R)


def _views(ids_BW: Tensor, prediction_heads: int) -> tuple[Tensor, Tensor]:
    """Inputs (B, T) and, as a strided view, the K values that follow each (B, T, K)."""
    return ids_BW[:, : ids_BW.shape[1] - prediction_heads], ids_BW[:, 1:].unfold(1, prediction_heads, 1)
