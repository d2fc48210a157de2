"""The parts of a transformer layer, and what all layers of one pass share.

RMSNorm, rotary positions, grouped-query attention with QK-norm, SwiGLU, and the pre-norm block of them. No biases.
A block does not know whether it trains, reads a prompt or decodes: that is in the pass that it is given. A
``WindowPass`` attends to its own rows (and may leave their keys in a cache), a ``CachedPass`` to a cache's slots.

Norms and rotations are computed in float32 whatever the dtype of weights or autocast, or in float64 if that is it.

Shapes: B batch, T bytes of a pass (M where it is a decoding pass), D width, F inner width, H attention heads, G key
and value heads, R = H / G, C channels of a head, S slots.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.attention import Mask, attend, attend_cached
from bytelm.config import AttentionBackend, AttentionKind, ModelConfig
from bytelm.kv_cache import KVCache
from bytelm.ngram_rows import NOTHING, ids_before
from bytelm.uncompiled import Uncompiled


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary tables of a pass, ready to be multiplied with (B, T, heads, C).

    The second half of each head's channels is the partner of the first: channel c turns with c + C / 2.

    Attributes:
        cosine: (1 or B, T, 1, C) float32.
        sine: Same shape, the first half negated.

    Source:
        Su et al. 2021, arXiv 2104.09864, equation 34.
    """

    cosine: Tensor
    sine: Tensor

    def turn(self, states_BTHC: Tensor) -> Tensor:
        """Rotate queries or keys to their positions; float32 in, float32 out."""
        swapped = states_BTHC.roll(states_BTHC.shape[-1] // 2, -1)
        return torch.addcmul(states_BTHC * self.cosine, swapped, self.sine)


def rotary_tables(positions: Tensor, channels: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of positions.

    Args:
        positions: Integers of any shape (…).
        channels: C, even.
        base: Of the geometric sequence of wavelengths.

    Returns:
        Two float32 tensors of shape (…, C).
    """
    exponents = torch.arange(channels // 2, device=positions.device, dtype=torch.float64) / (channels // 2)
    # Angles in float64: position 100 000 in float32 would already be wrong in the fourth digit.
    angles = positions.double().unsqueeze(-1) * base**-exponents
    cosine, sine = angles.cos().float(), angles.sin().float()
    return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)


def document_positions(documents_BT: Tensor) -> Tensor:
    """Position of each byte in its own document.

    Args:
        documents_BT: Integers that change exactly where a document begins.

    Returns:
        int64 (B, T).

    Example:
        >>> document_positions(torch.tensor([[0, 0, 1, 1, 1]])).tolist()
        [[0, 1, 0, 1, 2]]
    """
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = F.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0), value=True)
    return index_T - (index_T * begins_BT).cummax(dim=1).values


class Pass(Protocol):
    """What the layers of one pass share: the positions of its rows, and what each row may attend to."""

    @property
    def rotary(self) -> Rotary:
        """Rotary tables of all rows."""
        ...

    def ids_before(self, inputs_BT: Tensor, count: int) -> Tensor:
        """The ids before each row, (P, B, T), or ``NOTHING``; those of the pass are left in the cache."""
        ...

    def remember(self, layer: int, key_BTGC: Tensor, value_BTGC: Tensor) -> None:
        """Leave keys and values in the cache, where there is one."""
        ...

    def attend(
        self,
        query_BTHC: Tensor,
        key_BTGC: Tensor,
        value_BTGC: Tensor,
        kind: AttentionKind,
        layer: int,
        row_B: Tensor | None,
    ) -> Tensor:
        """Remember keys and values of all rows; return the mixed values of the given queries, in their shape.

        Args:
            query_BTHC: Queries of all rows, or (B, 1, H, C) of those that ``row_B`` names.
            key_BTGC: Keys of all rows.
            value_BTGC: Values of all rows.
            kind: ``local`` or ``global``.
            layer: Place in the cache.
            row_B: One row of each sequence; None for all.
        """
        ...


@dataclass(frozen=True, slots=True)
class WindowPass:
    """A pass over whole windows: each row sees the rows before it, in its own document.

    Attributes:
        rotary: Positions, which restart at each document.
        masks: One for each kind of attention.
        cache: Takes the keys and values of the pass where given (a prompt that is read).
        sequence: Of the cache, that is filled.
        positions_BT: Of each row in its own document; None where each row of the batch is one document.
    """

    rotary: Rotary
    masks: dict[AttentionKind, Mask]
    cache: KVCache | None = None
    sequence: int = 0
    positions_BT: Tensor | None = None

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        states_BT: Tensor,
        documents_BT: Tensor | None,
        cache: KVCache | None = None,
        *,
        sequence: int = 0,
        backend: AttentionBackend = "torch",
    ) -> "WindowPass":
        """Prepare a pass.

        Args:
            config: Of the trunk.
            states_BT: Anything whose first dimensions are B, T, on the device of the pass.
            documents_BT: Number of the document of each byte; None where each row is one document.
            cache: To be filled from slot 0 on, by a pass over one row (B = 1).
            sequence: Of the cache, that is filled.
            backend: What computes attention where gradients are wanted. Other passes, whose lengths change from one
                to the next, take ``torch``.
        """
        if not torch.is_grad_enabled():
            backend = "torch"
        length, device = states_BT.shape[1], states_BT.device
        cosine_TC, sine_TC = rotary_tables(torch.arange(length, device=device), config.head_channels, config.rope_base)
        positions_BT = None if documents_BT is None else document_positions(documents_BT)
        if positions_BT is None:
            rotary = Rotary(cosine_TC.view(1, length, 1, -1), sine_TC.view(1, length, 1, -1))
        else:
            rotary = Rotary(cosine_TC[positions_BT.unsqueeze(2)], sine_TC[positions_BT.unsqueeze(2)])
        masks: dict[AttentionKind, Mask] = {
            kind: Mask.build(
                length,
                window_bytes=_window_bytes(config, kind),
                documents_BT=documents_BT,
                device=device,
                backend=backend,
            )
            for kind in set(config.attention_pattern)
        }
        return cls(rotary, masks, cache, sequence, positions_BT)

    def ids_before(self, inputs_BT: Tensor, count: int) -> Tensor:
        """See ``Pass``."""
        if self.cache is not None:
            self.cache.ids_BS[self.sequence, : inputs_BT.shape[1]] = inputs_BT[0]
        return ids_before(inputs_BT, count, self.positions_BT)

    def remember(self, layer: int, key_BTGC: Tensor, value_BTGC: Tensor) -> None:
        """See ``Pass``."""
        if self.cache is not None:
            key_GTC, value_GTC = key_BTGC[0].transpose(0, 1), value_BTGC[0].transpose(0, 1)
            self.cache.write_prompt(layer, self.sequence, key_GTC, value_GTC)

    def attend(
        self,
        query_BTHC: Tensor,
        key_BTGC: Tensor,
        value_BTGC: Tensor,
        kind: AttentionKind,
        layer: int,
        row_B: Tensor | None,
    ) -> Tensor:
        """See ``Pass``; all rows of a window are wanted."""
        assert row_B is None
        self.remember(layer, key_BTGC, value_BTGC)
        query_BHTC, key_BGTC, value_BGTC = (states.transpose(1, 2) for states in (query_BTHC, key_BTGC, value_BTGC))
        return attend(query_BHTC, key_BGTC, value_BGTC, self.masks[kind]).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class CachedPass:
    """A decoding pass over the first B sequences of a cache: M rows of each, behind its own length.

    A row sees all that is before it in its own sequence. A sequence that needs fewer rows than M is padded on the
    right: rows behind its real ones mean nothing, and what they write is overwritten by the next pass.

    Attributes:
        rotary: Of the rows' positions.
        cache: Read and written.
        slots_BM: Of each row; its position too.
        ranges: For each kind of attention: first slot that is read, slot behind the last, and what is added to the
            scores (B, R, M, S): 0 where a row sees a slot, else -inf.
    """

    rotary: Rotary
    cache: KVCache
    slots_BM: Tensor
    ranges: dict[AttentionKind, tuple[int, int, Tensor]]

    @classmethod
    def build(cls, config: ModelConfig, cache: KVCache, batch: int, rows: int, dtype: torch.dtype) -> "CachedPass":
        """Prepare a pass.

        Args:
            config: Of the trunk.
            cache: Whose first sequences have lengths below its capacity.
            batch: Sequences B.
            rows: Rows M of each, at most ``SLACK``.
            dtype: Of the queries.
        """
        lengths, device = cache.lengths[:batch], cache.cosine_SC.device
        slots_BM = torch.tensor(lengths, device=device).unsqueeze(1) + torch.arange(rows, device=device)
        rotary = Rotary(cache.cosine_SC[slots_BM].unsqueeze(2), cache.sine_SC[slots_BM].unsqueeze(2))
        end = -(-(max(lengths) + rows) // 16) * 16
        ranges: dict[AttentionKind, tuple[int, int, Tensor]] = {}
        for kind in set(config.attention_pattern):
            window_bytes = _window_bytes(config, kind)
            oldest = 0 if window_bytes is None else max(0, min(lengths) - window_bytes + 1)
            start = oldest // 16 * 16
            slot_S, position_BM1 = torch.arange(start, end, device=device), slots_BM.unsqueeze(2)
            hidden_BMS = slot_S > position_BM1
            if window_bytes is not None:
                hidden_BMS |= slot_S <= position_BM1 - window_bytes
            bias_BMS = torch.zeros(hidden_BMS.shape, dtype=dtype, device=device).masked_fill_(hidden_BMS, -torch.inf)
            repeats = config.attention_heads // config.kv_heads
            ranges[kind] = start, end, bias_BMS.unsqueeze(1).repeat(1, repeats, 1, 1)
        return cls(rotary, cache, slots_BM, ranges)

    def ids_before(self, inputs_BT: Tensor, count: int) -> Tensor:
        """See ``Pass``; before the rows of the pass are the ids of the cache."""
        sequence_B1 = torch.arange(len(inputs_BT), device=inputs_BT.device).unsqueeze(1)
        self.cache.ids_BS[sequence_B1, self.slots_BM] = inputs_BT
        distance_P11 = torch.arange(1, count + 1, device=inputs_BT.device).view(-1, 1, 1)
        slots_PBM = self.slots_BM - distance_P11
        return self.cache.ids_BS[sequence_B1, slots_PBM.clamp_min(0)].masked_fill_(slots_PBM < 0, NOTHING)

    def remember(self, layer: int, key_BTGC: Tensor, value_BTGC: Tensor) -> None:
        """See ``Pass``."""
        self.cache.write(layer, self.slots_BM, key_BTGC.transpose(1, 2), value_BTGC.transpose(1, 2))

    def attend(
        self,
        query_BTHC: Tensor,
        key_BTGC: Tensor,
        value_BTGC: Tensor,
        kind: AttentionKind,
        layer: int,
        row_B: Tensor | None,
    ) -> Tensor:
        """See ``Pass``."""
        self.remember(layer, key_BTGC, value_BTGC)
        start, end, bias_BRMS = self.ranges[kind]
        if row_B is not None:
            bias_BRMS = pick_rows(bias_BRMS.transpose(1, 2), row_B).transpose(1, 2)
        key_BGSC, value_BGSC = self.cache.read(layer, len(query_BTHC), start, end)
        return attend_cached(query_BTHC.transpose(1, 2), key_BGSC, value_BGSC, bias_BRMS).transpose(1, 2)


def pick_rows(states_BT: Tensor, row_B: Tensor | None) -> Tensor:
    """One row of each sequence, (B, 1, …); all of them where ``row_B`` is None.

    Example:
        >>> pick_rows(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([2, 0])).tolist()
        [[3], [4]]
    """
    if row_B is None:
        return states_BT
    return states_BT[torch.arange(len(row_B), device=row_B.device), row_B].unsqueeze(1)


class Linear(nn.Linear):
    """A matrix without bias, left uninitialised: the model draws all weights itself, from one generator."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw nothing; ``ByteLM.initialize`` does."""


class RMSNorm(nn.Module):
    """Divide by the root of the mean square, in float32 at least, and scale each channel.

    Source:
        Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.
    """

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.epsilon = epsilon

    def forward(self, states: Tensor) -> Tensor:
        """Normalise the last dimension; the result has the dtype of the input."""
        wide = _widened(states)
        return F.rms_norm(wide, wide.shape[-1:], self.gain.to(wide.dtype), self.epsilon).to(states.dtype)


class Attention(nn.Module):
    """Grouped-query attention with QK-norm and rotary positions; queries, keys and values in one matrix.

    Args:
        config: Of the trunk.
        kind: ``local`` or ``global``.
        layer: Place in the cache.

    Source:
        Grouped queries: Ainslie et al. 2023, arXiv 2305.13245. QK-norm: Henry et al. 2020, arXiv 2010.04245, here an
        RMS norm with a gain for each head and channel.
    """

    def __init__(self, config: ModelConfig, kind: AttentionKind, layer: int) -> None:
        super().__init__()
        self.kind: AttentionKind = kind
        self.layer = layer
        self.heads, self.kv_heads, self.channels = config.attention_heads, config.kv_heads, config.head_channels
        self.epsilon = config.norm_epsilon
        self.query_key_value = Linear(config.d_model, (self.heads + 2 * self.kv_heads) * self.channels)
        self.query_key_gain = nn.Parameter(torch.ones(self.heads + self.kv_heads, self.channels))
        self.output = Linear(config.d_model, config.d_model)

    def forward(self, normed_BTD: Tensor, shared: Pass, row_B: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            normed_BTD: All rows of the pass, normalised.
            shared: The pass.
            row_B: The row of each sequence whose result is wanted, None for all; keys and values are of all rows.

        Returns:
            (B, T or 1, D).
        """
        query_BTHC, key_BTGC, value_BTGC = self._project(normed_BTD, shared)
        return self.output(_attended(self, query_BTHC, key_BTGC, value_BTGC, shared, row_B).flatten(2))

    def remember(self, normed_BTD: Tensor, shared: Pass) -> None:
        """Leave keys and values in the cache of the pass, and attend to nothing."""
        _, key_BTGC, value_BTGC = self._project(normed_BTD, shared)
        shared.remember(self.layer, key_BTGC, value_BTGC)

    def _project(self, normed_BTD: Tensor, shared: Pass) -> tuple[Tensor, Tensor, Tensor]:
        projected = self.query_key_value(normed_BTD).unflatten(-1, (-1, self.channels))
        turned, value = projected.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        # Queries and keys are normalised and rotated together: half the calls, which are the cost of a small model.
        turned = F.rms_norm(_widened(turned), (self.channels,), None, self.epsilon)
        turned = turned * self.query_key_gain.to(turned.dtype)
        query, key = shared.rotary.turn(turned).to(value.dtype).split((self.heads, self.kv_heads), dim=2)
        return query, key, value


@Uncompiled
def _attended(
    layer: Attention, query_BTHC: Tensor, key_BTGC: Tensor, value_BTGC: Tensor, shared: Pass, row_B: Tensor | None
) -> Tensor:
    # Outside of programs, which would otherwise be made anew for each layer's number.
    return shared.attend(pick_rows(query_BTHC, row_B), key_BTGC, value_BTGC, layer.kind, layer.layer, row_B)


class SwiGLU(nn.Module):
    """Gated feed-forward layer: silu(gate) · up, then back to the width; gate and up in one matrix.

    Source:
        Shazeer 2020, arXiv 2002.05202, section 2.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_up = Linear(d_model, 2 * d_ff)
        self.output = Linear(d_ff, d_model)

    def forward(self, normed_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate, up = self.gate_up(normed_BTD).chunk(2, dim=-1)
        return self.output(F.silu(gate) * up)


class Block(nn.Module):
    """One transformer layer, pre-norm: attention and SwiGLU, each added to the residual stream.

    Args:
        config: Of the trunk.
        kind: Of its attention.
        layer: Place in the cache.
    """

    def __init__(self, config: ModelConfig, kind: AttentionKind, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_epsilon)
        self.attention = Attention(config, kind, layer)
        self.feed_forward_norm = RMSNorm(config.d_model, config.norm_epsilon)
        self.feed_forward = SwiGLU(config.d_model, config.d_ff)

    def forward(self, hidden_BTD: Tensor, shared: Pass, row_B: Tensor | None = None) -> Tensor:
        """Add this layer to the residual stream.

        Args:
            hidden_BTD: Residual stream of all rows of the pass.
            shared: The pass.
            row_B: The row of each sequence whose result is wanted; None for all.

        Returns:
            (B, T or 1, D).
        """
        attended = self.attention(self.attention_norm(hidden_BTD), shared, row_B)
        hidden_BTD = pick_rows(hidden_BTD, row_B) + attended
        return hidden_BTD + self.feed_forward(self.feed_forward_norm(hidden_BTD))

    def remember(self, hidden_BTD: Tensor, shared: Pass) -> None:
        """Leave keys and values in the cache of the pass, and compute nothing else."""
        self.attention.remember(self.attention_norm(hidden_BTD), shared)


def _window_bytes(config: ModelConfig, kind: AttentionKind) -> int | None:
    return config.local_window_ids if kind == "local" else None


def _widened(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))
