"""Keys and values of the bytes read so far, in slots allocated once.

A slot is a position: the key of byte p lies in slot p, rotated for position p. ``length`` slots are filled and real.
A decoding pass writes its rows behind them and leaves ``length`` alone; whoever accepts rows advances it, whoever
takes bytes back truncates it, and what lies behind is overwritten by the next pass. Nothing is ever cleared.

Attention reads whole ranges of slots, a pure function of the row's position (``key_range``): two passes that
compute the same byte then add the same numbers in the same order, wherever in the pass the byte stood.

Shapes: L layers, B batch, G key and value heads, S slots, M rows of a pass, C channels of a head.
"""

from typing import Final

import torch
from torch import Tensor

BUCKET: Final = 128
"""Slots between two lengths of the key range; also the slots kept behind the capacity for the rows of a last pass."""


def key_range(position: int, window_bytes: int | None) -> tuple[int, int]:
    """Slots whose keys a row reads: the same for all positions of one bucket.

    The range ends where the bucket ends. It starts at slot 0, or in a local layer at the oldest byte that the first
    position of the bucket sees, rounded down to a multiple of 16. Slots of the range that a row may not see are
    masked, so the range changes what is read, never what is computed.

    Args:
        position: Of the row, 0-based.
        window_bytes: Bytes that a local layer sees, the present one included; None for a global layer.

    Returns:
        First slot and the slot behind the last.

    Example:
        >>> key_range(127, None), key_range(128, None), key_range(300, 100)
        ((0, 128), (0, 256), (144, 384))
    """
    bucket = position // BUCKET * BUCKET
    oldest = 0 if window_bytes is None else max(0, bucket - window_bytes + 1)
    return oldest // 16 * 16, bucket + BUCKET


class KVCache:
    """Keys, values and rotary tables of a model's attention layers, with an explicit length.

    Slots are allocated once, filled with zeros, so that a masked slot is always finite: ``capacity`` rounded up to a
    bucket, and one bucket of slack, into which the padding rows of a last pass may reach.

    Args:
        layers: Attention layers L, those of transformer heads included.
        batch: Rows B that are read side by side, all of one length.
        kv_heads: G.
        capacity: Bytes that may be kept.
        cosine_SC: Rotary cosines of every slot, at least ``slots_for(capacity)`` rows.
        sine_SC: Rotary sines, same shape.
        dtype: Of keys and values.

    Attributes:
        length: Slots that are filled and real, from 0 to ``capacity``.
        capacity: As given.
        cosine_SC, sine_SC: As given, cut to the slots.
        ids_BS: The id of each slot, where the model looks at ids before the present one.
        bias_of_window: What attention of a window adds to the scores in the present bucket: its number, first slot,
            slot behind the last, and the tensor. Kept here because it changes once a bucket.
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
        assert cosine_SC.shape[0] >= slots
        shape = (layers, batch, kv_heads, slots, channels)
        device = cosine_SC.device
        self.capacity = capacity
        self.length = 0
        self.cosine_SC = cosine_SC[:slots]
        self.sine_SC = sine_SC[:slots]
        self.bias_of_window: dict[int | None, tuple[int, int, int, Tensor]] = {}
        # One view a layer, made once: slicing costs as much as a small kernel.
        self.ids_BS = torch.zeros(batch, slots, dtype=torch.int64, device=device)
        self._keys_BGSC = torch.zeros(shape, dtype=dtype, device=device).unbind()
        self._values_BGSC = torch.zeros(shape, dtype=dtype, device=device).unbind()
        # A layer that a pass may leave out (a draft head's) must not be read after a gap: its draft would be noise.
        self._complete = [0] * layers
        self._written: set[int] = set()

    def advance(self, count: int) -> None:
        """Make the first ``count`` rows of the last pass real."""
        assert 0 <= count <= self.capacity - self.length, "a pass was accepted beyond the cache's capacity"
        self.length += count
        for layer in self._written:
            self._complete[layer] = self.length
        self._written.clear()

    def truncate(self, length: int) -> None:
        """Forget all slots from ``length`` on; the next pass overwrites them."""
        assert 0 <= length <= self.length, "a cache is truncated to a length that it does not have"
        self.length = length
        self._complete = [min(complete, length) for complete in self._complete]
        self._written.clear()

    def write(self, layer: int, keys_BGMC: Tensor, values_BGMC: Tensor) -> None:
        """Put the keys and values of a pass into the slots behind ``length``; ``length`` stays.

        Args:
            layer: 0-based.
            keys_BGMC: Rotated keys; row m belongs to slot ``length + m``.
            values_BGMC: Values, same shape.
        """
        assert self._complete[layer] == self.length, f"layer {layer} was not given all bytes before slot {self.length}"
        rows = keys_BGMC.shape[2]
        self._keys_BGSC[layer].narrow(2, self.length, rows).copy_(keys_BGMC)
        self._values_BGSC[layer].narrow(2, self.length, rows).copy_(values_BGMC)
        self._written.add(layer)

    def read(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values in a range of slots, as views of shape (B, G, end - start, C)."""
        return (
            self._keys_BGSC[layer].narrow(2, start, end - start),
            self._values_BGSC[layer].narrow(2, start, end - start),
        )


def slots_for(capacity: int) -> int:
    """Slots that a cache of a capacity holds: a whole number of buckets, and one bucket of slack."""
    return (-(-capacity // BUCKET) + 1) * BUCKET
