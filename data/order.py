"""Which window comes n-th: a pure function, with no file behind it and no state.

The order depends on the sizes of a corpus's shards and frames, its fingerprint, the seed, the epoch, T =
``window_bytes`` and K = ``prediction_heads``; never on ranks, threads, batch size or restarts. One epoch is made like
this:

1. Each shard is cut into groups: as many frames, one behind the other, as hold at least 32 windows, usually one or
   two. What is left over at the ends of shards is joined into groups of at least that size.
2. The full groups are permuted and dealt round to lanes, at most 64, and the joined ones to places that are drawn. A
   lane reads its groups one after another; in long epochs each lane begins at another place of its first group and
   ends there, so that lanes change groups one by one and not all at once.
3. A group of n bytes holds floor((n - K) / T) windows of T + K bytes, one every T bytes. They begin at a phase that
   moves within the bytes that are left over, and come in an order of their own.
4. Lanes take turns: window i belongs to lane i mod lanes. When a lane has no more, the others go on without it.

Neighbouring windows therefore come from places far apart, and only one group a lane has to be in memory. Nothing here
is as large as the corpus: the permutation of groups is computed place by place, and what is kept grows with the
number of shards. Permutations are drawn with a mixing function that is written out here, because a promise about
order must not depend on the version of a library.

Suffixes: N windows asked for, S shards, G joined groups, L lanes.
"""

import hashlib
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION: Final = 2
"""Changes whenever the same inputs would give another order; a saved position is worth nothing across versions."""

MOST_LANES: Final = 64
"""Groups that are read at a time."""

_POOL_BYTES: Final = 64 << 20  # the groups of all lanes together; windows that need large groups get fewer lanes
_WINDOWS_IN_GROUP: Final = 32  # less than 1/32 of the bytes can then fall into what a group leaves over
_DEPTH_OF_MOST_LANES: Final = 64  # from this many groups a lane on, an uneven end no longer matters
_DEPTH_OF_SHIFTS: Final = 128  # from this many groups a lane on, reading one of them twice costs nothing
_ROUNDS: Final = 8
_WORD: Final = (1 << 64) - 1


class Run(NamedTuple):
    """Frames of a shard, one behind the other."""

    shard: int
    first_frame: int
    frames: int
    bytes: int
    """Their raw bytes."""


@dataclass(frozen=True, slots=True)
class Group:
    """Bytes that are cut into windows together.

    Attributes:
        runs: Where they are: one place, or several that are joined in this order.
        starts_N: Where each window begins within them, int64, in the order of delivery.
    """

    runs: list[Run]
    starts_N: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Places:
    """Where windows are found: three int64 arrays of one length."""

    lanes_N: NDArray[np.int64]
    groups_N: NDArray[np.int64]
    indices_N: NDArray[np.int64]


class WindowOrder:
    """The order of a split's windows, over all epochs.

    Args:
        shard_bytes_S: Raw bytes of each shard in corpus order, int64, at least 1.
        frame_bytes: Raw bytes of every frame but the last of each shard.
        fingerprint: The corpus's.
        seed: Any integer.
        window_bytes: T, the inputs of a window.
        prediction_heads: K, the bytes after the last input that are targets; a window is T + K bytes.
        most_lanes: Lanes at most. The order depends on it.

    Attributes:
        windows_per_epoch: Windows in every epoch.
        groups: Groups in every epoch.
        lanes: Lanes that take turns.
        most_windows: Of one group.
        most_bytes: Of one group.

    Example:
        >>> order = WindowOrder(
        ...     np.array([240]), frame_bytes=100, fingerprint="f", seed=0, window_bytes=16, prediction_heads=4
        ... )
        >>> order.windows_per_epoch  # one group of 240 bytes, (240 - 4) // 16
        14
    """

    def __init__(
        self,
        shard_bytes_S: NDArray[np.int64],
        *,
        frame_bytes: int,
        fingerprint: str,
        seed: int,
        window_bytes: int,
        prediction_heads: int,
        most_lanes: int = MOST_LANES,
    ) -> None:
        self._identity = f"{ORDER_VERSION}:{fingerprint}:{seed}:{window_bytes}:{prediction_heads}"
        self._window_bytes = window_bytes
        self._frame_bytes = frame_bytes
        least_bytes = _WINDOWS_IN_GROUP * (window_bytes + prediction_heads)
        self._frames_each = -(-least_bytes // frame_bytes)
        full_bytes = self._frames_each * frame_bytes
        full_S = shard_bytes_S // full_bytes
        if full_S.any() and 0 < int((shard_bytes_S % full_bytes).sum()) < least_bytes:
            # What is left over is too short for a group of its own and takes one more.
            full_S[np.flatnonzero(full_S)[-1]] -= 1
        rest_S = shard_bytes_S - full_S * full_bytes
        self._full_before: list[int] = np.cumsum(full_S).tolist()
        """Full groups in each shard and those before it."""
        self._full_groups = int(full_S.sum())
        self._rests = [
            Run(shard, first, -(-rest // frame_bytes), rest)
            for shard, first, rest in zip(range(len(full_S)), (full_S * self._frames_each).tolist(), rest_S.tolist())  # noqa: B905
            if rest
        ]
        self._joined_bounds = _bounds([rest.bytes for rest in self._rests], least_bytes)
        """Among the rests, the first and the one past the last of each joined group."""
        bytes_before = np.cumsum([0, *(rest.bytes for rest in self._rests)])
        joined_bytes_G = np.diff(bytes_before[self._joined_bounds])
        self._joined_windows_G = np.maximum(joined_bytes_G - prediction_heads, 0) // window_bytes
        self._joined_slack_G = np.maximum(joined_bytes_G - prediction_heads, 0) - self._joined_windows_G * window_bytes
        self._windows_each = (full_bytes - prediction_heads) // window_bytes
        self._slack_each = full_bytes - prediction_heads - self._windows_each * window_bytes
        self.groups = self._full_groups + len(joined_bytes_G)
        self.windows_per_epoch = self._full_groups * self._windows_each + int(self._joined_windows_G.sum())
        has_full = self._full_groups > 0
        self.most_windows = max(self._windows_each * has_full, int(self._joined_windows_G.max(initial=0)))
        self.most_bytes = max(full_bytes * has_full, int(joined_bytes_G.max(initial=0)))
        self.lanes = lane_count(self.groups, full_bytes if has_full else self.most_bytes, most_lanes, _POOL_BYTES)

    def epoch(self, epoch: int) -> "EpochOrder":
        """The order of one epoch (0-based)."""
        return EpochOrder(self, epoch)

    def _key(self, epoch: int, purpose: str) -> int:
        text = f"{self._identity}:{epoch}:{purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class EpochOrder:
    """The order of one epoch: from a window's index to its place, and what a place holds."""

    def __init__(self, order: WindowOrder, epoch: int) -> None:
        self._order = order
        self.epoch = epoch
        self._full = _Permutation(order._full_groups, order._key(epoch, "groups"))
        starts_N = draw_permutation(order._windows_each, order._key(epoch, "windows")) * order._window_bytes
        self._starts = np.concatenate([starts_N, starts_N])
        self._draws_key = order._key(epoch, "draws")
        joined_G = len(order._joined_windows_G)
        places_G = _Permutation(order.groups, order._key(epoch, "joined")).many(np.arange(joined_G))
        ascending = np.argsort(places_G)
        self._joined_places: list[int] = places_G[ascending].tolist()
        self._joined: list[int] = ascending.tolist()
        self._turns = Lanes(
            order.groups,
            order.lanes,
            usual_windows=order._windows_each,
            unusual_places_G=places_G[ascending],
            unusual_windows_G=order._joined_windows_G[ascending],
        )

    def places(self, windows_N: NDArray[np.int64]) -> Places:
        """Where windows are found.

        Args:
            windows_N: Indices within this epoch, int64, in [0, windows_per_epoch).
        """
        return self._turns.places(windows_N)

    def group(self, group: int) -> Group:
        """Where a group's bytes are, and where its windows begin in them."""
        order = self._order
        before = bisect_left(self._joined_places, group)
        drawn = _mixed(self._draws_key + group * _GAMMA)
        if before < len(self._joined_places) and self._joined_places[before] == group:
            joined = self._joined[before]
            windows, slack = int(order._joined_windows_G[joined]), int(order._joined_slack_G[joined])
            runs = order._rests[order._joined_bounds[joined] : order._joined_bounds[joined + 1]]
            starts_N = draw_permutation(windows, drawn) * order._window_bytes
        else:
            windows, slack = order._windows_each, order._slack_each
            runs = [self._run(self._full[group - before])]
            # One order for all full groups, begun elsewhere in each: to draw one for each takes a tenth of the time
            # that decoding it takes.
            first = drawn % windows
            starts_N = self._starts[first : first + windows]
        phase = (drawn >> 32) % (slack + 1)
        return Group(runs, starts_N + phase)

    def _run(self, full: int) -> Run:
        order = self._order
        shard = bisect_right(order._full_before, full)
        number = full - (order._full_before[shard - 1] if shard else 0)
        frames = order._frames_each
        return Run(shard, number * frames, frames, frames * order._frame_bytes)


class Lanes:
    """Groups dealt round to lanes that take turns: from the n-th window to its group.

    Group g is the (g // lanes)-th of lane g mod lanes. All groups hold the same number of windows but for some, which
    are listed; nothing else is kept of them.

    Args:
        groups: How many.
        lanes: How many, at most ``groups``.
        usual_windows: Of a group that is not listed, at least 1.
        unusual_places_G: Groups that are listed, int64, ascending.
        unusual_windows_G: Their windows, int64.
    """

    def __init__(
        self,
        groups: int,
        lanes: int,
        *,
        usual_windows: int,
        unusual_places_G: NDArray[np.int64],
        unusual_windows_G: NDArray[np.int64],
    ) -> None:
        self._lanes = lanes
        self._usual = usual_windows
        # A first group before the beginning makes every window one that stands behind a listed group.
        places = np.concatenate([np.arange(-lanes, 0), unusual_places_G])
        windows = np.concatenate([np.full(lanes, self._usual), unusual_windows_G])
        by_lane = np.argsort(places % lanes, kind="stable")
        places, windows = places[by_lane], windows[by_lane]
        lane_of = places % lanes
        self._depth = places // lanes
        extra = windows - self._usual
        extra_before = np.cumsum(extra) - extra
        first_of_lane = np.searchsorted(lane_of, np.arange(lanes))
        before = self._usual * self._depth + extra_before - extra_before[first_of_lane][lane_of]
        depth_L = (groups - 1 - np.arange(lanes)) // lanes + 1
        self._length_L = self._usual * depth_L + np.add.reduceat(extra, first_of_lane)
        self._shift_L = np.zeros(lanes, np.int64)
        if groups // lanes >= _DEPTH_OF_SHIFTS:
            self._shift_L = np.arange(lanes) * self._usual // lanes
        # One sorted array for all lanes: each lane's counts are lifted above those of the lane before.
        self._lift = int(self._length_L.max()) + self._usual + 1
        self._before = before + lane_of * self._lift
        self._end = self._before + windows
        self._turns = _Turns.of(self._length_L)

    def places(self, windows_N: NDArray[np.int64]) -> Places:
        """Where the windows with these numbers are found."""
        lanes_N, rounds_N = self._turns.take(windows_N)
        rounds_N = (rounds_N + self._shift_L[lanes_N]) % self._length_L[lanes_N] + lanes_N * self._lift
        listed_N = np.searchsorted(self._before, rounds_N, side="right") - 1
        behind_N = rounds_N - self._end[listed_N]
        inside_N = behind_N < 0
        depth_N = self._depth[listed_N] + np.where(inside_N, 0, 1 + behind_N // self._usual)
        indices_N = np.where(inside_N, rounds_N - self._before[listed_N], behind_N % self._usual)
        return Places(lanes_N, depth_N * self._lanes + lanes_N, indices_N)


@dataclass(frozen=True, slots=True)
class _Turns:
    """Lanes of unequal length taking turns: each round takes one window from every lane that has one left.

    Between two rounds in which a lane runs out, the same lanes take part. Such a stretch has a first window, a first
    round, and its lanes; that makes both directions exact arithmetic.
    """

    first_window_S: NDArray[np.int64]
    first_round_S: NDArray[np.int64]
    count_S: NDArray[np.int64]
    lanes_SL: NDArray[np.int64]

    @classmethod
    def of(cls, lengths_L: NDArray[np.int64]) -> "_Turns":
        first_round_S = distinct(np.append(lengths_L, 0))[0][:-1]
        taking_part_SL = lengths_L[None, :] > first_round_S[:, None]
        return cls(
            first_window_S=np.minimum(lengths_L[None, :], first_round_S[:, None]).sum(axis=1),
            first_round_S=first_round_S,
            count_S=taking_part_SL.sum(axis=1),
            lanes_SL=np.argsort(~taking_part_SL, axis=1, kind="stable"),
        )

    def take(self, windows_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lane of each window, and how many windows that lane has given before it."""
        stretch_N = np.searchsorted(self.first_window_S, windows_N, side="right") - 1
        since_N = windows_N - self.first_window_S[stretch_N]
        count_N = self.count_S[stretch_N]
        return self.lanes_SL[stretch_N, since_N % count_N], self.first_round_S[stretch_N] + since_N // count_N


class _Permutation:
    """A permutation of range(count) drawn by a 64-bit key, computed place by place: it keeps 8 sqrt(count) numbers.

    A number is a place in a table of about sqrt(count) rows and columns. Its row moves round by an amount that is
    drawn for its column, then its column by one drawn for its row, and so on; each move can be taken back, so all of
    them together permute the table. Numbers that leave the range go on moving until they are back in it.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: the generalized Feistel cipher
    and cycle walking.
    """

    def __init__(self, count: int, key: int) -> None:
        self._count = count
        self._rows = max(1, math.isqrt(max(count - 1, 0)) + 1)
        self._columns = max(1, -(-count // self._rows))
        sides = (self._columns, self._rows)
        self._moves = [
            (_mixed_many(sides[number % 2], _mixed(key + number)) % np.uint64(sides[1 - number % 2])).astype(np.int64)
            for number in range(_ROUNDS)
        ]
        self._lists: list[list[int]] = [moves.tolist() for moves in self._moves]

    def __getitem__(self, place: int) -> int:
        rows, columns = self._rows, self._columns
        while True:
            column, row = divmod(place, rows)
            for even, odd in zip(self._lists[::2], self._lists[1::2], strict=True):
                row = (row + even[column]) % rows
                column = (column + odd[row]) % columns
            place = column * rows + row
            if place < self._count:
                return place

    def many(self, places_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same for an array of places."""
        found_N = places_N.copy()
        moving_N = np.arange(len(places_N))
        while len(moving_N):
            column_N, row_N = np.divmod(found_N[moving_N], self._rows)
            for even, odd in zip(self._moves[::2], self._moves[1::2], strict=True):
                row_N = (row_N + even[column_N]) % self._rows
                column_N = (column_N + odd[row_N]) % self._columns
            found_N[moving_N] = column_N * self._rows + row_N
            moving_N = moving_N[found_N[moving_N] >= self._count]
        return found_N


def windows_of_rank(next_window: int, count: int, *, rank: int, ranks: int) -> NDArray[np.int64]:
    """The next windows of one rank: those i >= ``next_window`` with i mod ranks = rank.

    The ranks' windows together are the ``ranks * count`` consecutive ones from ``next_window`` on, whatever number
    of ranks read what came before.

    Args:
        next_window: Global index of the first window that no rank has read.
        count: Windows for each rank.
        rank: In [0, ranks).
        ranks: Number of ranks.

    Returns:
        Global indices over all epochs, int64, ascending.

    Example:
        >>> windows_of_rank(5, 2, rank=0, ranks=2), windows_of_rank(5, 2, rank=1, ranks=2)
        (array([6, 8]), array([5, 7]))
    """
    return next_window + (rank - next_window) % ranks + ranks * np.arange(count, dtype=np.int64)


def distinct(values_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different values, ascending, and where each is found first.

    ``np.unique`` does the same, but loads masked arrays when it is called first, and those take as long to load as
    ninety megabytes take to read.
    """
    ascending = np.argsort(values_N, kind="stable")
    sorted_N = values_N[ascending]
    is_first_N = np.concatenate([np.ones(min(1, len(sorted_N)), np.bool_), sorted_N[1:] != sorted_N[:-1]])
    return sorted_N[is_first_N], ascending[is_first_N]


def _bounds(sizes: list[int], least_bytes: int) -> list[int]:
    """Where groups of at least so many bytes begin, and the end of the last, which takes what remains."""
    bounds, gathered = [0], 0
    for number, size in enumerate(sizes):
        gathered += size
        if gathered >= least_bytes:
            bounds.append(number + 1)
            gathered = 0
    if bounds[-1] != len(sizes):
        bounds[max(len(bounds) - 1, 1) :] = [len(sizes)]
    return bounds


def lane_count(groups: int, group_bytes: int, most_lanes: int, pool_bytes: int) -> int:
    """How many lanes groups are dealt to.

    Args:
        groups: In an epoch.
        group_bytes: Of one.
        most_lanes: At most.
        pool_bytes: What the groups of ``MOST_LANES`` lanes may have together; large groups get fewer lanes.
    """
    most = max(1, min(most_lanes, pool_bytes * most_lanes // (MOST_LANES * max(group_bytes, 1))))
    depth = max(1, -(-groups // most))
    # With few groups a lane, lanes of nearly equal length keep the end of the epoch as mixed as its beginning. With
    # many, the full number is worth more: ranks that divide it then decode disjoint groups.
    return most if depth >= _DEPTH_OF_MOST_LANES else max(1, -(-groups // depth))


_GAMMA: Final = 0x9E3779B97F4A7C15


def _mixed(value: int) -> int:
    """64 bits that a number draws.

    Source: the mixing function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 15).
    """
    value &= _WORD
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _WORD
    return value ^ (value >> 31)


def _mixed_many(count: int, key: int) -> NDArray[np.uint64]:
    """The next ``count`` draws of a SplitMix64 generator whose state is the key."""
    with np.errstate(over="ignore"):
        mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def draw_permutation(count: int, key: int) -> NDArray[np.int64]:
    """A permutation of range(count) drawn by a 64-bit key, as a whole."""
    return np.argsort(_mixed_many(count, key), kind="stable").astype(np.int64)
