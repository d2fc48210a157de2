"""The parts of a transformer layer, and what all layers of one pass share.

RMSNorm, rotary positions, grouped-query attention with QK-norm, SwiGLU, and the pre-norm block of them. No biases.
A block does not know whether it trains, reads a prompt or decodes: that is in the pass that it is given. A
``WindowPass`` attends to its own rows (and may leave their keys in a cache), a ``CachedPass`` to a cache's slots.

Norms, rotations and softmax are computed in float32 whatever the dtype of weights or autocast.

Shapes: B batch, T bytes of a pass (M where it is a decoding pass), D width, F inner width, H attention heads, G key
and value heads, R = H / G, C channels of a head, S slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.attention import Mask, attend, attend_range
from bytelm.config import AttentionBackend, AttentionKind, ModelConfig
from bytelm.kv_cache import BUCKET, KVCache, key_range
from bytelm.ngram_rows import NOTHING, ids_before
from bytelm.packed import Packed, pack
from bytelm.uncompiled import Uncompiled

ALL_ROWS = slice(None)
Rows = slice | list[int]
"""Some rows of a pass: all, or ascending numbers."""


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
        self, query_BTHC: Tensor, key_BTGC: Tensor, value_BTGC: Tensor, kind: AttentionKind, layer: int, rows: Rows
    ) -> Tensor:
        """Remember keys and values of all rows; return the mixed values (B, rows, H, C) of the queries of ``rows``."""
        ...


@dataclass(frozen=True, slots=True)
class WindowPass:
    """A pass over whole windows: each row sees the rows before it, in its own document.

    Attributes:
        rotary: Positions, which restart at each document.
        masks: One for each kind of attention.
        cache: Takes the keys and values of the pass where given (a prompt that is read).
        positions_BT: Of each row in its own document; None where each row of the batch is one document.
    """

    rotary: Rotary
    masks: dict[AttentionKind, Mask]
    cache: KVCache | None = None
    positions_BT: Tensor | None = None

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        states_BT: Tensor,
        documents_BT: Tensor | None,
        cache: KVCache | None = None,
        *,
        backend: AttentionBackend = "torch",
    ) -> "WindowPass":
        """Prepare a pass.

        Args:
            config: Of the trunk.
            states_BT: Anything whose first dimensions are B, T, on the device of the pass.
            documents_BT: Number of the document of each byte; None where each row is one document.
            cache: Empty, to be filled.
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
        return cls(rotary, masks, cache, positions_BT)

    def ids_before(self, inputs_BT: Tensor, count: int) -> Tensor:
        """See ``Pass``."""
        if self.cache is not None:
            self.cache.ids_BS[:, : inputs_BT.shape[1]] = inputs_BT
        return ids_before(inputs_BT, count, self.positions_BT)

    def remember(self, layer: int, key_BTGC: Tensor, value_BTGC: Tensor) -> None:
        """See ``Pass``."""
        if self.cache is not None:
            self.cache.write(layer, key_BTGC.transpose(1, 2), value_BTGC.transpose(1, 2))

    def attend(
        self, query_BTHC: Tensor, key_BTGC: Tensor, value_BTGC: Tensor, kind: AttentionKind, layer: int, rows: Rows
    ) -> Tensor:
        """See ``Pass``; all rows of a window are wanted."""
        assert rows == ALL_ROWS
        self.remember(layer, key_BTGC, value_BTGC)
        query_BHTC, key_BGTC, value_BGTC = (states.transpose(1, 2) for states in (query_BTHC, key_BTGC, value_BTGC))
        return attend(query_BHTC, key_BGTC, value_BGTC, self.masks[kind]).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class CachedPass:
    """A decoding pass of one sequence: its rows take the slots behind the cache's length and see all that is before.

    Rows are a chain, one byte after the other, or a tree: each row then continues another row of the pass, and sees
    the slots of the path to itself.

    Attributes:
        rotary: Of the rows' positions.
        cache: Read and written.
        ranges: For each kind of attention: first slot, slot behind the last, and the bias (R, M, S) of that range.
        parents: Of a tree, as ``build`` takes them; None for a chain.
    """

    rotary: Rotary
    cache: KVCache
    ranges: dict[AttentionKind, tuple[int, int, Tensor]]
    parents: Sequence[int] | None = None

    @classmethod
    def build(
        cls, config: ModelConfig, cache: KVCache, rows: int, dtype: torch.dtype, parents: Sequence[int] | None = None
    ) -> "CachedPass":
        """Prepare a pass of M rows behind the cache's length.

        All rows read the key range of the first row's position. Rows behind its bucket are padding: they see what
        the last position of the bucket would, so that they are finite, and mean nothing.

        Args:
            config: Of the trunk.
            cache: With ``length`` below its capacity.
            rows: M, at most a bucket.
            dtype: Of the queries.
            parents: For each row the row that it continues, -1 for the first; a chain where None. Row m takes slot
                ``length + m`` wherever it stands in the tree; its position is that of its depth.
        """
        first = cache.length
        branches = None if parents is None else _Branches.of(parents)
        turns = cache.cosine_SC[first : first + rows], cache.sine_SC[first : first + rows]
        if branches is not None:
            depth_M = torch.from_numpy(branches.depth_M).to(turns[0].device)
            turns = turns[0][depth_M], turns[1][depth_M]
        rotary = Rotary(turns[0].view(1, rows, 1, -1), turns[1].view(1, rows, 1, -1))
        repeats = config.attention_heads // config.kv_heads
        ranges: dict[AttentionKind, tuple[int, int, Tensor]] = {}
        for kind in set(config.attention_pattern):
            window_bytes = _window_bytes(config, kind)
            start, end, bias_PS = _bias_of_bucket(cache, first, window_bytes, dtype)
            place = first % BUCKET
            bias_MS = bias_PS[place : place + rows]
            if branches is not None:
                bias_MS = branches.bias(bias_MS, first - start, window_bytes)
            ranges[kind] = (start, end, bias_MS.repeat(repeats, 1, 1))
        return cls(rotary, cache, ranges, parents)

    def ids_before(self, inputs_BT: Tensor, count: int) -> Tensor:
        """See ``Pass``; before the rows of the pass are the ids of the cache."""
        first, rows = self.cache.length, inputs_BT.shape[1]
        self.cache.ids_BS[:, first : first + rows] = inputs_BT
        slots_PM = _slots_before(first, self.parents or range(-1, rows - 1), count)
        places_PM = torch.from_numpy(np.maximum(slots_PM, 0)).to(inputs_BT.device)
        before_BPM = self.cache.ids_BS[:, places_PM]
        if first < count:
            before_BPM.masked_fill_(torch.from_numpy(slots_PM < 0).to(inputs_BT.device), NOTHING)
        return before_BPM.transpose(0, 1)

    def remember(self, layer: int, key_BTGC: Tensor, value_BTGC: Tensor) -> None:
        """See ``Pass``."""
        self.cache.write(layer, key_BTGC.transpose(1, 2), value_BTGC.transpose(1, 2))

    def attend(
        self, query_BTHC: Tensor, key_BTGC: Tensor, value_BTGC: Tensor, kind: AttentionKind, layer: int, rows: Rows
    ) -> Tensor:
        """See ``Pass``."""
        self.remember(layer, key_BTGC, value_BTGC)
        start, end, bias_RMS = self.ranges[kind]
        key_BGSC, value_BGSC = self.cache.read(layer, start, end)
        return attend_range(query_BTHC.transpose(1, 2), key_BGSC, value_BGSC, bias_RMS[:, rows]).transpose(1, 2)


def _slots_before(first: int, parents: Sequence[int], count: int) -> np.ndarray:
    """Slots of the ids before each row of a pass, nearest first; below 0 where there is none.

    Args:
        first: Slot of row 0.
        parents: For each row the row that it continues, -1 for the first.
        count: P.

    Returns:
        int64 (P, M).

    Example:
        >>> _slots_before(5, [-1, 0, 0], 2).tolist()
        [[4, 5, 5], [3, 4, 4]]
    """
    if isinstance(parents, range):  # a chain
        return np.arange(first, first + len(parents)) - np.arange(1, count + 1)[:, None]
    slots_PM = np.empty((count, len(parents)), np.int64)
    for row, parent in enumerate(parents):
        if parent < 0:
            slots_PM[:, row] = np.arange(first - 1, first - 1 - count, -1)
        else:
            slots_PM[0, row] = first + parent
            slots_PM[1:, row] = slots_PM[:-1, parent]
    return slots_PM


def _bias_of_bucket(
    cache: KVCache, position: int, window_bytes: int | None, dtype: torch.dtype
) -> tuple[int, int, Tensor]:
    """Key range of a position and, for each position of its bucket, what is added to scores: 0 or -inf, (P, S).

    Made once a bucket and kept with the cache. Behind the bucket come rows like its last, for the padding of a pass.
    """
    bucket = position // BUCKET
    kept = cache.bias_of_window.get(window_bytes)
    if kept is not None and kept[0] == bucket and kept[3].dtype == dtype:
        return kept[1:]
    start, end = key_range(position, window_bytes)
    device = cache.cosine_SC.device
    position_P1 = torch.arange(end - BUCKET, end + BUCKET, device=device).clamp_(max=end - 1).unsqueeze(1)
    slot_S = torch.arange(start, end, device=device)
    hidden_PS = slot_S > position_P1
    if window_bytes is not None:
        hidden_PS |= slot_S <= position_P1 - window_bytes
    bias_PS = torch.zeros(hidden_PS.shape, dtype=dtype, device=device).masked_fill_(hidden_PS, -torch.inf)
    cache.bias_of_window[window_bytes] = (bucket, start, end, bias_PS)
    return start, end, bias_PS


@dataclass(frozen=True, slots=True)
class _Branches:
    """A pass whose rows are a tree.

    Attributes:
        depth_M: Of each row, int64; 0 for the first.
        path_MM: Bool: row m sees row n, an ancestor of it or itself.
    """

    depth_M: np.ndarray
    path_MM: np.ndarray

    @classmethod
    def of(cls, parents: Sequence[int]) -> "_Branches":
        rows = len(parents)
        depth_M, path_MM = np.zeros(rows, np.int64), np.eye(rows, dtype=bool)
        for row, parent in enumerate(parents):
            assert parent < row, "a row of a tree continues a row before it"
            if parent >= 0:
                depth_M[row] = depth_M[parent] + 1
                path_MM[row] |= path_MM[parent]
        return cls(depth_M, path_MM)

    def bias(self, bias_MS: Tensor, first: int, window_bytes: int | None) -> Tensor:
        """The bias of a tree from that of a chain: what a row sees of the cache is a matter of its depth.

        Args:
            bias_MS: Of the chain's positions.
            first: Column of the first row's slot.
            window_bytes: Bytes that are seen; None for all.
        """
        visible_MM = self.path_MM
        if window_bytes is not None:
            visible_MM = visible_MM & (self.depth_M[:, None] - self.depth_M[None, :] < window_bytes)
        tail_MM = torch.from_numpy(np.where(visible_MM, np.float32(0), np.float32(-np.inf)))
        bias_MS = bias_MS[torch.from_numpy(self.depth_M).to(bias_MS.device)]
        columns = bias_MS.shape[1] - first
        bias_MS[:, first : first + len(tail_MM)] = tail_MM[:, :columns].to(bias_MS)
        return bias_MS


@dataclass(frozen=True, slots=True)
class JoinedPass:
    """Passes of several sequences side by side: their rows are one batch for the matrices, each attends to its own.

    Attributes:
        rotary: Of all rows.
        parts: Pass of each sequence, with its first row and the row behind its last.
    """

    rotary: Rotary
    parts: list[tuple[CachedPass, int, int]]

    @classmethod
    def build(cls, passes: Sequence[CachedPass]) -> "JoinedPass":
        """Put passes side by side, in this order."""
        ends = np.cumsum([one.rotary.cosine.shape[1] for one in passes]).tolist()
        rotary = Rotary(
            torch.cat([one.rotary.cosine for one in passes], 1), torch.cat([one.rotary.sine for one in passes], 1)
        )
        return cls(rotary, list(zip(passes, [0, *ends], ends, strict=False)))

    def ids_before(self, inputs_BT: Tensor, count: int) -> Tensor:
        """See ``Pass``."""
        return torch.cat([one.ids_before(inputs_BT[:, start:end], count) for one, start, end in self.parts], 2)

    def remember(self, layer: int, key_BTGC: Tensor, value_BTGC: Tensor) -> None:
        """See ``Pass``."""
        for one, start, end in self.parts:
            one.remember(layer, key_BTGC[:, start:end], value_BTGC[:, start:end])

    def attend(
        self, query_BTHC: Tensor, key_BTGC: Tensor, value_BTGC: Tensor, kind: AttentionKind, layer: int, rows: Rows
    ) -> Tensor:
        """See ``Pass``; ``rows`` count through all sequences."""
        mixed, done = [], 0
        for one, start, end in self.parts:
            own: Rows = ALL_ROWS
            count = end - start
            if isinstance(rows, list):
                own = [row - start for row in rows if start <= row < end]
                count = len(own)
            query = query_BTHC[:, done : done + count]
            done += count
            if count:
                mixed.append(one.attend(query, key_BTGC[:, start:end], value_BTGC[:, start:end], kind, layer, own))
            else:
                one.remember(layer, key_BTGC[:, start:end], value_BTGC[:, start:end])
        return torch.cat(mixed, 1)


class Linear(nn.Linear):
    """A matrix without bias, left uninitialised: the model draws all weights itself, from one generator.

    Attributes:
        packed: The weights in the layout of the CPU's matrix kernel, or None; see ``bytelm.packed``.
    """

    packed: Packed | None = None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        packed = self.packed
        if packed is not None and input.dtype == packed.dtype and not torch.is_grad_enabled():
            return packed.product(input)
        return F.linear(input, self.weight)

    def pack(self, *, int8: bool = False) -> None:
        """Keep a packed copy for passes without gradients; weights that change after this need it again."""
        self.packed = pack(self.weight, int8=int8)

    def reset_parameters(self) -> None:
        """Draw nothing; ``ByteLM.initialize`` does."""


class RMSNorm(nn.Module):
    """Divide by the root of the mean square, in float32, and scale each channel.

    Source:
        Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.
    """

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.epsilon = epsilon

    def forward(self, states: Tensor) -> Tensor:
        """Normalise the last dimension; the result has the dtype of the input."""
        wide = states.float()
        return F.rms_norm(wide, wide.shape[-1:], self.gain.float(), self.epsilon).to(states.dtype)


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

    def forward(self, normed_BTD: Tensor, shared: Pass, rows: Rows = ALL_ROWS) -> Tensor:
        """Attend.

        Args:
            normed_BTD: All rows of the pass, normalised.
            shared: The pass.
            rows: Rows whose result is wanted; keys and values are of all rows.

        Returns:
            (B, rows, D).
        """
        query_BTHC, key_BTGC, value_BTGC = self._project(normed_BTD, shared)
        return self.output(_attended(self, query_BTHC, key_BTGC, value_BTGC, shared, rows).flatten(2))

    def remember(self, normed_BTD: Tensor, shared: Pass) -> None:
        """Leave keys and values in the cache of the pass, and attend to nothing."""
        _, key_BTGC, value_BTGC = self._project(normed_BTD, shared)
        shared.remember(self.layer, key_BTGC, value_BTGC)

    def _project(self, normed_BTD: Tensor, shared: Pass) -> tuple[Tensor, Tensor, Tensor]:
        projected = self.query_key_value(normed_BTD).unflatten(-1, (-1, self.channels))
        turned, value = projected.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        # Queries and keys are normalised and rotated together: half the calls, which are the cost of a small model.
        turned = F.rms_norm(turned.float(), (self.channels,), None, self.epsilon) * self.query_key_gain.float()
        query, key = shared.rotary.turn(turned).to(value.dtype).split((self.heads, self.kv_heads), dim=2)
        return query, key, value


@Uncompiled
def _attended(
    layer: Attention, query_BTHC: Tensor, key_BTGC: Tensor, value_BTGC: Tensor, shared: Pass, rows: Rows
) -> Tensor:
    # Outside of programs, which would otherwise be made anew for each layer's number.
    return shared.attend(query_BTHC[:, rows], key_BTGC, value_BTGC, layer.kind, layer.layer, rows)


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

    def forward(self, hidden_BTD: Tensor, shared: Pass, rows: Rows = ALL_ROWS) -> Tensor:
        """Add this layer to the residual stream.

        Args:
            hidden_BTD: Residual stream of all rows of the pass.
            shared: The pass.
            rows: Rows whose result is wanted.

        Returns:
            (B, rows, D).
        """
        attended = self.attention(self.attention_norm(hidden_BTD), shared, rows)
        hidden_BTD = hidden_BTD[:, rows] + attended
        return hidden_BTD + self.feed_forward(self.feed_forward_norm(hidden_BTD))

    def remember(self, hidden_BTD: Tensor, shared: Pass) -> None:
        """Leave keys and values in the cache of the pass, and compute nothing else."""
        self.attention.remember(self.attention_norm(hidden_BTD), shared)


def _window_bytes(config: ModelConfig, kind: AttentionKind) -> int | None:
    return config.local_window_ids if kind == "local" else None
