"""Attention: one door, ``attend``, behind which the backends give the same numbers.

Who sees whom is a ``Mask``: causal, within a local window, within a document. It is made once for a pass and shared
by all layers of a kind. ``reference`` is the specification: dense masks, float32, the softmax written out. ``torch``
is the fast one: PyTorch's fused kernel, and for local layers blocks of queries against the few keys that they can
see, so that the cost grows with the length and not with its square.

Shapes: B batch, T bytes, H attention heads, G key and value heads, R = H / G query heads of a group, C channels,
N blocks, P bytes of a block, S keys.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionBackend = Literal["torch", "reference"]

_BLOCK: Final = 128  # queries of a block: measured fastest on CPUs for windows of 128 to 512


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys each query of a pass may see: byte s is seen from byte t where s <= t, t - s < window, same document.

    Attributes:
        length: Bytes T of the pass.
        window_bytes: Bytes that are seen, the present one included; None for all before.
        documents_BT: Number of the document of each byte, non-decreasing; None where each row is one document.
        visible: What the ``torch`` backend reads: bool, True = seen. Dense (1 or B, 1, T, T); with ``block`` (1 or
            B, N, P, S); None where the kernel's own causal mask says the same.
        block: Queries P of a block; 0 for dense.
    """

    length: int
    window_bytes: int | None
    documents_BT: Tensor | None
    visible: Tensor | None
    block: int

    @classmethod
    def build(
        cls,
        length: int,
        *,
        window_bytes: int | None = None,
        documents_BT: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> "Mask":
        """Prepare the mask of a pass.

        Args:
            length: Bytes T.
            window_bytes: Bytes that are seen, the present one included, at least 1; None for all before.
            documents_BT: Integers that change exactly where a document begins; None where each row is one document.
            device: Where the mask is needed.
        """
        if window_bytes is not None and window_bytes >= length:
            window_bytes = None  # nothing is that far away
        visible, block = None, 0
        if window_bytes is not None:
            visible, block = _visible_in_blocks(length, window_bytes, documents_BT, device)
        if block == 0 and (window_bytes is not None or documents_BT is not None):
            visible = visible_dense(length, window_bytes=window_bytes, documents_BT=documents_BT, device=device)
            visible = visible.unsqueeze(1)
        return cls(length, window_bytes, documents_BT, visible, block)


def visible_dense(
    length: int,
    *,
    window_bytes: int | None = None,
    documents_BT: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The mask written out: the definition that every other form is tested against.

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


def attend(
    query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, mask: Mask, *, backend: AttentionBackend = "torch"
) -> Tensor:
    """Causal attention of a pass over its own bytes.

    Args:
        query_BHTC: Queries, rotated and scaled as the model wants them; scores are divided by sqrt(C).
        key_BGTC: Keys; query head h reads key head h // (H / G).
        value_BGTC: Values.
        mask: Who sees whom, for this T.
        backend: ``torch``, or ``reference``, which specifies it.

    Returns:
        Mixed values of shape (B, H, T, C), in the dtype of the values.
    """
    if backend == "reference":
        return _attend_reference(query_BHTC, key_BGTC, value_BGTC, mask)
    if mask.block:
        return _attend_blocks(query_BHTC, key_BGTC, value_BGTC, mask)
    if mask.visible is None:
        return F.scaled_dot_product_attention(query_BHTC, key_BGTC, value_BGTC, is_causal=True, enable_gqa=True)
    # Repeated here: of PyTorch's fused kernels, those that take a mask do not all know groups.
    key_BHTC, value_BHTC = (_for_each_query_head(states, query_BHTC.shape[1]) for states in (key_BGTC, value_BGTC))
    return F.scaled_dot_product_attention(query_BHTC, key_BHTC, value_BHTC, mask.visible)


def attend_range(query_BHMC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor, bias_RMS: Tensor) -> Tensor:
    """Attention of a few rows over a range of cached keys.

    The queries of a group are folded into the rows of one product, so that a key is read once for all of them. For
    equal shapes a row's result depends on no other row.

    Args:
        query_BHMC: Queries of M rows.
        key_BGSC: Cached keys of the range.
        value_BGSC: Cached values of the range.
        bias_RMS: Added to the scores: 0 where row m sees slot s, -inf elsewhere, the same for each of the R; each row
            sees one slot at least.

    Returns:
        Mixed values of shape (B, H, M, C).
    """
    groups, keys = key_BGSC.shape[1:3]
    folded = query_BHMC.unflatten(1, (groups, -1)).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(folded, key_BGSC, value_BGSC, bias_RMS.reshape(-1, keys))
    return mixed.view(query_BHMC.shape)


def _for_each_query_head(states_BGTC: Tensor, heads: int) -> Tensor:
    """Keys or values as often as query heads read them: (B, H, T, C)."""
    groups = states_BGTC.shape[1]
    return states_BGTC if groups == heads else states_BGTC.repeat_interleave(heads // groups, dim=1)


def _attend_reference(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, mask: Mask) -> Tensor:
    with torch.autocast(query_BHTC.device.type, enabled=False):
        heads = query_BHTC.shape[1]
        key_BHTC = _for_each_query_head(key_BGTC.float(), heads)
        value_BHTC = _for_each_query_head(value_BGTC.float(), heads)
        scores_BHTT = query_BHTC.float() @ key_BHTC.transpose(-1, -2) / math.sqrt(query_BHTC.shape[-1])
        visible_BTT = visible_dense(
            mask.length, window_bytes=mask.window_bytes, documents_BT=mask.documents_BT, device=query_BHTC.device
        )
        scores_BHTT = scores_BHTT.masked_fill(~visible_BTT.unsqueeze(1), -math.inf)
        return (scores_BHTT.softmax(dim=-1) @ value_BHTC).to(value_BGTC.dtype)


def _visible_in_blocks(
    length: int, window_bytes: int, documents_BT: Tensor | None, device: torch.device | str | None
) -> tuple[Tensor | None, int]:
    """Mask of each block of P queries over the block's own keys and the blocks before that its window touches."""
    block = _BLOCK
    blocks = -(-length // block)
    reach = -(-(window_bytes - 1) // block)  # blocks before the own one
    if reach + 1 >= blocks:
        return None, 0  # as many keys as the dense mask has
    keys = (reach + 1) * block
    query_P = torch.arange(block, device=device)
    key_S = torch.arange(keys, device=device) - reach * block
    distance_PS = query_P[:, None] - key_S[None, :]
    near_PS = (distance_PS >= 0) & (distance_PS < window_bytes)
    first_N = torch.arange(blocks, device=device) * block
    real_NS = first_N[:, None] + key_S[None, :] >= 0
    # A padded query sees itself, padded too: its softmax stays finite and its result is cut off.
    visible = (near_PS[None] & real_NS[:, None, :]).unsqueeze(0)
    if documents_BT is not None:
        padded = F.pad(documents_BT, (0, blocks * block - length), value=-1).unflatten(1, (blocks, block))
        seen = _with_blocks_before(padded, reach)
        visible = visible & (padded[..., :, None] == seen[..., None, :])
    return visible, block


def _with_blocks_before(blocked: Tensor, reach: int, dim: int = 1) -> Tensor:
    """Join each block with the ``reach`` blocks before it (zeros where there are none): (…, N, P, …) → (…, N, S, …)."""
    shifted = []
    count = blocked.shape[dim]
    for distance in range(reach, -1, -1):
        kept = blocked.narrow(dim, 0, count - distance)
        before = torch.zeros_like(blocked.narrow(dim, 0, distance))
        shifted.append(torch.cat((before, kept), dim))
    return torch.cat(shifted, dim + 1)


def _attend_blocks(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, mask: Mask) -> Tensor:
    assert mask.visible is not None
    batch, heads, length, channels = query_BHTC.shape
    groups, block = key_BGTC.shape[1], mask.block
    blocks = mask.visible.shape[1]
    repeats, keys = heads // groups, mask.visible.shape[3]
    padding = (0, 0, 0, blocks * block - length)

    def blocked(states_BXTC: Tensor) -> Tensor:  # (B, X, T, C) → (B, N, X, P, C)
        return F.pad(states_BXTC, padding).unflatten(2, (blocks, block)).transpose(1, 2)

    reach = keys // block - 1
    # Blocks join the batch, and the query heads of a group join the rows: a key is read once for all of them.
    query = blocked(query_BHTC).reshape(batch * blocks, groups, repeats * block, channels)
    key = _gathered(blocked(key_BGTC), reach).flatten(0, 1)
    value = _gathered(blocked(value_BGTC), reach).flatten(0, 1)
    visible = mask.visible.expand(batch, -1, -1, -1).reshape(batch * blocks, 1, block, keys)
    visible = visible.repeat(1, 1, repeats, 1)
    mixed = F.scaled_dot_product_attention(query, key, value, visible)
    mixed = mixed.view(batch, blocks, heads, block, channels).transpose(1, 2)
    return mixed.reshape(batch, heads, blocks * block, channels)[:, :, :length]


def _gathered(blocked_BNGPC: Tensor, reach: int) -> Tensor:
    return _with_blocks_before(blocked_BNGPC.transpose(2, 3), reach).transpose(2, 3)
