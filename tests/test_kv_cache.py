"""The cache: slots by position, and for each sequence a length that the caller moves."""

import pytest
import torch

from bytelm.kv_cache import SLACK, KVCache, slots_for


def new_cache(capacity: int, batch: int = 2) -> KVCache:
    slots = slots_for(capacity)
    return KVCache(
        layers=2,
        batch=batch,
        kv_heads=2,
        capacity=capacity,
        cosine_SC=torch.zeros(slots, 4),
        sine_SC=torch.zeros(slots, 4),
        dtype=torch.float32,
    )


def write(cache: KVCache, rows: int, value: float, layer: int = 0) -> None:
    """A pass over all sequences, behind their lengths: keys are ``value`` and the number of the sequence."""
    slots_BM = torch.tensor(cache.lengths).unsqueeze(1) + torch.arange(rows)
    keys = value + torch.arange(len(cache.lengths)).view(-1, 1, 1, 1).expand(-1, 2, rows, 4)
    cache.write(layer, slots_BM, keys, -keys)


def keys_of(cache: KVCache, sequence: int, slots: int, layer: int = 0) -> list[float]:
    keys, values = cache.read(layer, len(cache.lengths), 0, slots)
    assert torch.equal(keys, -values)
    assert (keys[sequence, :, :, :1] == keys[sequence]).all()
    return keys[sequence, 0, :, 0].tolist()


@pytest.mark.parametrize("capacity", [1, 15, 16, 17, 1000])
def test_a_pass_of_most_rows_has_room_behind_the_last_byte(capacity: int) -> None:
    cache = new_cache(capacity)
    assert slots_for(capacity) % 16 == 0
    cache.advance([capacity - 1, 0])
    write(cache, SLACK, 2.0)
    assert keys_of(cache, 0, capacity)[capacity - 1] == 2.0
    assert keys_of(cache, 1, 1) == [3.0]


def test_slots_that_nobody_wrote_are_finite() -> None:
    keys, values = new_cache(200).read(1, 2, 0, slots_for(200))
    assert torch.equal(keys, torch.zeros_like(keys))
    assert torch.equal(values, torch.zeros_like(values))


def test_each_sequence_is_written_behind_its_own_length_and_rejected_rows_are_overwritten() -> None:
    cache = new_cache(50)
    write(cache, 8, 10.0)
    assert cache.lengths == [0, 0]
    cache.advance([3, 5])
    write(cache, 4, 20.0)
    write(cache, 4, 30.0, layer=1)
    assert keys_of(cache, 0, 9) == [10.0] * 3 + [20.0] * 4 + [10.0, 0.0]
    assert keys_of(cache, 1, 10) == [11.0] * 5 + [21.0] * 4 + [0.0]
    assert keys_of(cache, 1, 6, layer=1) == [0.0] * 5 + [31.0]
    cache.truncate(0, 1)
    assert cache.lengths == [1, 5]
    write(cache, 1, 40.0)
    assert keys_of(cache, 0, 4) == [10.0, 40.0, 10.0, 20.0]


def test_a_prompt_fills_one_sequence_alone() -> None:
    cache = new_cache(50)
    write(cache, 8, 10.0)
    cache.write_prompt(0, 1, torch.full((2, 3, 4), 7.0), torch.full((2, 3, 4), -7.0))
    assert keys_of(cache, 0, 8) == [10.0] * 8
    assert keys_of(cache, 1, 4) == [7.0] * 3 + [11.0]


def test_a_sequence_takes_the_place_of_another() -> None:
    cache = new_cache(50, batch=3)
    for layer in (0, 1):
        write(cache, 4, 10.0, layer)
    cache.ids_BS[2, :4] = 99
    cache.advance([1, 2, 4])
    cache.move(2, 0)
    cache.move(1, 1)
    assert cache.lengths == [4, 2, 4]
    assert keys_of(cache, 0, 4) == keys_of(cache, 0, 4, layer=1) == [12.0] * 4
    assert keys_of(cache, 1, 4) == [11.0] * 4
    assert cache.ids_BS[0, :4].tolist() == [99] * 4


def test_a_length_beyond_the_capacity_is_refused() -> None:
    cache = new_cache(5)
    cache.advance([5])
    with pytest.raises(AssertionError, match="capacity"):
        cache.advance([1])
    with pytest.raises(AssertionError, match="truncated"):
        cache.truncate(0, 6)
