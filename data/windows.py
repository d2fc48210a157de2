"""Windows cut out of groups of frames: what a group holds once it is decoded.

Suffixes: G groups, N windows in them, P pieces in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bytelm.data.frames import Frames
from bytelm.data.order import MOST_LANES, EpochOrder, Group, Places, Run, WindowOrder
from bytelm.data.shard_file import ENDS, MARK_SHIFT, FramePieces, join_marks
from bytelm.errors import CorpusError, ShardError

_NO_GROUP: Final = Group([], np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class CutGroups:
    """The windows of groups, N in all, and where pieces begin in them.

    Attributes:
        windows_G: Windows of each group, int64; 0 for one that is damaged.
        starts_N: Byte of its group's buffer at which each window begins, int64, by group in the order of delivery.
        first_marks_N: Number of each window's first boundary among those of its group, int64.
        mark_counts_N: Boundaries in each window, int64.
        marks: For each group its boundaries, int64, ascending: the byte of the buffer shifted left by
            ``MARK_SHIFT``, with ``STARTS`` where a document begins and ``ENDS`` where one has ended in front of it.
        failed: The errors of damaged groups, by number.
        data_bytes_N: Bytes of each window that are data, int64; None where all are.
    """

    windows_G: NDArray[np.int64]
    starts_N: NDArray[np.int64]
    first_marks_N: NDArray[np.int64]
    mark_counts_N: NDArray[np.int64]
    marks: list[NDArray[np.int64]]
    failed: dict[int, ShardError]
    data_bytes_N: NDArray[np.int64] | None = None


class Epoch(Protocol):
    """The order of one epoch."""

    def places(self, windows_N: NDArray[np.int64]) -> Places:
        """Where windows are found."""
        ...


class Windows(Protocol):
    """A split as windows, in an order, by groups that are read as a whole.

    Attributes:
        windows_per_epoch: Windows in every epoch.
        groups: Groups in every epoch.
        lanes: How many groups a reader is in at a time.
        most_windows: Of one group.
        buffer_bytes: What one group needs.
        has_padding: Windows may end in bytes that are no data.
        is_remote: Groups are read through a network, and should be fetched first.
    """

    windows_per_epoch: int
    groups: int
    lanes: int
    most_windows: int
    buffer_bytes: int
    has_padding: bool
    is_remote: bool

    def fetch(self, epoch: Any, group: int) -> None:
        """Have the packed bytes of a group read into a cache on this machine.

        Raises:
            CorpusError, OSError: They cannot be read.
        """
        ...

    def epoch(self, epoch: int) -> Epoch:
        """The order of one epoch (0-based)."""
        ...

    def cut(self, epoch: Any, groups: Sequence[int], buffers: Sequence[memoryview]) -> CutGroups:
        """Read groups of an epoch, each into a buffer of ``buffer_bytes``."""
        ...


class StreamWindows:
    """Windows that are cut one behind the other, across documents; see ``bytelm.data.order``.

    Args:
        frames: Of the split.
        seed: Of the order.
        window_bytes: T, the inputs of a window.
        prediction_heads: K; a window is T + K bytes.
        most_lanes: See ``WindowOrder``.

    Raises:
        CorpusError: The split is shorter than one window.
    """

    def __init__(
        self, frames: Frames, *, seed: int, window_bytes: int, prediction_heads: int, most_lanes: int = MOST_LANES
    ) -> None:
        self._frames = frames
        self._order = WindowOrder(
            frames.shard_bytes_S,
            frame_bytes=frames.frame_bytes,
            fingerprint=frames.fingerprint,
            seed=seed,
            window_bytes=window_bytes,
            prediction_heads=prediction_heads,
            most_lanes=most_lanes,
        )
        if not self._order.windows_per_epoch:
            raise CorpusError(
                f"{frames.name} has {int(frames.shard_bytes_S.sum())} bytes, and one window needs "
                f"{window_bytes} + {prediction_heads}; lower data.window_bytes, or ingest more"
            )
        self._width = window_bytes + prediction_heads
        self.windows_per_epoch = self._order.windows_per_epoch
        self.groups = self._order.groups
        self.lanes = self._order.lanes
        self.most_windows = self._order.most_windows
        self.buffer_bytes = self._order.most_bytes
        self.has_padding = False
        self.is_remote = frames.is_remote

    def epoch(self, epoch: int) -> EpochOrder:
        """See ``Windows``."""
        return self._order.epoch(epoch)

    def cut(self, epoch: EpochOrder, groups: Sequence[int], buffers: Sequence[memoryview]) -> CutGroups:
        """See ``Windows``."""
        frames: list[FramePieces] = []
        starts, sizes = [], []
        failed: dict[int, ShardError] = {}
        for number, (group, buffer) in enumerate(zip(groups, buffers, strict=True)):
            found = epoch.group(group)
            try:
                pieces, size = self._read(found.runs, buffer)
            except ShardError as error:
                failed[number] = error
                pieces, size, found = [], 0, _NO_GROUP
            frames += pieces
            sizes.append(size)
            starts.append(found.starts_N)
        # From here on all groups are handled at once, as if they stood one behind the other.
        windows_G = np.array([len(starts_N) for starts_N in starts])
        starts_N = np.concatenate(starts)
        base_G = np.cumsum(sizes) - sizes
        marks_P = join_marks(frames) if frames else np.zeros(0, np.int64)
        ends_P = marks_P & ENDS
        marks_P ^= ends_P
        marks_P[1:] |= ends_P[:-1]  # a piece says where it ends, a boundary whether something has ended in front of it
        first_G = np.searchsorted(marks_P, base_G << MARK_SHIFT)
        joined_N = starts_N + np.repeat(base_G, windows_G)
        first_N = np.searchsorted(marks_P, joined_N << MARK_SHIFT)
        count_N = np.searchsorted(marks_P, joined_N + self._width << MARK_SHIFT) - first_N
        marks = [
            part - (base << MARK_SHIFT)
            for part, base in zip(np.split(marks_P, first_G[1:]), base_G.tolist(), strict=True)
        ]
        return CutGroups(windows_G, starts_N, first_N - np.repeat(first_G, windows_G), count_N, marks, failed)

    def fetch(self, epoch: EpochOrder, group: int) -> None:
        """See ``Windows``."""
        for run in epoch.group(group).runs:
            self._frames.fetch(run)

    def _read(self, runs: Sequence[Run], buffer: memoryview) -> tuple[list[FramePieces], int]:
        """Join runs of frames in a buffer; their pieces, and how many bytes they are."""
        begin = 0
        pieces = []
        for run in runs:
            pieces.append(self._frames.read(run, buffer[begin : begin + run.bytes]))
            begin += run.bytes
        return pieces, begin
