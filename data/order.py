"""Which window comes n-th: a pure function, with no file behind it and no state.

The order depends on the sizes of a corpus's frames, its fingerprint, the seed, the epoch, T = ``window_bytes`` and
K = ``prediction_heads``; never on ranks, threads, batch size or restarts. One epoch is made like this:

1. Frames are permuted. Only frames of the full size change places, so that step 2 gives the same sizes in every
   epoch; the last frame of each shard, which is shorter, keeps its place at the end.
2. Neighbours are joined into groups of at least 32 windows, usually one or two frames each.
3. Groups are permuted and dealt round to lanes, at most 64. A lane reads its groups one after another.
4. A group of n bytes holds floor((n - K) / T) windows of T + K bytes, one every T bytes. They begin at a phase that
   moves with the epoch within the bytes that are left over, and come in an order of their own.
5. Lanes take turns: window i belongs to lane i mod lanes. When a lane has no more, the others go on without it.

Neighbouring windows therefore come from places far apart, and only one group a lane has to be in memory.
Permutations are drawn with a mixing function that is written out here, because a promise about order must not
depend on the version of a library.

Suffixes: N windows asked for, F frames, G groups, L lanes.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION: Final = 1
"""Changes whenever the same inputs would give another order; a saved position is worth nothing across versions."""

_MOST_LANES: Final = 64
_POOL_BYTES: Final = 64 << 20  # the groups of all lanes together; windows that need large groups get fewer lanes
_WINDOWS_IN_GROUP: Final = 32  # less than 1/32 of the bytes can then fall into what a group leaves over
_DEPTH_OF_MOST_LANES: Final = 64  # from this many groups a lane on, an uneven end no longer matters


@dataclass(frozen=True, slots=True)
class Group:
    """Frames that are joined and cut into windows together.

    Attributes:
        frames: Indices of its frames within the split, int64, in the order in which they are joined.
        starts_N: Where each window begins within the joined bytes, int64, in the order of delivery.
    """

    frames: NDArray[np.int64]
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
        frame_sizes: Raw bytes of each frame in corpus order, int64.
        fingerprint: The corpus's.
        seed: Any integer.
        window_bytes: T, the inputs of a window.
        prediction_heads: K, the bytes after the last input that are targets; a window is T + K bytes.

    Example:
        >>> order = WindowOrder(np.array([100, 100, 40]), fingerprint="f", seed=0, window_bytes=16, prediction_heads=4)
        >>> order.windows_per_epoch  # one group of 240 bytes, (240 - 4) // 16
        14
    """

    def __init__(
        self, frame_sizes: NDArray[np.int64], *, fingerprint: str, seed: int, window_bytes: int, prediction_heads: int
    ) -> None:
        self._identity = f"{ORDER_VERSION}:{fingerprint}:{seed}:{window_bytes}:{prediction_heads}"
        self._window_bytes = window_bytes
        largest = int(frame_sizes.max(initial=0))
        self._full_F = np.flatnonzero(frame_sizes == largest)
        self._short_F = np.flatnonzero(frame_sizes != largest)
        least_bytes = _WINDOWS_IN_GROUP * (window_bytes + prediction_heads)
        sizes_F = np.concatenate([frame_sizes[self._full_F], frame_sizes[self._short_F]])
        self._bounds_G = _group_bounds(sizes_F, len(self._full_F), least_bytes)
        """Slots of the first and past the last frame of each group, G + 1 of them."""
        bytes_before = np.concatenate([[0], np.cumsum(sizes_F)])
        group_bytes_G = np.diff(bytes_before[self._bounds_G])
        self._windows_G = np.maximum(group_bytes_G - prediction_heads, 0) // window_bytes
        self._slack_G = np.maximum(group_bytes_G - prediction_heads, 0) - self._windows_G * window_bytes
        self.windows_per_epoch = int(self._windows_G.sum())
        self.lanes = _lane_count(len(self._windows_G), int(group_bytes_G.max(initial=1)))

    def epoch(self, epoch: int) -> "EpochOrder":
        """The order of one epoch (0-based)."""
        frames_F = np.concatenate(
            [self._full_F[_permutation(len(self._full_F), self._key(epoch, "frames"))], self._short_F]
        )
        dealt = _permutation(len(self._windows_G), self._key(epoch, "groups"))
        return EpochOrder(self, epoch, frames_F, dealt)

    def _key(self, epoch: int, purpose: str) -> int:
        text = f"{self._identity}:{epoch}:{purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def _group(self, epoch: int, group: int, frames_F: NDArray[np.int64]) -> Group:
        count = int(self._windows_G[group])
        phase = self._key(epoch, f"phase of {group}") % (int(self._slack_G[group]) + 1)
        windows_N = _permutation(count, self._key(epoch, f"windows of {group}"))
        first, end = self._bounds_G[group : group + 2]
        return Group(frames=frames_F[first:end], starts_N=phase + windows_N * self._window_bytes)


class EpochOrder:
    """The order of one epoch: from a window's index to its place, and what a place holds."""

    def __init__(self, order: WindowOrder, epoch: int, frames_F: NDArray[np.int64], dealt_G: NDArray[np.int64]) -> None:
        self._order = order
        self._frames_F = frames_F
        self.epoch = epoch
        lanes = order.lanes
        self._depth = -(-len(dealt_G) // lanes)
        missing = self._depth * lanes - len(dealt_G)
        windows_G = order._windows_G[dealt_G]
        by_lane = np.concatenate([windows_G, np.zeros(missing, np.int64)]).reshape(self._depth, lanes).T
        self._dealt_G = np.concatenate([dealt_G, np.zeros(missing, np.int64)])
        before_LD = np.zeros((lanes, self._depth + 1), np.int64)
        np.cumsum(by_lane, axis=1, out=before_LD[:, 1:])
        # One sorted array for all lanes: each lane's counts are lifted above those of the lane before.
        self._lift = order.windows_per_epoch + 1
        self._before = (before_LD + np.arange(lanes)[:, None] * self._lift).ravel()
        self._turns = _Turns.of(before_LD[:, -1])

    def places(self, windows_N: NDArray[np.int64]) -> Places:
        """Where windows are found.

        Args:
            windows_N: Indices within this epoch, int64, in [0, windows_per_epoch).
        """
        lanes_N, rounds_N = self._turns.take(windows_N)
        slots_N = np.searchsorted(self._before, rounds_N + lanes_N * self._lift, side="right") - 1
        indices_N = rounds_N + lanes_N * self._lift - self._before[slots_N]
        depths_N = slots_N - lanes_N * (self._depth + 1)
        groups_N = self._dealt_G[depths_N * self._order.lanes + lanes_N]
        return Places(lanes_N, groups_N, indices_N)

    def group(self, group: int) -> Group:
        """What one group is joined from, and where its windows begin."""
        return self._order._group(self.epoch, group, self._frames_F)


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
        first_round_S = np.unique(np.append(lengths_L, 0))[:-1]
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


def _group_bounds(sizes_F: NDArray[np.int64], full_frames: int, least_bytes: int) -> NDArray[np.int64]:
    if not len(sizes_F):
        return np.zeros(1, np.int64)
    frames_each = -(-least_bytes // int(sizes_F[0]))
    bounds = list(range(0, full_frames + 1, frames_each))
    gathered = int(sizes_F[bounds[-1] : full_frames].sum())
    for slot in range(full_frames, len(sizes_F)):
        gathered += int(sizes_F[slot])
        if gathered >= least_bytes:
            bounds.append(slot + 1)
            gathered = 0
    if bounds[-1] != len(sizes_F):
        if len(bounds) > 1:
            bounds.pop()  # what remains is too short for a group of its own and joins the last one
        bounds.append(len(sizes_F))
    return np.array(bounds, np.int64)


def _lane_count(groups: int, largest_group_bytes: int) -> int:
    most = max(1, min(_MOST_LANES, _POOL_BYTES // largest_group_bytes))
    depth = max(1, -(-groups // most))
    # With few groups a lane, lanes of nearly equal length keep the end of the epoch as mixed as its beginning. With
    # many, the full number is worth more: ranks that divide it then decode disjoint groups.
    return most if depth >= _DEPTH_OF_MOST_LANES else max(1, -(-groups // depth))


def _permutation(count: int, key: int) -> NDArray[np.int64]:
    """A permutation of range(count) drawn by a 64-bit key.

    Source: the mixing function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 15).
    """
    with np.errstate(over="ignore"):
        mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return np.argsort(mixed, kind="stable").astype(np.int64)
