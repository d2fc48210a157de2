"""The cache: slots by position, a length that the caller moves, key ranges that depend on the bucket alone."""

import pytest
import torch

from bytelm.kv_cache import BUCKET, KVCache, key_range, slots_for


def new_cache(capacity: int, layers: int = 2) -> KVCache:
    slots = slots_for(capacity)
    return KVCache(
        layers=layers,
        batch=1,
        kv_heads=2,
        capacity=capacity,
        cosine_SC=torch.zeros(slots, 4),
        sine_SC=torch.zeros(slots, 4),
        dtype=torch.float32,
    )


def rows(count: int, value: float) -> torch.Tensor:
    return torch.full((1, 2, count, 4), value)


@pytest.mark.parametrize("window_bytes", [None, 1, 2, 16, 100, 128, 129, 1000])
def test_all_positions_of_a_bucket_read_one_range_that_holds_what_they_see(window_bytes: int | None) -> None:
    for position in range(5 * BUCKET):
        start, end = key_range(position, window_bytes)
        assert (start, end) == key_range(position // BUCKET * BUCKET, window_bytes)
        oldest = 0 if window_bytes is None else max(0, position - window_bytes + 1)
        assert 0 <= start <= oldest
        assert position < end
        assert end % BUCKET == 0


def test_a_local_range_stays_short_however_long_the_text() -> None:
    start, end = key_range(1_000_000, 100)
    assert end - start <= BUCKET + 100 + 16


@pytest.mark.parametrize("capacity", [1, 127, 128, 129, 1000])
def test_a_pass_at_the_last_slot_has_room_for_a_bucket_of_rows(capacity: int) -> None:
    cache = new_cache(capacity)
    cache.write(0, rows(capacity, 1.0), rows(capacity, 1.0))
    cache.write(1, rows(capacity, 1.0), rows(capacity, 1.0))
    cache.advance(capacity - 1)
    cache.write(0, rows(BUCKET, 2.0), rows(BUCKET, 3.0))
    keys, values = cache.read(0, *key_range(capacity - 1, None))
    assert keys[0, 0, capacity - 1, 0] == 2.0
    assert values[0, 0, capacity - 1, 0] == 3.0


def test_slots_that_nobody_wrote_are_finite() -> None:
    keys, values = new_cache(200).read(1, 0, slots_for(200))
    assert torch.equal(keys, torch.zeros_like(keys))
    assert torch.equal(values, torch.zeros_like(values))


def test_rows_become_real_only_when_they_are_accepted() -> None:
    cache = new_cache(50, layers=1)
    cache.write(0, rows(8, 1.0), rows(8, 1.0))
    assert cache.length == 0
    cache.advance(3)
    cache.write(0, rows(8, 2.0), rows(8, 2.0))
    keys, _ = cache.read(0, 0, 12)
    assert keys[0, 0, :, 0].tolist() == [1.0] * 3 + [2.0] * 8 + [0.0]


def test_bytes_that_are_taken_back_are_overwritten() -> None:
    cache = new_cache(50, layers=1)
    cache.write(0, rows(8, 1.0), rows(8, 1.0))
    cache.advance(8)
    cache.truncate(5)
    cache.write(0, rows(2, 2.0), rows(2, 2.0))
    keys, _ = cache.read(0, 0, 8)
    assert keys[0, 0, :, 0].tolist() == [1.0] * 5 + [2.0] * 2 + [1.0]


def test_a_layer_that_missed_an_accepted_byte_is_refused() -> None:
    cache = new_cache(50)
    cache.write(0, rows(4, 1.0), rows(4, 1.0))
    cache.advance(2)  # layer 1 was given nothing
    with pytest.raises(AssertionError, match="layer 1"):
        cache.write(1, rows(4, 1.0), rows(4, 1.0))
    cache.truncate(0)
    cache.write(1, rows(4, 1.0), rows(4, 1.0))  # nothing is missing now


def test_rows_of_a_rejected_pass_do_not_pass_for_accepted_ones() -> None:
    cache = new_cache(50)
    for layer in (0, 1):
        cache.write(layer, rows(4, 1.0), rows(4, 1.0))
    cache.advance(1)
    cache.write(0, rows(4, 2.0), rows(4, 2.0))
    cache.advance(1)  # slot 1 of layer 1 still holds a rejected row
    with pytest.raises(AssertionError, match="layer 1"):
        cache.write(1, rows(4, 3.0), rows(4, 3.0))


def test_a_length_beyond_the_capacity_is_refused() -> None:
    cache = new_cache(5)
    cache.advance(5)
    with pytest.raises(AssertionError, match="capacity"):
        cache.advance(1)
    with pytest.raises(AssertionError, match="truncated"):
        cache.truncate(6)
