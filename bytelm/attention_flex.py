"""Attention through FlexAttention: one fused kernel, compiled for the mask, that skips blocks nobody sees.

The backward pass exists on CUDA alone, and the kernel needs Triton. Which blocks are skipped is read off the first and
last document of each block, so that the cost of a mask grows with the number of blocks squared, not of bytes.

Shapes: B batch, T bytes, H attention heads, G key and value heads, C channels, N blocks of queries, M of keys.

Source:
    Dong et al. 2024, arXiv 2412.05496.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from bytelm.uncompiled import Uncompiled

BLOCK: Final = 128
"""Bytes of a block, which is what the kernel's own tiles divide."""


def obstacle(device: torch.device, channels: int) -> str | None:
    """Why this backend cannot train here, or None.

    Args:
        device: Of the model.
        channels: C of a head.
    """
    if device.type != "cuda":
        return f"FlexAttention has a backward pass on CUDA alone, and the device is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "FlexAttention compiles its kernel with Triton, which is not installed: pip install triton"
    if channels < 16:
        return f"FlexAttention needs 16 channels a head at least, and d_model / attention_heads is {channels}"
    return None


def prepare(
    length: int, window_bytes: int | None, documents_BT: Tensor | None, device: torch.device | str | None
) -> BlockMask:
    """Which blocks of keys each block of queries meets, and which pairs count within them.

    Args:
        length: Bytes T.
        window_bytes: Bytes that are seen, the present one included; None for all before.
        documents_BT: Number of the document of each byte, non-decreasing; None where each row is one document.
        device: Where the mask is needed.
    """
    if documents_BT is None:
        documents_BT = torch.zeros(1, length, dtype=torch.int32, device=device)

        def same_document(row: Tensor, query: Tensor, key: Tensor) -> Tensor | bool:  # noqa: ARG001
            return True
    else:
        packed_BT = documents_BT

        def same_document(row: Tensor, query: Tensor, key: Tensor) -> Tensor | bool:
            return packed_BT[row, query] == packed_BT[row, key]

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        seen = (key <= query) & same_document(row, query, key)
        return seen if window_bytes is None else seen & (query - key < window_bytes)

    some_BNM, all_BNM = _blocks(documents_BT, window_bytes)
    return BlockMask.from_kv_blocks(
        *_ordered(some_BNM & ~all_BNM), *_ordered(all_BNM), BLOCK, visible, seq_lengths=(length, length)
    )


@Uncompiled  # a kernel of its own: whoever compiles a layer compiles what is around it
def attend(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, prepared: BlockMask) -> Tensor:
    """Mixed values (B, H, T, C); see ``bytelm.attention.attend``."""
    return _compiled()(query_BHTC, key_BGTC, value_BGTC, block_mask=prepared, enable_gqa=True)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


def _blocks(documents_BT: Tensor, window_bytes: int | None) -> tuple[Tensor, Tensor]:
    """Blocks of which some pair counts, and of which all do: bool (B, N, M), [b, n, m] for queries n and keys m.

    Documents lie one after another, so that of two blocks the nearest pair decides whether some count, the farthest
    pair whether all do.
    """
    length = documents_BT.shape[1]
    first_N = torch.arange(0, length, BLOCK, device=documents_BT.device)
    last_N = (first_N + BLOCK - 1).clamp(max=length - 1)
    first_BN, last_BN = documents_BT[:, first_N], documents_BT[:, last_N]
    before_NM = first_N[:, None] > first_N[None, :]
    some_BNM = before_NM & (first_BN[:, :, None] == last_BN[:, None, :])
    all_BNM = before_NM & (last_BN[:, :, None] == first_BN[:, None, :])
    if window_bytes is not None:
        some_BNM &= first_N[:, None] - last_N[None, :] < window_bytes
        all_BNM &= last_N[:, None] - first_N[None, :] < window_bytes
    return some_BNM | torch.eye(len(first_N), dtype=torch.bool, device=documents_BT.device), all_BNM


def _ordered(wanted_BNM: Tensor) -> tuple[Tensor, Tensor]:
    """Number of wanted key blocks (B, 1, N), and their places first in (B, 1, N, M), as the kernel reads them."""
    wanted = wanted_BNM.unsqueeze(1).int()
    return wanted.sum(-1, dtype=torch.int32), wanted.argsort(dim=-1, descending=True, stable=True).int()
