"""Windows that begin with a document and are filled with whole documents: the packing policy ``document``.

A document is read as ids: one for its beginning (``EOD``, unless the beginning was held out) and one a byte.

- Of a document of T ids or more, every T ids make a window of their own, which also shows the K bytes behind them.
- What is left of it, and every shorter document, is put together in windows of T ids by best-fit decreasing: the
  largest first, each into the fullest window that has room. It takes one id more than its bytes: that of its
  beginning, or that of the end of what stands in front of it.
- What stays free is no data.

So every id of every document is an input just once in an epoch, with all of its K targets that the document has; every
byte is a target of head 0 once, and so is every end. Only the first byte of a document whose beginning was held out
has nothing that it could be predicted from.

Windows are made within a span: as many frames of a shard, one behind the other, as hold a megabyte or 32 windows. A
window belongs to the span in which its first byte is, and may end behind it. How many windows a span gives is counted
when the split is opened, from the piece tables alone; those numbers, one a span, are all that is kept. Spans are
permuted and dealt to lanes as groups are in ``bytelm.data.order``.

Suffixes: P pieces, U units (windows' worth of a long document, or what fills a part of one), N windows, G spans.
"""

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from bytelm.data.frames import Frames
from bytelm.data.order import MOST_LANES, ORDER_VERSION, Lanes, Places, Run, draw_permutation, lane_count
from bytelm.data.shard_file import ENDS, MARK_SHIFT, STARTS
from bytelm.data.windows import CutGroups
from bytelm.errors import ShardError

SPAN_BYTES: Final = 1 << 20
_WINDOWS_IN_SPAN: Final = 32
_POOL_BYTES: Final = 32 << 20
_LEAST_COST: Final = 2


@dataclass(frozen=True, slots=True)
class Units:
    """What is put into windows.

    Attributes:
        begin_U: First byte, within the shard, int64.
        bytes_U: How many bytes a window shows of it, int64.
        starts_U: Its first byte begins a document.
        ends_U: The last byte that is shown ends one.
        fills_U: It has a window of its own.
    """

    begin_U: NDArray[np.int64]
    bytes_U: NDArray[np.int64]
    starts_U: NDArray[np.bool_]
    ends_U: NDArray[np.bool_]
    fills_U: NDArray[np.bool_]

    def rows(self, window_bytes: int) -> tuple[list[int], list[list[int]]]:
        """Windows: the units that have one of their own, and the units of each that several share."""
        sharing = np.flatnonzero(~self.fills_U)
        rows = best_fit((self.bytes_U[sharing] + 1).tolist(), window_bytes)
        numbers = sharing.tolist()
        return np.flatnonzero(self.fills_U).tolist(), [[numbers[unit] for unit in row] for row in rows]


def cut_units(
    rows_P: NDArray[np.void], end: int, *, first_byte: int, end_byte: int, window_bytes: int, prediction_heads: int
) -> Units:
    """The units that begin within some bytes of a shard.

    Args:
        rows_P: Rows of the piece table: all pieces that touch [first_byte, end).
        end: Where the last of them ends, or at least T + K behind ``end_byte``.
        first_byte: The first byte at which a unit may begin.
        end_byte: The one behind the last.
        window_bytes: T.
        prediction_heads: K.
    """
    begin_P = rows_P["start"].astype(np.int64)
    length_P = np.diff(begin_P, append=max(end, int(begin_P[-1])))
    begin_P, length_P, flags_P = begin_P[length_P > 0], length_P[length_P > 0], rows_P["flags"][length_P > 0]
    starts_P = (flags_P & STARTS).astype(np.int64)
    ids_P = length_P + starts_P
    # Unit j holds the ids from j T on; its first byte is j T less the id of the beginning, but of unit 0 it is byte 0.
    first_P = np.where(begin_P >= first_byte, 0, -(-(first_byte - begin_P + starts_P) // window_bytes))
    end_P = np.minimum(-(-ids_P // window_bytes), -(-(end_byte - begin_P + starts_P) // window_bytes))
    end_P[begin_P >= end_byte] = 0
    count_P = np.maximum(end_P - first_P, 0)
    before_P = np.cumsum(count_P) - count_P
    piece_U = np.repeat(np.arange(len(begin_P)), count_P)
    number_U = np.arange(len(piece_U)) - np.repeat(before_P - first_P, count_P)
    is_first_U = number_U == 0
    starts_U = is_first_U & (starts_P[piece_U] != 0)
    offset_U = np.where(is_first_U, 0, number_U * window_bytes - starts_P[piece_U])
    left_U = length_P[piece_U] - offset_U
    fills_U = left_U + starts_U >= window_bytes
    bytes_U = np.minimum(left_U, np.where(fills_U, window_bytes + prediction_heads - starts_U, window_bytes))
    ends_U = (bytes_U == left_U) & (flags_P[piece_U] & ENDS != 0)
    return Units(begin_P[piece_U] + offset_U, bytes_U, starts_U, ends_U, fills_U)


def best_fit(costs: Sequence[int], capacity: int) -> list[list[int]]:
    """Items in bins by best-fit decreasing: the largest first, each into the fullest bin that has room for it.

    Args:
        costs: Room that each item takes, 2 to ``capacity``.
        capacity: Room of a bin.

    Returns:
        Items of each bin by index, in the order in which they were put in. Equal items keep their order.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # of bins that have any, ascending, with the bin's number
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        at = bisect_left(rooms, (costs[item], -1))
        if at < len(rooms):
            room, number = rooms.pop(at)
            bins[number].append(item)
        else:
            room, number = capacity, len(bins)
            bins.append([item])
        if room - costs[item] >= _LEAST_COST:
            insort(rooms, (room - costs[item], number))
    return bins


class DocumentWindows:
    """Windows of documents; see the module, and ``StreamWindows`` for what it has in common with that.

    Args:
        frames: Of the split.
        seed: Of the order.
        window_bytes: T, the inputs of a window.
        prediction_heads: K; a window is T + K bytes.
        most_lanes: Spans that are read at a time, at most.
        span_bytes: The least size of a span. The order depends on it.

    Raises:
        ShardError: A shard is missing, or a piece table is damaged.
    """

    has_padding = True

    def __init__(
        self,
        frames: Frames,
        *,
        seed: int,
        window_bytes: int,
        prediction_heads: int,
        most_lanes: int = MOST_LANES,
        span_bytes: int = SPAN_BYTES,
    ) -> None:
        self._frames = frames
        self.is_remote = frames.is_remote
        self._window_bytes = window_bytes
        self._heads = prediction_heads
        self._width = window_bytes + prediction_heads
        self._identity = f"{ORDER_VERSION}:document:{frames.fingerprint}:{seed}:{window_bytes}:{prediction_heads}"
        least_bytes = max(span_bytes, _WINDOWS_IN_SPAN * self._width)
        self._frames_each = -(-least_bytes // frames.frame_bytes)
        self._span_bytes = self._frames_each * frames.frame_bytes
        self._spans_before: list[int] = np.cumsum(-(-frames.shard_bytes_S // self._span_bytes)).tolist()
        """Spans in each shard and those before it."""
        self.groups = self._spans_before[-1]
        counts = ((len(alone), len(shared)) for alone, shared in map(self._rows, range(self.groups)))
        self._windows_G = np.fromiter((alone + shared for alone, shared in counts), np.int64, self.groups)
        self.windows_per_epoch = int(self._windows_G.sum())
        self.most_windows = int(self._windows_G.max())
        self.buffer_bytes = self.most_windows * self._width
        self.lanes = lane_count(self.groups, self.buffer_bytes, most_lanes, _POOL_BYTES)

    def epoch(self, epoch: int) -> "EpochOfDocuments":
        """See ``Windows``."""
        text = f"{self._identity}:{epoch}"
        return EpochOfDocuments(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()), self)

    def lanes_of(self, spans_G: NDArray[np.int64]) -> Lanes:
        """Spans in an order, dealt to lanes."""
        return Lanes(
            self.groups,
            self.lanes,
            usual_windows=-(-self.windows_per_epoch // self.groups),
            unusual_places_G=np.arange(self.groups),
            unusual_windows_G=self._windows_G[spans_G],
        )

    def cut(self, epoch: "EpochOfDocuments", groups: Sequence[int], buffers: Sequence[memoryview]) -> CutGroups:
        """See ``Windows``."""
        starts, data_bytes, marks, firsts, counts = [], [], [], [], []
        failed: dict[int, ShardError] = {}
        for number, (group, buffer) in enumerate(zip(groups, buffers, strict=True)):
            span, key = epoch.span(group)
            try:
                data_bytes_N, marks_M = self._fill(span, np.frombuffer(buffer, np.uint8))
            except ShardError as error:
                failed[number] = error
                data_bytes_N, marks_M = np.zeros((2, 0), np.int64)
            order_N = draw_permutation(len(data_bytes_N), key)
            starts_N = order_N * self._width
            first_N = np.searchsorted(marks_M, starts_N << MARK_SHIFT)
            counts.append(np.searchsorted(marks_M, starts_N + self._width << MARK_SHIFT) - first_N)
            firsts.append(first_N)
            starts.append(starts_N)
            data_bytes.append(data_bytes_N[order_N])
            marks.append(marks_M)
        return CutGroups(
            np.array([len(starts_N) for starts_N in starts]),
            np.concatenate(starts),
            np.concatenate(firsts),
            np.concatenate(counts),
            marks,
            failed,
            np.concatenate(data_bytes),
        )

    def fetch(self, epoch: "EpochOfDocuments", group: int) -> None:
        """See ``Windows``."""
        run = self._run(epoch.span(group)[0])
        self._frames.fetch(self._reaching(run, run.bytes + self._width))

    def _fill(self, span: int, buffer: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Put the windows of a span into a buffer, one behind the other; the data bytes of each, and the boundaries."""
        run = self._run(span)
        units = self._units(run)
        alone, shared = units.rows(self._window_bytes)
        begin_U = units.begin_U - run.first_frame * self._frames.frame_bytes
        end_U = begin_U + units.bytes_U
        raw = np.zeros(int(end_U.max(initial=0)) + self._width, np.uint8)
        self._frames.decode(self._reaching(run, len(raw) - self._width), raw.data[: len(raw) - self._width])
        windows_NW = buffer[: (len(alone) + len(shared)) * self._width].reshape(-1, self._width)
        windows_NW[: len(alone)] = as_strided(raw, (len(raw) - self._width + 1, self._width), (1, 1))[begin_U[alone]]
        windows_NW[len(alone) :] = 0
        data_bytes_N = np.zeros(len(windows_NW), np.int64)
        data_bytes_N[: len(alone)] = units.bytes_U[alone]
        begins, ends = begin_U.tolist(), end_U.tolist()
        starting, ending = units.starts_U.tolist(), units.ends_U.tolist()
        marks: list[int] = []
        for number, row in enumerate((*([unit] for unit in alone), *shared)):
            at, before_ends = number * self._width, False
            for unit in row:
                flags = STARTS * starting[unit] | ENDS * before_ends
                if flags or at > number * self._width:
                    marks.append(at << MARK_SHIFT | flags)
                if number >= len(alone):
                    length = ends[unit] - begins[unit]
                    buffer[at : at + length] = raw[begins[unit] : ends[unit]]
                at, before_ends = at + ends[unit] - begins[unit], ending[unit]
            data_bytes_N[number] = at - number * self._width
            if before_ends and at < (number + 1) * self._width:
                marks.append(at << MARK_SHIFT | ENDS)
        return data_bytes_N, np.array(marks, np.int64)

    def _rows(self, span: int) -> tuple[list[int], list[list[int]]]:
        return self._units(self._run(span)).rows(self._window_bytes)

    def _units(self, run: Run) -> Units:
        first_byte = run.first_frame * self._frames.frame_bytes
        pieces = self._frames.pieces(self._reaching(run, run.bytes + self._width))
        return cut_units(
            pieces.rows_P,
            pieces.begin + pieces.size,
            first_byte=first_byte,
            end_byte=first_byte + run.bytes,
            window_bytes=self._window_bytes,
            prediction_heads=self._heads,
        )

    def _run(self, span: int) -> Run:
        shard = bisect_right(self._spans_before, span)
        number = span - (self._spans_before[shard - 1] if shard else 0)
        left = int(self._frames.shard_bytes_S[shard]) - number * self._span_bytes
        raw_bytes = min(self._span_bytes, left)
        return Run(shard, number * self._frames_each, -(-raw_bytes // self._frames.frame_bytes), raw_bytes)

    def _reaching(self, run: Run, raw_bytes: int) -> Run:
        """As many frames from the same one on as have so many bytes, or all there are."""
        left = int(self._frames.shard_bytes_S[run.shard]) - run.first_frame * self._frames.frame_bytes
        raw_bytes = min(raw_bytes, left)
        return Run(run.shard, run.first_frame, -(-raw_bytes // self._frames.frame_bytes), raw_bytes)


class EpochOfDocuments:
    """The order of one epoch of ``DocumentWindows``.

    Args:
        key: What its permutations are drawn by.
        windows: Of the split.
    """

    def __init__(self, key: int, windows: DocumentWindows) -> None:
        self._key = key
        self._spans_G = draw_permutation(windows.groups, key)
        self._lanes = windows.lanes_of(self._spans_G)

    def places(self, windows_N: NDArray[np.int64]) -> Places:
        """Where windows are found."""
        return self._lanes.places(windows_N)

    def span(self, group: int) -> tuple[int, int]:
        """The span that is read as a group, and what its windows are permuted by."""
        span = int(self._spans_G[group])
        return span, (self._key + span + 1) & 0xFFFF_FFFF_FFFF_FFFF
