"""Attention with PyTorch's own kernels, on any device: no mask is larger than the window is long.

- A global layer of undivided windows is the kernel's own causal case.
- A global layer of packed documents is cut where documents begin: each is a causal case of its own, which computes
  nothing that is then masked, and neighbours that are short together share a small mask.
- A local layer takes blocks of queries against the few keys that they can see, so that the cost grows with the length
  and not with its square.

Shapes: B batch, T bytes, H attention heads, G key and value heads, C channels, P bytes of a piece.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm.attention_blocks import Blocks, attend_blocks, blocks_of_window
from bytelm.masks import document_lengths, visible_dense
from bytelm.uncompiled import Uncompiled

_SHORT: Final = 256  # bytes of neighbouring documents that share a mask, at most
_DENSE: Final = 256  # windows up to here are one call with a mask: cutting them would cost more than it saves


@dataclass(frozen=True, slots=True)
class Causal:
    """Nothing but the order of the bytes counts."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A mask written out, for windows that are short or hardly longer than the layer's own.

    Attributes:
        visible_BTT: Bool, True = seen; B may be 1.
    """

    visible_BTT: Tensor


@dataclass(frozen=True, slots=True)
class Pieces:
    """The rows of a batch, one after another, cut where a document begins.

    Attributes:
        lengths: Bytes of each piece; their sum is B · T.
        visible: For a piece of several short documents its mask (P, P); None for a piece that is one document.
    """

    lengths: list[int]
    visible: list[Tensor | None]


Prepared = Causal | Dense | Blocks | Pieces


def prepare(
    length: int, window_bytes: int | None, documents_BT: Tensor | None, device: torch.device | str | None
) -> Prepared:
    """Choose the form of a pass; arguments as of ``visible_dense``, the window shorter than the pass or None."""
    if window_bytes is None and documents_BT is None:
        return Causal()
    if documents_BT is not None and length > _DENSE:
        lengths = document_lengths(documents_BT)
        if window_bytes is None or max(lengths) <= window_bytes:
            return _pieces(lengths, device)
    blocks = blocks_of_window(length, window_bytes, documents_BT, device) if window_bytes is not None else None
    if blocks is not None:
        return blocks
    return Dense(visible_dense(length, window_bytes=window_bytes, documents_BT=documents_BT, device=device))


def attend(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, prepared: Prepared) -> Tensor:
    """Mixed values (B, H, T, C); see ``bytelm.attention.attend``."""
    match prepared:
        case Causal():
            return F.scaled_dot_product_attention(query_BHTC, key_BGTC, value_BGTC, is_causal=True, enable_gqa=True)
        case Dense(visible_BTT):
            return _masked(query_BHTC, key_BGTC, value_BGTC, visible_BTT.unsqueeze(1))
        case Pieces():
            return _attend_pieces(query_BHTC, key_BGTC, value_BGTC, prepared)
        case Blocks():
            return attend_blocks(query_BHTC, key_BGTC, value_BGTC, prepared)


def _masked(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, visible: Tensor) -> Tensor:
    # Repeated here: of PyTorch's fused kernels, those that take a mask do not all know groups.
    repeats = query_BHTC.shape[1] // key_BGTC.shape[1]
    key_BHTC, value_BHTC = (states.repeat_interleave(repeats, dim=1) for states in (key_BGTC, value_BGTC))
    return F.scaled_dot_product_attention(query_BHTC, key_BHTC, value_BHTC, visible)


# Packed documents, global


def _pieces(lengths: Iterable[int], device: torch.device | str | None) -> Pieces:
    """Documents as pieces, neighbours that are short together as one.

    Two neighbouring pieces are longer than ``_SHORT`` together, so that there are at most 2 · B · T / ``_SHORT`` and
    one, whatever the documents.
    """
    groups: list[list[int]] = []
    room = 0
    for length in lengths:
        if length <= room:
            groups[-1].append(length)
            room -= length
        else:
            groups.append([length])
            room = _SHORT - length
    return Pieces([sum(group) for group in groups], [_visible_in_group(group, device) for group in groups])


def _visible_in_group(lengths: list[int], device: torch.device | str | None) -> Tensor | None:
    if len(lengths) == 1:
        return None
    documents_P = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return visible_dense(len(documents_P), documents_BT=documents_P.unsqueeze(0))[0].to(device)


@Uncompiled  # the lengths change with every batch: compiled, each would be a new program
def _attend_pieces(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, pieces: Pieces) -> Tensor:
    batch = query_BHTC.shape[0]
    # Split, not sliced: the gradients of all pieces are then put side by side once.
    queries, keys, values = (
        states.transpose(1, 2).flatten(0, 1).split(pieces.lengths) for states in (query_BHTC, key_BGTC, value_BGTC)
    )
    mixed = []
    for *piece, visible in zip(queries, keys, values, pieces.visible, strict=True):
        query, key, value = (states.transpose(0, 1).unsqueeze(0) for states in piece)
        if visible is None:
            done = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            done = _masked(query, key, value, visible)
        mixed.append(done.squeeze(0).transpose(0, 1))
    return torch.cat(mixed).unflatten(0, (batch, -1)).transpose(1, 2)
