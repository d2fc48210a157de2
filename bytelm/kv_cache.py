"""Keys and values of the bytes read so far, of several sequences side by side, in slots allocated once.

A slot is a position: the key of byte p of a sequence lies in slot p, rotated for position p. Each sequence has its own
length: so many slots are filled and real. A decoding pass writes its rows behind them and leaves the lengths alone;
whoever accepts rows advances them. What lies behind a length is overwritten by the next pass. Nothing is ever cleared.

Shapes: L layers, B sequences, G key and value heads, S slots, M rows of a pass, C channels of a head.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

SLACK: Final = 64
"""Slots behind the capacity, and most rows of a decoding pass: rejected and padding rows need a place too."""


class KVCache:
    """Keys, values and rotary tables of a model's attention layers.

    Slots are filled with zeros at first, so that a masked slot is always finite.

    Args:
        layers: Attention layers L, those of transformer heads included.
        batch: Sequences B.
        kv_heads: G.
        capacity: Bytes of a sequence that may be kept.
        cosine_SC: Rotary cosines of every slot, ``slots_for(capacity)`` rows.
        sine_SC: Rotary sines, same shape.
        dtype: Of keys and values.

    Attributes:
        lengths: Of each sequence, from 0 to ``capacity``.
        capacity, cosine_SC, sine_SC: As given.
        ids_BS: The id of each slot, where the model looks at ids before the present one.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        cosine_SC: Tensor,
        sine_SC: Tensor,
        dtype: torch.dtype,
    ) -> None:
        assert capacity >= 1
        slots, channels = slots_for(capacity), cosine_SC.shape[1]
        assert cosine_SC.shape[0] == slots
        device = cosine_SC.device
        self.capacity = capacity
        self.lengths = [0] * batch
        self.cosine_SC = cosine_SC
        self.sine_SC = sine_SC
        self.ids_BS = torch.zeros(batch, slots, dtype=torch.int64, device=device)
        shape = (layers, batch, kv_heads, slots, channels)
        self._keys_LBGSC = torch.zeros(shape, dtype=dtype, device=device)
        self._values_LBGSC = torch.zeros(shape, dtype=dtype, device=device)

    def extend(self, sequence: int, count: int) -> None:
        """Make the next slots of a sequence real."""
        assert 0 <= count <= self.capacity - self.lengths[sequence], "rows were accepted beyond the capacity"
        self.lengths[sequence] += count

    def advance(self, counts: Sequence[int]) -> None:
        """Accept rows of a pass: so many of each of its sequences."""
        for sequence, count in enumerate(counts):
            self.extend(sequence, count)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the slots of a sequence from ``length`` on."""
        assert 0 <= length <= self.lengths[sequence], "a sequence is truncated to a length that it does not have"
        self.lengths[sequence] = length

    def move(self, source: int, target: int) -> None:
        """Put one sequence into the place of another, which is forgotten."""
        if source != target:
            for states in (self._keys_LBGSC, self._values_LBGSC):
                states[:, target] = states[:, source]
            self.ids_BS[target] = self.ids_BS[source]
            self.lengths[target] = self.lengths[source]

    def write(self, layer: int, slots_BM: Tensor, keys_BGMC: Tensor, values_BGMC: Tensor) -> None:
        """Put the keys and values of a pass over the first B sequences into slots; lengths stay."""
        sequence_B1 = torch.arange(len(slots_BM), device=slots_BM.device).unsqueeze(1)
        for states_BGSC, rows_BGMC in ((self._keys_LBGSC[layer], keys_BGMC), (self._values_LBGSC[layer], values_BGMC)):
            states_BGSC.transpose(1, 2)[sequence_B1, slots_BM] = rows_BGMC.transpose(1, 2).to(states_BGSC.dtype)

    def write_prompt(self, layer: int, sequence: int, keys_GTC: Tensor, values_GTC: Tensor) -> None:
        """Put the keys and values of a whole prompt into the slots of a sequence from 0 on."""
        for states_BGSC, rows_GTC in ((self._keys_LBGSC[layer], keys_GTC), (self._values_LBGSC[layer], values_GTC)):
            states_BGSC[sequence, :, : rows_GTC.shape[1]] = rows_GTC

    def read(self, layer: int, batch: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first B sequences in a range of slots: views of shape (B, G, end - start, C)."""
        return self._keys_LBGSC[layer, :batch, :, start:end], self._values_LBGSC[layer, :batch, :, start:end]


def slots_for(capacity: int) -> int:
    """Slots of a sequence in a cache of a capacity; a multiple of 16, which kernels like."""
    return -(-capacity // 16) * 16 + SLACK
