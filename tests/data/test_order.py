"""The order of windows: a permutation, pure, as small as the number of shards, and the same whoever reads it."""

import hashlib
import tracemalloc
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bytelm.data.order import Lanes, WindowOrder, _Permutation, distinct, windows_of_rank

FRAME_BYTES = 300
Made = tuple[WindowOrder, list[int], int, int]


def order_of(
    shards: list[int],
    window_bytes: int,
    prediction_heads: int,
    *,
    frame_bytes: int = FRAME_BYTES,
    seed: int = 0,
    fingerprint: str = "f",
) -> WindowOrder:
    return WindowOrder(
        np.array(shards, np.int64),
        frame_bytes=frame_bytes,
        fingerprint=fingerprint,
        seed=seed,
        window_bytes=window_bytes,
        prediction_heads=prediction_heads,
    )


@st.composite
def orders(draw: st.DrawFn) -> Made:
    """An order with the shards, T and K that it was made from; many shapes, full and short frames."""
    shards = draw(st.lists(st.integers(1, 3 * FRAME_BYTES) | st.just(2 * FRAME_BYTES), min_size=1, max_size=30))
    if draw(st.booleans()):
        shards.append(draw(st.integers(10, 4000)) * FRAME_BYTES)  # long lanes, which begin at different places
    window_bytes = draw(st.integers(1, 80))
    prediction_heads = draw(st.integers(1, 9))
    order = order_of(shards, window_bytes, prediction_heads, seed=draw(st.integers(0, 9)))
    return order, shards, window_bytes, prediction_heads


def listed(order: WindowOrder, epoch: int) -> list[tuple[int, int]]:
    """Group and place of every window of an epoch, in order."""
    places = order.epoch(epoch).places(np.arange(order.windows_per_epoch))
    return list(zip(places.groups_N.tolist(), places.indices_N.tolist(), strict=True))


def byte_places(order: WindowOrder, epoch: int, frame_bytes: int = FRAME_BYTES) -> list[tuple[int, int]]:
    """Shard and byte in it at which every window of an epoch begins, in order."""
    at = order.epoch(epoch)
    groups = [at.group(group) for group in range(order.groups)]
    found = []
    for group, place in listed(order, epoch):
        offset = int(groups[group].starts_N[place])
        for run in groups[group].runs:
            if offset < run.bytes:
                found.append((run.shard, run.first_frame * frame_bytes + offset))
                break
            offset -= run.bytes
    return found


@settings(deadline=None, max_examples=60)
@given(orders(), st.integers(0, 5))
def test_an_epoch_gives_every_window_of_every_group_once(made: Made, epoch: int) -> None:
    order, shards, window_bytes, prediction_heads = made
    windows = listed(order, epoch)
    assert len(set(windows)) == len(windows) == order.windows_per_epoch
    at = order.epoch(epoch)
    covered: list[tuple[int, int, int]] = []
    total = 0
    for number in range(order.groups):
        group = at.group(number)
        for run in group.runs:
            begin = run.first_frame * FRAME_BYTES
            covered.append((run.shard, begin, begin + run.bytes))
            assert run.frames == -(-run.bytes // FRAME_BYTES)
        group_bytes = sum(run.bytes for run in group.runs)
        assert len(group.starts_N) == max(group_bytes - prediction_heads, 0) // window_bytes
        assert len(group.starts_N) <= order.most_windows
        assert group_bytes <= order.most_bytes
        total += len(group.starts_N)
    covered.sort()
    for (shard, _, end), (following, begin, _) in pairwise([(-1, 0, 0), *covered, (len(shards), 0, 0)]):
        assert (following, begin) in ((shard, end), (shard + 1, 0))
        assert following == shard or shard < 0 or end == shards[shard]
    assert total == order.windows_per_epoch


@settings(deadline=None, max_examples=60)
@given(orders(), st.integers(0, 5))
def test_windows_of_a_group_lie_inside_it_and_predict_no_byte_twice(made: Made, epoch: int) -> None:
    order, _, window_bytes, prediction_heads = made
    at = order.epoch(epoch)
    for group in {group for group, _ in listed(order, epoch)}:
        found = at.group(group)
        starts = np.sort(found.starts_N)
        assert starts[0] >= 0
        assert starts[-1] + window_bytes + prediction_heads <= sum(run.bytes for run in found.runs)
        assert np.all(np.diff(starts) == window_bytes)


@settings(deadline=None, max_examples=60)
@given(orders(), st.integers(0, 5))
def test_lanes_take_turns_until_each_has_given_all(made: Made, epoch: int) -> None:
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


@settings(deadline=None, max_examples=60)
@given(orders(), st.integers(0, 5))
def test_a_lane_reads_one_group_at_a_time_and_none_twice_but_the_one_it_begins_with(made: Made, epoch: int) -> None:
    order, *_ = made
    places = order.epoch(epoch).places(np.arange(order.windows_per_epoch))
    for lane in set(places.lanes_N.tolist()):
        groups = places.groups_N[places.lanes_N == lane].tolist()
        visits = [group for group, before in zip(groups, [None, *groups], strict=False) if group != before]
        if len(visits) > len(set(visits)):
            assert visits[-1] == visits[0]
            assert len(visits) > 16
            visits.pop()
        assert len(visits) == len(set(visits))


@settings(deadline=None, max_examples=60)
@given(orders(), st.data())
def test_any_slice_of_an_epoch_can_be_asked_for_alone(made: Made, data: st.DataObject) -> None:
    order, *_ = made
    whole = listed(order, 1)
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    places = order.epoch(1).places(np.arange(begin, end))
    assert list(zip(places.groups_N.tolist(), places.indices_N.tolist(), strict=True)) == whole[begin:end]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 12), st.integers(1, 9))
def test_lanes_give_what_a_walk_over_them_gives(windows: list[int], lanes: int, usual: int) -> None:
    lanes = min(lanes, len(windows))
    if not any(windows):
        windows[0] = 1
    unusual = [group for group, count in enumerate(windows) if count != usual]
    dealt = Lanes(
        len(windows),
        lanes,
        usual_windows=usual,
        unusual_places_G=np.array(unusual, np.int64),
        unusual_windows_G=np.array([windows[group] for group in unusual], np.int64),
    )
    lists = []
    for lane in range(lanes):
        mine = range(lane, len(windows), lanes)
        whole = [(lane, group, index) for group in mine for index in range(windows[group])]
        shift = lane * usual // lanes if len(windows) // lanes >= 16 and whole else 0
        lists.append([whole[(number + shift) % len(whole)] for number in range(len(whole))])
    walked = [one[turn] for turn in range(max(map(len, lists))) for one in lists if turn < len(one)]
    places = dealt.places(np.arange(len(walked)))
    found = zip(places.lanes_N.tolist(), places.groups_N.tolist(), places.indices_N.tolist(), strict=True)
    assert list(found) == walked


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@example(1, 0)
@example(2, 0)
@example(3, 1)
def test_a_permutation_place_by_place_is_one(count: int, key: int) -> None:
    permutation = _Permutation(count, key)
    whole = permutation.many(np.arange(count)).tolist()
    assert sorted(whole) == list(range(count))
    assert [permutation[place] for place in range(0, count, 17)] == whole[::17]


def test_a_permutation_takes_any_place_anywhere_with_the_same_chance() -> None:
    count, draws = 13, 4000
    found = np.array([_Permutation(count, key * 7919).many(np.arange(count)) for key in range(draws)])
    expected = draws / count
    for place in range(count):
        squares = (np.bincount(found[:, place], minlength=count) - expected) ** 2 / expected
        assert squares.sum() < 45  # chi-square with 12 degrees of freedom: 1 in 100 000
    # and neighbours stay neighbours no more often than chance has it
    together = np.mean(np.diff(found, axis=1) == 1)
    assert abs(together - 1 / count) < 0.01


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 50), st.sampled_from([1, 2, 3, 7]))
def test_the_ranks_together_read_consecutive_windows_and_each_its_own(first: int, count: int, ranks: int) -> None:
    by_rank = [windows_of_rank(first, count, rank=rank, ranks=ranks).tolist() for rank in range(ranks)]
    assert sorted(chain.from_iterable(by_rank)) == list(range(first, first + count * ranks))
    assert all(window % ranks == rank for rank, windows in enumerate(by_rank) for window in windows)


def test_the_order_is_pure_and_moves_with_epoch_seed_and_fingerprint() -> None:
    shards = [12 * FRAME_BYTES + 77]
    ours = byte_places(order_of(shards, 16, 4), 0)
    assert byte_places(order_of(shards, 16, 4), 0) == ours
    assert byte_places(order_of(shards, 16, 4), 1) != ours
    assert byte_places(order_of(shards, 16, 4, seed=1), 0) != ours
    assert byte_places(order_of(shards, 16, 4, fingerprint="g"), 0) != ours


def test_version_2_of_the_order_is_what_saved_positions_count_on() -> None:
    found = []
    for shards in ([12 * FRAME_BYTES + 77], [40 * FRAME_BYTES + 1, 5], [3000 * FRAME_BYTES, 77, 800]):
        order = order_of(shards, 16, 4)
        found.append([byte_places(order, epoch) for epoch in range(3)])
    digest = hashlib.sha256(repr(found).encode()).hexdigest()
    assert digest == "91a6aa387b67e4d7e17c02db5631b7d63982d2482713195e64f554330d7a5dec"


def test_every_epoch_has_as_many_windows_as_the_first() -> None:
    shards = [25 * FRAME_BYTES + 10, 299, 150]
    order = order_of(shards, 20, 3)
    assert {len(byte_places(order, epoch)) for epoch in range(20)} == {order.windows_per_epoch}


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
    assert order_of([600], 512, 8, frame_bytes=1000).windows_per_epoch == 1
    assert order_of([519], 512, 8, frame_bytes=1000).windows_per_epoch == 0
    assert order_of([520], 512, 8, frame_bytes=1000).windows_per_epoch == 1
    assert order_of([], 512, 8).windows_per_epoch == 0


def test_windows_longer_than_a_frame_are_cut_from_joined_frames() -> None:
    order = order_of([50 * 100], 400, 8, frame_bytes=100)
    assert order.windows_per_epoch == (50 * 100 - 8) // 400
    assert len(listed(order, 3)) == order.windows_per_epoch


@pytest.mark.parametrize("window_bytes", [512, 2048, 8192, 65536])
def test_little_of_a_corpus_falls_between_windows(window_bytes: int) -> None:
    raw_bytes = 333 * (256 << 10) + 1000
    order = order_of([raw_bytes], window_bytes, 8, frame_bytes=256 << 10)
    assert order.windows_per_epoch * window_bytes > 31 / 32 * raw_bytes


def near_share(order: WindowOrder, epoch: int, frame_bytes: int, distance: int = 1_000_000) -> float:
    """Share of neighbouring windows that begin less than ``distance`` bytes apart in a corpus of one shard."""
    at = order.epoch(epoch)
    places = at.places(np.arange(order.windows_per_epoch))
    groups = [at.group(group) for group in range(order.groups)]
    starts = np.array([group.starts_N + group.runs[0].first_frame * frame_bytes for group in groups])
    return float(np.mean(np.abs(np.diff(starts[places.groups_N, places.indices_N])) < distance))


@pytest.mark.parametrize("window_bytes", [512, 8192])
@pytest.mark.parametrize("frames", [126, 1000])
def test_neighbouring_windows_lie_as_far_apart_as_in_a_full_shuffle(frames: int, window_bytes: int) -> None:
    frame_bytes = 256 << 10
    raw_bytes = frames * frame_bytes
    order = order_of([raw_bytes], window_bytes, 8, frame_bytes=frame_bytes)
    near = np.mean([near_share(order, epoch, frame_bytes) for epoch in range(12)])
    shuffled_N = np.random.default_rng(0).permutation(raw_bytes // 512) * 512
    shuffled = np.mean(np.abs(np.diff(shuffled_N)) < 1_000_000)
    assert near < 1.15 * shuffled
    if frames == 1000:
        assert near < 0.01
    in_a_frame = np.mean([near_share(order, epoch, frame_bytes, frame_bytes) for epoch in range(12)])
    assert in_a_frame < 0.02


def test_in_a_corpus_of_seven_frames_neighbours_come_from_different_frames() -> None:
    order = order_of([6 * (256 << 10) + 90_000], 512, 8, frame_bytes=256 << 10)
    frames = [byte // (256 << 10) for _, byte in byte_places(order, 0, 256 << 10)]
    same = sum(left == right for left, right in pairwise(frames))
    assert same < 0.01 * len(frames)
    # and almost every frame is met early: the first windows are a sample of the whole
    assert len(set(frames[:6])) >= 5


def test_the_end_of_an_epoch_is_as_mixed_as_its_beginning() -> None:
    order = order_of([65 * (32 << 10)], 512, 8, frame_bytes=32 << 10)
    last = [byte // (32 << 10) for _, byte in byte_places(order, 0, 32 << 10)][-500:]
    assert max(last.count(frame) for frame in set(last)) < 50


def test_long_windows_are_joined_from_far_places_at_the_ends_of_shards_alone() -> None:
    shards = [40 * (256 << 10) + 99, 33 * (256 << 10)]
    order = order_of(shards, 65536, 8, frame_bytes=256 << 10)
    at = order.epoch(0)
    joined = [group.runs for group in map(at.group, range(order.groups)) if len(group.runs) > 1]
    assert len(joined) == 1
    assert sum(run.bytes for run in joined[0]) < 5_000_000


def test_lanes_of_a_large_corpus_change_groups_one_by_one() -> None:
    order = order_of([9000 * (256 << 10)], 512, 8, frame_bytes=256 << 10)
    places = order.epoch(0).places(np.arange(200_000))
    begins_group = places.indices_N == 0
    changes = [int(begins_group[begin : begin + 640].sum()) for begin in range(0, 200_000, 640)]
    assert max(changes) <= 4, "ten turns of 64 lanes, each with 511 windows of a group"


@given(st.lists(st.integers(-5, 5), max_size=30))
def test_different_values_are_numpys(values: list[int]) -> None:
    values_N = np.array(values, np.int64)
    for found, expected in zip(distinct(values_N), np.unique(values_N, return_index=True), strict=True):
        assert found.tolist() == expected.tolist()


def test_a_short_epoch_reads_each_group_once() -> None:
    order = order_of([2000 * (256 << 10)], 8192, 8, frame_bytes=256 << 10)
    groups_N = order.epoch(0).places(np.arange(order.windows_per_epoch)).groups_N
    for lane in range(order.lanes):
        of_lane_N = groups_N[groups_N % order.lanes == lane]
        assert np.count_nonzero(np.diff(of_lane_N)) + 1 == len(np.unique(of_lane_N))


def test_the_order_of_ten_terabytes_is_small_and_quick_to_make() -> None:
    shards = [(256 << 20) + 1000] * 40_000
    tracemalloc.start()
    order = order_of(shards, 8192, 8, frame_bytes=256 << 10)
    at = order.epoch(3)
    places = at.places(np.arange(order.windows_per_epoch - 1000, order.windows_per_epoch))
    for group in set(places.groups_N.tolist()):
        at.group(group)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert order.windows_per_epoch > 1e9
    assert peak < 32 << 20
