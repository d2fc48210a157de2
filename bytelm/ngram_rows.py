"""Which row of a table an n-gram has, and the ids that it is made of.

Shapes: B batch, T bytes, N kinds of n-grams, P ids before.
"""

from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

_Ids = TypeVar("_Ids", Tensor, npt.NDArray[np.int64])

NOTHING: Final = -1
"""Stands for an id before the first one of a document or of the context."""

_PRIME: Final = (1 << 31) - 1
_FACTOR: Final = 1_103_515_245
"""An n-gram is a polynomial over this prime field, taken at the factor: products stay below 2^62."""


def ngram_rows(inputs_BT: Tensor, before_PBT: Tensor, sizes: tuple[int, ...], rows: int) -> Tensor:
    """Row of each n-gram, counted through all tables.

    Args:
        inputs_BT: Ids, integers from 0.
        before_PBT: The ids before, as ``NgramEmbedding`` takes them.
        sizes: Lengths n, ascending.
        rows: Of one table.

    Returns:
        int64 (N, B, T): for the i-th length in [i · rows, (i + 1) · rows).
    """
    if inputs_BT.device.type == "cpu" and torch.is_inference_mode_enabled():
        # The few ids of a decoding pass: each call of numpy takes half the time of one of torch.
        return torch.from_numpy(np.stack(_rows_of_tables(inputs_BT.numpy(), before_PBT.numpy(), sizes, rows)))
    return torch.stack(_rows_of_tables(inputs_BT, before_PBT, sizes, rows))


def _rows_of_tables(inputs_BT: _Ids, before_PBT: _Ids, sizes: tuple[int, ...], rows: int) -> list[_Ids]:
    found: list[_Ids] = []
    value_BT: _Ids = inputs_BT + 1
    for size in range(2, max(sizes) + 1):
        value_BT = (value_BT * _FACTOR + before_PBT[size - 2] + 1) % _PRIME  # pyright: ignore[reportAssignmentType]
        if size in sizes:
            found.append(value_BT % rows + len(found) * rows)
    return found


def ids_before(inputs_BT: Tensor, count: int, positions_BT: Tensor | None = None) -> Tensor:
    """The ids before each id of whole windows.

    Args:
        inputs_BT: Ids.
        count: P, how many.
        positions_BT: Position of each id in its own document; None where each row is one document.

    Returns:
        (P, B, T).

    Example:
        >>> ids_before(torch.tensor([[7, 8, 9]]), 2).tolist()
        [[[-1, 7, 8]], [[-1, -1, 7]]]
    """
    length = inputs_BT.shape[1]
    found = []
    for distance in range(1, count + 1):
        before_BT = F.pad(inputs_BT, (distance, 0), value=NOTHING)[:, :length]
        if positions_BT is not None:
            before_BT = before_BT.masked_fill(positions_BT < distance, NOTHING)
        found.append(before_BT)
    return torch.stack(found)
