"""Who sees whom in a pass over whole windows: the definition that every attention backend is tested against.

Shapes: B batch, T bytes.
"""

import torch
from torch import Tensor


def visible_dense(
    length: int,
    *,
    window_bytes: int | None = None,
    documents_BT: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The mask written out: byte s is seen from byte t where s <= t, t - s < window, same document.

    Args:
        length: Bytes T.
        window_bytes: Bytes that are seen, the present one included; None for all before.
        documents_BT: Number of the document of each byte; None where each row is one document.
        device: Where the mask is needed.

    Returns:
        Bool of shape (B, T, T), or (1, T, T) without documents: [b, t, s] is True where byte t sees byte s.

    Example:
        >>> visible_dense(3, window_bytes=2).int().tolist()
        [[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]
    """
    positions_T = torch.arange(length, device=device)
    distance_TT = positions_T[:, None] - positions_T[None, :]
    visible_BTT = (distance_TT >= 0).unsqueeze(0)
    if window_bytes is not None:
        visible_BTT = visible_BTT & (distance_TT < window_bytes)
    if documents_BT is not None:
        visible_BTT = visible_BTT & (documents_BT[:, :, None] == documents_BT[:, None, :])
    return visible_BTT


def document_lengths(documents_BT: Tensor) -> list[int]:
    """Bytes of each document of a batch whose rows are put one after another; a row's end ends a document.

    Args:
        documents_BT: Integers that change exactly where a document begins; they are copied to the host.

    Returns:
        Lengths, at least 1 each, whose sum is B · T.

    Example:
        >>> document_lengths(torch.tensor([[0, 0, 1], [1, 1, 1]]))
        [2, 1, 3]
    """
    batch, length = documents_BT.shape
    begins_BT = torch.ones(batch, length, dtype=torch.bool)
    begins_BT[:, 1:] = (documents_BT[:, 1:] != documents_BT[:, :-1]).cpu()
    begins = torch.cat((begins_BT.flatten().nonzero().flatten(), torch.tensor([batch * length])))
    return begins.diff().tolist()
