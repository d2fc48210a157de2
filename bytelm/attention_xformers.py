"""Attention through xformers: packed documents as one long row with a block-diagonal mask, on NVIDIA GPUs.

Shapes: B batch, T bytes, H attention heads, G key and value heads, C channels.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bytelm.masks import document_lengths
from bytelm.uncompiled import Uncompiled


@dataclass(frozen=True, slots=True)
class Prepared:
    """A mask of xformers.

    Attributes:
        bias: One of its ``attn_bias`` classes.
        packed: Whether it is a mask over all rows of the batch put one after another.
    """

    bias: Any
    packed: bool


def obstacle(device: torch.device, dtype: torch.dtype, channels: int) -> str | None:
    """Why this backend cannot train here, or None.

    Args:
        device: Of the model.
        dtype: Of queries, keys and values.
        channels: C of a head.
    """
    if device.type != "cuda":
        return f"xformers has attention kernels for CUDA alone, and the device is {device.type}"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed: pip install 'bytelm[xformers]'"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels of xformers for packed documents need an Ampere GPU or a newer one"
    if dtype not in (torch.bfloat16, torch.float16):
        return "the kernels of xformers for packed documents take bfloat16; set train.precision = bfloat16"
    if channels % 8 or channels > 256:
        return (
            f"xformers needs a multiple of 8 channels a head, 256 at most, and d_model / attention_heads is {channels}"
        )
    return None


def prepare(window_bytes: int | None, documents_BT: Tensor | None, device: torch.device | str | None) -> Prepared:
    """The mask in the classes of xformers.

    Args:
        window_bytes: Bytes that are seen, the present one included; None for all before.
        documents_BT: Number of the document of each byte, non-decreasing; None where each row is one document.
        device: Where the mask is needed.
    """
    from xformers.ops.fmha import attn_bias

    if documents_BT is None:
        if window_bytes is None:
            return Prepared(attn_bias.LowerTriangularMask(), packed=False)
        return Prepared(attn_bias.LowerTriangularFromBottomRightLocalAttentionMask(window_bytes), packed=False)
    device = None if device is None else torch.device(device)
    bias = attn_bias.BlockDiagonalCausalMask.from_seqlens(document_lengths(documents_BT), device=device)
    return Prepared(bias if window_bytes is None else bias.make_local_attention(window_bytes), packed=True)


@Uncompiled  # a kernel of its own: whoever compiles a layer compiles what is around it
def attend(
    query_BHTC: Tensor,
    key_BGTC: Tensor,
    value_BGTC: Tensor,
    prepared: Prepared,
    kernel: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Mixed values (B, H, T, C); see ``bytelm.attention.attend``.

    Args:
        query_BHTC: Queries.
        key_BGTC: Keys.
        value_BGTC: Values.
        prepared: The mask.
        kernel: Takes the place of ``memory_efficient_attention``: (1 or B, T, H, C) each, and the mask.
    """
    batch, heads, length, _ = query_BHTC.shape
    repeats = heads // key_BGTC.shape[1]  # repeated here: in training, the kernels know no groups
    rows = [query_BHTC, key_BGTC.repeat_interleave(repeats, 1), value_BGTC.repeat_interleave(repeats, 1)]
    rows = [states.transpose(1, 2) for states in rows]
    if prepared.packed:
        rows = [states.flatten(0, 1).unsqueeze(0) for states in rows]
    mixed = (kernel or _kernel())(*rows, prepared.bias)
    return mixed.reshape(batch, length, heads, -1).transpose(1, 2)


@functools.cache
def _kernel() -> Callable[..., Tensor]:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention
