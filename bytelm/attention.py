"""Attention: one door, ``attend``, behind which the backends give the same numbers.

Who sees whom is a ``Mask``: causal, within a local window, within a document. It is made once for a pass, in the form
that its backend reads, and shared by all layers of a kind. ``reference`` is the specification: dense masks, float32,
the softmax written out. ``torch`` runs anywhere; ``flex`` and ``xformers`` train on NVIDIA GPUs.

Shapes: B batch, T bytes, H attention heads, G key and value heads, R = H / G, C channels, M rows, S keys.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm import attention_flex, attention_torch, attention_xformers
from bytelm.config import AttentionBackend, AttentionSetting
from bytelm.errors import ConfigError
from bytelm.masks import visible_dense


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys each query of a pass may see: byte s is seen from byte t where s <= t, t - s < window, same document.

    Attributes:
        length: Bytes T of the pass.
        window_bytes: Bytes that are seen, the present one included; None for all before.
        documents_BT: Number of the document of each byte, non-decreasing; None where each row is one document.
        backend: Which one is going to read it.
        prepared: The same in the form that this backend reads.
    """

    length: int
    window_bytes: int | None
    documents_BT: Tensor | None
    backend: AttentionBackend
    prepared: Any

    @classmethod
    def build(
        cls,
        length: int,
        *,
        window_bytes: int | None = None,
        documents_BT: Tensor | None = None,
        device: torch.device | str | None = None,
        backend: AttentionBackend = "torch",
    ) -> "Mask":
        """Prepare the mask of a pass.

        Args:
            length: Bytes T.
            window_bytes: Bytes that are seen, the present one included, at least 1; None for all before.
            documents_BT: Integers that rise exactly where a document begins; None where each row is one document.
            device: Where the mask is needed.
            backend: Which is going to read it; that it can run there is what ``choose_backend`` finds out.
        """
        if window_bytes is not None and window_bytes >= length:
            window_bytes = None  # nothing is that far away
        prepared = None
        if backend == "torch":
            prepared = attention_torch.prepare(length, window_bytes, documents_BT, device)
        elif backend == "flex":
            prepared = attention_flex.prepare(length, window_bytes, documents_BT, device)
        elif backend == "xformers":
            prepared = attention_xformers.prepare(window_bytes, documents_BT, device)
        return cls(length, window_bytes, documents_BT, backend, prepared)


def attend(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, mask: Mask) -> Tensor:
    """Causal attention of a pass over its own bytes, by the backend that the mask is made for.

    Args:
        query_BHTC: Queries, rotated and scaled as the model wants them; scores are divided by sqrt(C).
        key_BGTC: Keys; query head h reads key head h // (H / G).
        value_BGTC: Values.
        mask: Who sees whom, for this T.

    Returns:
        Mixed values of shape (B, H, T, C), in the dtype of the values.
    """
    match mask.backend:
        case "torch":
            return attention_torch.attend(query_BHTC, key_BGTC, value_BGTC, mask.prepared)
        case "flex":
            return attention_flex.attend(query_BHTC, key_BGTC, value_BGTC, mask.prepared)
        case "xformers":
            return attention_xformers.attend(query_BHTC, key_BGTC, value_BGTC, mask.prepared)
        case "reference":
            return _attend_reference(query_BHTC, key_BGTC, value_BGTC, mask)


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend, and why it is this one: half a sentence for people."""

    backend: AttentionBackend
    reason: str


def choose_backend(
    setting: AttentionSetting, device: torch.device, *, dtype: torch.dtype, channels: int
) -> BackendChoice:
    """What trains on a device: ``auto`` takes the fastest that can, a name is that backend or an error.

    Passes without gradients, whose lengths change from one to the next, are the business of ``torch`` everywhere.

    Args:
        setting: As in the settings.
        device: Of the model.
        dtype: Of queries, keys and values: bfloat16 under autocast.
        channels: Of an attention head.

    Raises:
        ConfigError: The backend that is asked for cannot run here; with the reason.
    """
    obstacles = {
        "flex": attention_flex.obstacle(device, channels),
        "xformers": attention_xformers.obstacle(device, dtype, channels),
    }
    if setting != "auto":
        if obstacle := obstacles.get(setting):
            raise ConfigError(f"train.attention_backend = {setting} cannot run here: {obstacle}; use auto or torch")
        return BackendChoice(setting, "as set")
    if obstacles["flex"] is None:
        return BackendChoice("flex", "compiled for the mask of packed documents and windows")
    if obstacles["xformers"] is None:
        return BackendChoice("xformers", obstacles["flex"])
    if device.type == "cpu":
        return BackendChoice("torch", "blocks of a window and documents one by one; the others train on CUDA alone")
    return BackendChoice("torch", f"{obstacles['flex']}; {obstacles['xformers']}")


def attend_cached(query_BHMC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor, bias_BRMS: Tensor) -> Tensor:
    """Attention of a few rows over cached keys.

    The queries of a group are folded into the rows of one product, so that a key is read once for all of them.

    Args:
        query_BHMC: Queries of M rows of each sequence.
        key_BGSC: Cached keys.
        value_BGSC: Cached values.
        bias_BRMS: Added to the scores: 0 where row m sees slot s, -inf elsewhere, the same for each of the R; each row
            sees one slot at least.

    Returns:
        Mixed values of shape (B, H, M, C).
    """
    folded = query_BHMC.unflatten(1, (key_BGSC.shape[1], -1)).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(folded, key_BGSC, value_BGSC, bias_BRMS.flatten(1, 2).unsqueeze(1))
    return mixed.reshape(query_BHMC.shape)  # not every kernel's result lies as the queries do


def _attend_reference(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, mask: Mask) -> Tensor:
    with torch.autocast(query_BHTC.device.type, enabled=False):
        repeats = query_BHTC.shape[1] // key_BGTC.shape[1]
        key_BHTC, value_BHTC = (states.float().repeat_interleave(repeats, 1) for states in (key_BGTC, value_BGTC))
        scores_BHTT = query_BHTC.float() @ key_BHTC.mT / math.sqrt(query_BHTC.shape[-1])
        visible_BTT = visible_dense(
            mask.length, window_bytes=mask.window_bytes, documents_BT=mask.documents_BT, device=query_BHTC.device
        )
        scores_BHTT = scores_BHTT.masked_fill(~visible_BTT.unsqueeze(1), -math.inf)
        return (scores_BHTT.softmax(dim=-1) @ value_BHTC).to(value_BGTC.dtype)
