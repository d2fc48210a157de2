"""The order of windows: a permutation, pure, and the same whoever reads it."""

import hashlib
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.order import WindowOrder, windows_of_rank

FULL_BYTES = 300


@st.composite
def orders(draw: st.DrawFn) -> tuple[WindowOrder, list[int], int, int]:
    """An order with the frame sizes, T and K that it was made from; many shapes, full and short frames."""
    sizes = draw(st.lists(st.just(FULL_BYTES) | st.integers(1, FULL_BYTES), min_size=1, max_size=40))
    window_bytes = draw(st.integers(1, 80))
    prediction_heads = draw(st.integers(1, 9))
    return (
        order_of(sizes, window_bytes, prediction_heads, seed=draw(st.integers(0, 9))),
        sizes,
        window_bytes,
        prediction_heads,
    )


def order_of(
    sizes: list[int], window_bytes: int, prediction_heads: int, *, seed: int = 0, fingerprint: str = "f"
) -> WindowOrder:
    return WindowOrder(
        np.array(sizes, np.int64),
        fingerprint=fingerprint,
        seed=seed,
        window_bytes=window_bytes,
        prediction_heads=prediction_heads,
    )


def listed(order: WindowOrder, epoch: int) -> list[tuple[int, int]]:
    """Group and place of every window of an epoch, in order."""
    places = order.epoch(epoch).places(np.arange(order.windows_per_epoch))
    return list(zip(places.groups_N.tolist(), places.indices_N.tolist(), strict=True))


def positions(order: WindowOrder, epoch: int, sizes: list[int]) -> list[tuple[int, int]]:
    """First frame and offset in it of every window of an epoch, in order."""
    at = order.epoch(epoch)
    found = []
    groups = {group: at.group(group) for group, _ in listed(order, epoch)}
    for group, place in listed(order, epoch):
        offset = int(groups[group].starts_N[place])
        for frame in groups[group].frames.tolist():
            if offset < sizes[frame]:
                found.append((frame, offset))
                break
            offset -= sizes[frame]
    return found


@settings(deadline=None)
@given(orders(), st.integers(0, 5))
def test_an_epoch_gives_every_window_of_every_group_once(
    made: tuple[WindowOrder, list[int], int, int], epoch: int
) -> None:
    order, sizes, window_bytes, prediction_heads = made
    windows = listed(order, epoch)
    assert len(set(windows)) == len(windows) == order.windows_per_epoch
    at = order.epoch(epoch)
    frames: list[int] = []
    total = 0
    group = 0
    while len(frames) < len(sizes):
        found = at.group(group)
        frames += found.frames.tolist()
        group_bytes = sum(sizes[frame] for frame in found.frames.tolist())
        assert len(found.starts_N) == max(group_bytes - prediction_heads, 0) // window_bytes
        total += len(found.starts_N)
        group += 1
    assert sorted(frames) == list(range(len(sizes)))
    assert total == order.windows_per_epoch


@settings(deadline=None)
@given(orders(), st.integers(0, 5))
def test_windows_of_a_group_lie_inside_it_and_predict_no_byte_twice(
    made: tuple[WindowOrder, list[int], int, int], epoch: int
) -> None:
    order, sizes, window_bytes, prediction_heads = made
    at = order.epoch(epoch)
    for group in {group for group, _ in listed(order, epoch)}:
        found = at.group(group)
        starts = np.sort(found.starts_N)
        assert starts[0] >= 0
        assert starts[-1] + window_bytes + prediction_heads <= sum(sizes[frame] for frame in found.frames.tolist())
        assert np.all(np.diff(starts) == window_bytes)


@settings(deadline=None)
@given(orders(), st.integers(0, 5))
def test_lanes_take_turns_until_each_has_given_all(made: tuple[WindowOrder, list[int], int, int], epoch: int) -> None:
    order, *_ = made
    places = order.epoch(epoch).places(np.arange(order.windows_per_epoch))
    lanes = places.lanes_N.tolist()
    left = {lane: lanes.count(lane) for lane in sorted(set(lanes))}
    expected = []
    while any(left.values()):
        for lane in left:
            if left[lane]:
                left[lane] -= 1
                expected.append(lane)
    assert lanes == expected


@settings(deadline=None)
@given(orders(), st.integers(0, 5))
def test_a_lane_is_through_with_a_group_before_it_begins_the_next(
    made: tuple[WindowOrder, list[int], int, int], epoch: int
) -> None:
    order, *_ = made
    places = order.epoch(epoch).places(np.arange(order.windows_per_epoch))
    for lane in set(places.lanes_N.tolist()):
        groups = places.groups_N[places.lanes_N == lane].tolist()
        changes = [group for group, before in zip(groups, [None, *groups], strict=False) if group != before]
        assert len(changes) == len(set(changes))


@settings(deadline=None)
@given(orders(), st.data())
def test_any_slice_of_an_epoch_can_be_asked_for_alone(
    made: tuple[WindowOrder, list[int], int, int], data: st.DataObject
) -> None:
    order, *_ = made
    whole = listed(order, 1)
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    places = order.epoch(1).places(np.arange(begin, end))
    assert list(zip(places.groups_N.tolist(), places.indices_N.tolist(), strict=True)) == whole[begin:end]


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 50), st.sampled_from([1, 2, 3, 7]))
def test_the_ranks_together_read_consecutive_windows_and_each_its_own(first: int, count: int, ranks: int) -> None:
    by_rank = [windows_of_rank(first, count, rank=rank, ranks=ranks).tolist() for rank in range(ranks)]
    assert sorted(chain.from_iterable(by_rank)) == list(range(first, first + count * ranks))
    assert all(window % ranks == rank for rank, windows in enumerate(by_rank) for window in windows)


def test_the_order_is_pure_and_moves_with_epoch_seed_and_fingerprint() -> None:
    sizes = [FULL_BYTES] * 12 + [77]
    ours = positions(order_of(sizes, 16, 4), 0, sizes)
    assert positions(order_of(sizes, 16, 4), 0, sizes) == ours
    assert positions(order_of(sizes, 16, 4), 1, sizes) != ours
    assert positions(order_of(sizes, 16, 4, seed=1), 0, sizes) != ours
    assert positions(order_of(sizes, 16, 4, fingerprint="g"), 0, sizes) != ours


def test_version_1_of_the_order_is_what_saved_positions_count_on() -> None:
    sizes = [FULL_BYTES] * 12 + [77]
    text = repr([positions(order_of(sizes, 16, 4), epoch, sizes) for epoch in range(3)])
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "cbbe31065079de4df3018c178c9d347909ed2844d7c0b9f765bb575509405dda"
    )


def test_every_epoch_has_as_many_windows_as_the_first() -> None:
    sizes = [FULL_BYTES] * 25 + [10, 299, 150]
    order = order_of(sizes, 20, 3)
    assert {len(positions(order, epoch, sizes)) for epoch in range(20)} == {order.windows_per_epoch}


def test_the_phase_brings_every_byte_under_the_heads_in_some_epoch() -> None:
    order = order_of([100], 16, 4)
    predicted = {
        start + offset
        for epoch in range(200)
        for start in order.epoch(epoch).group(0).starts_N.tolist()
        for offset in range(1, 16 + 1)
    }
    assert predicted == set(range(1, 100 - 4 + 1))


def test_one_small_frame_gives_all_of_its_windows() -> None:
    assert order_of([600], 512, 8).windows_per_epoch == 1
    assert order_of([519], 512, 8).windows_per_epoch == 0
    assert order_of([520], 512, 8).windows_per_epoch == 1
    assert order_of([], 512, 8).windows_per_epoch == 0


def test_windows_longer_than_a_frame_are_cut_from_joined_frames() -> None:
    order = order_of([100] * 50, 400, 8)
    assert order.windows_per_epoch == (50 * 100 - 8) // 400
    assert len(listed(order, 3)) == order.windows_per_epoch


@pytest.mark.parametrize("window_bytes", [512, 2048, 8192, 65536])
def test_little_of_a_corpus_falls_between_windows(window_bytes: int) -> None:
    sizes = [256 << 10] * 333 + [1000]
    order = order_of(sizes, window_bytes, 8)
    assert order.windows_per_epoch * window_bytes > 31 / 32 * sum(sizes)


@pytest.mark.parametrize("window_bytes", [512, 8192])
def test_neighbouring_windows_come_from_places_far_apart(window_bytes: int) -> None:
    sizes = [256 << 10] * 1000
    order = order_of(sizes, window_bytes, 8)
    at = order.epoch(0)
    places = at.places(np.arange(min(order.windows_per_epoch, 100_000)))
    first_frames = np.array([at.group(group).frames[0] for group in range(int(places.groups_N.max()) + 1)])
    distance = np.abs(np.diff(first_frames[places.groups_N]))
    assert np.mean(distance < 4) < 0.02


def test_in_a_corpus_of_seven_frames_neighbours_come_from_different_frames() -> None:
    sizes = [256 << 10] * 6 + [90_000]
    order = order_of(sizes, 512, 8)
    frames = [frame for frame, _ in positions(order, 0, sizes)]
    same = sum(left == right for left, right in pairwise(frames))
    assert same < 0.01 * len(frames)
    # and every frame is met early: the first windows are a sample of the whole
    assert set(frames[:7]) == set(range(7))


def test_the_end_of_an_epoch_is_as_mixed_as_its_beginning() -> None:
    sizes = [32 << 10] * 65
    order = order_of(sizes, 512, 8)
    last = [frame for frame, _ in positions(order, 0, sizes)][-500:]
    assert max(last.count(frame) for frame in set(last)) < 50
