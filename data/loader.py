"""Shuffled windows out of a corpus, decoded ahead of the model, resumable at any window.

Which window comes n-th is ``bytelm.data.order``'s to say; here are the files and the memory. A group of frames is
decoded once, in a thread, when its first window is near; a window is a copy out of that buffer; the buffer serves
again when its lane has moved on. So memory depends on the window size and not on the size of the corpus, and threads
change nothing but the time.

Suffixes: B windows of a batch, W = T + K bytes of a window, N boundaries or windows, P pieces that touch a group.
"""

import contextlib
import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

from bytelm.data.order import ORDER_VERSION, EpochOrder, WindowOrder, windows_of_rank
from bytelm.data.shard_file import FramePieces, ShardReader
from bytelm.data.shards import Corpus
from bytelm.errors import CorpusError

_LEAST_AHEAD: Final = 64  # windows whose groups are asked for beyond the present batch; a longer batch looks further
_PLANNED_AT_ONCE: Final = 256  # windows placed by one call of the order, which costs little more than placing one
_KEPT_SHARDS: Final = 512  # shards whose frame tables are kept: 24 bytes a frame


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Windows of raw bytes, and where in them another piece of a document begins.

    Attributes:
        windows_BW: uint8 (B, W), contiguous, the caller's own: the loader does not touch it again.
        rows_N: Row of each boundary, int64; boundaries are sorted by row, then by offset.
        offsets_N: Offset of each boundary, int64, in [0, W): the byte there is the first of another piece.
        document_start_N: bool. True: a document ends in front of that byte and another begins with it (at offset 0:
            one begins), so an end of document belongs between. False: a join of bytes that do not belong together.
        first_window: Global index of row 0, over all epochs; row b is window ``first_window + b * ranks``.
        epoch: Epoch of row 0; a batch may reach into the next one.
    """

    windows_BW: torch.Tensor
    rows_N: NDArray[np.int64]
    offsets_N: NDArray[np.int64]
    document_start_N: NDArray[np.bool_]
    first_window: int
    epoch: int


class _Planned(NamedTuple):
    """A window that is to come."""

    window: int
    lane: int
    key: tuple[int, int]
    """Epoch and group."""
    place: int
    """Number within the group."""


@dataclass(frozen=True, slots=True)
class _DecodedGroup:
    """Joined frames, their windows, and the pieces in them; lists where single elements are read."""

    buffer: NDArray[np.uint8]
    starts: list[int]
    first_boundaries: list[int]
    end_boundaries: list[int]
    offsets_P: NDArray[np.int64]
    begins_document_P: NDArray[np.bool_]
    between_documents_P: NDArray[np.bool_]


class WindowLoader:
    """Endless batches of windows; the n-th window is the same for any ranks, threads and batch size.

    Args:
        corpus: An open corpus.
        split: Which of its splits.
        window_bytes: T, the inputs of a window.
        prediction_heads: K; a window is T + K bytes.
        batch_windows: B, windows in a batch.
        seed: Seed of the order.
        rank: Number of this process in [0, ranks); it gets the windows i with i mod ranks = rank.
        ranks: Number of processes.
        threads: Threads that decode ahead, at least 1.

    Raises:
        CorpusError: The corpus has no such split, or not one window in it.

    Example:
        >>> with WindowLoader(corpus, window_bytes=512, prediction_heads=8, batch_windows=4, seed=0) as loader:
        ...     next(loader).windows_BW.shape
        torch.Size([4, 520])
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        split: str = "train",
        window_bytes: int,
        prediction_heads: int,
        batch_windows: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 1,
    ) -> None:
        assert 0 <= rank < ranks
        self._identity: dict[str, int | str] = {
            "order": ORDER_VERSION,
            "fingerprint": corpus.fingerprint,
            "split": split,
            "seed": seed,
            "window_bytes": window_bytes,
            "prediction_heads": prediction_heads,
        }
        self._width = window_bytes + prediction_heads
        self._batch_windows = batch_windows
        self._rank = rank
        self._ranks = ranks
        frame_sizes = corpus.frame_sizes(split)
        self._order = WindowOrder(
            frame_sizes,
            fingerprint=f"{corpus.fingerprint}:{split}",
            seed=seed,
            window_bytes=window_bytes,
            prediction_heads=prediction_heads,
        )
        if not self._order.windows_per_epoch:
            raise CorpusError(
                f"the {split} split of {corpus.path} has {corpus.raw_bytes(split)} bytes, and one window needs "
                f"{window_bytes} + {prediction_heads}; lower data.window_bytes, or ingest more"
            )
        self._frames = _Frames(corpus, split, frame_sizes)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bytelm-loader")
        self._asked: dict[tuple[int, int], Future[_DecodedGroup]] = {}
        self._seek(0)

    @property
    def windows_per_epoch(self) -> int:
        """Windows in one epoch, those of all ranks together."""
        return self._order.windows_per_epoch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WindowBatch:
        """The next batch.

        Raises:
            ShardError: A shard is missing or damaged. None of its bytes is in any batch, and the state stays as it was.
        """
        self._look_ahead()
        batch = self._copy(list(islice(self._coming, self._batch_windows)))
        for _ in range(self._batch_windows):
            self._pass(self._coming.popleft())
        self._next_window += self._batch_windows * self._ranks
        return batch

    def state_dict(self) -> dict[str, int | str]:
        """Where the loader is: the next window that no rank has read, and what its number means."""
        return {"window": self._next_window, **self._identity}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go on where another loader was, whatever its ranks, threads and batch size were.

        Args:
            state: What ``state_dict`` gave.

        Raises:
            CorpusError: The state belongs to another corpus, split, seed or window size.
        """
        for name, ours in self._identity.items():
            if state.get(name) != ours:
                raise CorpusError(
                    f"the saved place in the data belongs to {name} = {state.get(name)}, found {ours}; "
                    "resume with the corpus and the settings that the run began with"
                )
        self._seek(int(state["window"]))

    def close(self) -> None:
        """Stop the threads. The loader gives no further batch."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _seek(self, window: int) -> None:
        for future in self._asked.values():
            future.cancel()
        self._asked.clear()
        self._decoded: dict[tuple[int, int], _DecodedGroup] = {}
        self._in_use: dict[int, tuple[int, int]] = {}
        """The group that each lane is in, as far as batches were given."""
        self._epoch_order: EpochOrder | None = None
        self._coming: deque[_Planned] = deque()
        self._plan = self._planned_from(window)
        self._next_window = window

    def _planned_from(self, window: int) -> Iterator[_Planned]:
        """This rank's windows from a global index on, without end."""
        per_epoch = self.windows_per_epoch
        while True:
            windows_N = windows_of_rank(window, _PLANNED_AT_ONCE, rank=self._rank, ranks=self._ranks)
            for epoch in range(int(windows_N[0]) // per_epoch, int(windows_N[-1]) // per_epoch + 1):
                inside_N = windows_N[windows_N // per_epoch == epoch]
                places = self._epoch(epoch).places(inside_N - epoch * per_epoch)
                columns = (inside_N.tolist(), places.lanes_N.tolist(), places.groups_N.tolist())
                for number, lane, group, place in zip(*columns, places.indices_N.tolist(), strict=True):
                    yield _Planned(number, lane, (epoch, group), place)
            window += _PLANNED_AT_ONCE * self._ranks

    def _look_ahead(self) -> None:
        """Ask for the groups of this batch and of what follows."""
        enough = self._batch_windows + max(self._batch_windows, _LEAST_AHEAD)
        while len(self._coming) < enough:
            planned = next(self._plan)
            if planned.key not in self._decoded and planned.key not in self._asked:
                order = self._epoch(planned.key[0])
                self._asked[planned.key] = self._pool.submit(self._decode, order, planned.key[1])
            self._coming.append(planned)

    def _copy(self, planned: list[_Planned]) -> WindowBatch:
        windows_BW = torch.empty((len(planned), self._width), dtype=torch.uint8)
        target_BW = windows_BW.numpy()
        counts: list[int] = []
        offsets: list[NDArray[np.int64]] = []
        flags: list[NDArray[np.bool_]] = []
        for row, window in enumerate(planned):
            group = self._decoded.get(window.key) or self._take(window.key)
            start = group.starts[window.place]
            target_BW[row] = group.buffer[start : start + self._width]
            first, end = group.first_boundaries[window.place], group.end_boundaries[window.place]
            counts.append(end - first)
            if first < end:
                offsets.append(group.offsets_P[first:end] - start)
                flags.append(group.between_documents_P[first:end])
                if offsets[-1][0] == 0:  # what stood before the window is not seen: that a document begins is enough
                    flags[-1] = flags[-1].copy()
                    flags[-1][0] = group.begins_document_P[first]
        return WindowBatch(
            windows_BW=windows_BW,
            rows_N=np.repeat(np.arange(len(planned), dtype=np.int64), counts),
            offsets_N=np.concatenate(offsets) if offsets else np.zeros(0, np.int64),
            document_start_N=np.concatenate(flags) if flags else np.zeros(0, np.bool_),
            first_window=planned[0].window,
            epoch=planned[0].key[0],
        )

    def _pass(self, planned: _Planned) -> None:
        """Let go of what no later window of this rank needs."""
        present = self._in_use.get(planned.lane)
        if present == planned.key:
            return
        if any(key[0] != planned.key[0] for key in self._in_use.values()):  # the epoch is over
            for key in self._in_use.values():
                self._let_go(key)
            self._in_use = {}
        elif present is not None:
            self._let_go(present)
        self._in_use[planned.lane] = planned.key

    def _take(self, key: tuple[int, int]) -> _DecodedGroup:
        """Wait for a group that was asked for; where it failed, asking again fails again."""
        self._decoded[key] = self._asked[key].result()
        del self._asked[key]
        return self._decoded[key]

    def _let_go(self, key: tuple[int, int]) -> None:
        self._frames.take_back(self._decoded.pop(key).buffer)

    def _epoch(self, epoch: int) -> EpochOrder:
        if self._epoch_order is None or self._epoch_order.epoch != epoch:
            self._epoch_order = self._order.epoch(epoch)
        return self._epoch_order

    def _decode(self, order: EpochOrder, number: int) -> _DecodedGroup:
        """Decode and join the frames of a group; runs in a thread."""
        group = order.group(number)
        buffer, pieces = self._frames.read(group.frames)
        offsets: list[NDArray[np.int64]] = []
        follows_end: list[NDArray[np.bool_]] = []
        begin = 0
        previous_ends = False
        for frame, found in zip(group.frames.tolist(), pieces, strict=True):
            offsets.append(found.offsets_P + begin)
            follows_end += [np.array([previous_ends]), found.follows_end_P[1:]]
            previous_ends = found.ends_document
            begin += self._frames.size(frame)
        offsets_P = np.concatenate(offsets)
        begins_document_P = np.concatenate([found.starts_P for found in pieces])
        return _DecodedGroup(
            buffer=buffer,
            starts=group.starts_N.tolist(),
            first_boundaries=np.searchsorted(offsets_P, group.starts_N).tolist(),
            end_boundaries=np.searchsorted(offsets_P, group.starts_N + self._width).tolist(),
            offsets_P=offsets_P,
            begins_document_P=begins_document_P,
            between_documents_P=begins_document_P & np.concatenate(follows_end),
        )


class _Frames:
    """The frames of a split by number, in whichever shard they are; safe to share between threads."""

    def __init__(self, corpus: Corpus, split: str, frame_sizes: NDArray[np.int64]) -> None:
        self._corpus = corpus
        self._shards = corpus.shards(split)
        self._sizes = frame_sizes
        counts = [-(-shard.raw_bytes // corpus.frame_bytes) for shard in self._shards]
        self._first_frames = np.cumsum([0, *counts[:-1]]).tolist()
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = threading.Lock()
        self._spare: list[NDArray[np.uint8]] = []
        self._of_thread = threading.local()

    def size(self, frame: int) -> int:
        return int(self._sizes[frame])

    def read(self, frames: NDArray[np.int64]) -> tuple[NDArray[np.uint8], list[FramePieces]]:
        """Frames decoded one behind the other, into a buffer that ``take_back`` should get when it has served."""
        buffer = self._buffer(int(self._sizes[frames].sum()))
        view = buffer.data
        pieces: list[FramePieces] = []
        begin = 0
        for frame in frames.tolist():
            end = begin + self.size(frame)
            shard = bisect_right(self._first_frames, frame) - 1
            reader = self._reader(shard)
            pieces.append(reader.read_frame(frame - self._first_frames[shard], view[begin:end], self._decompressor()))
            begin = end
        return buffer, pieces

    def take_back(self, buffer: NDArray[np.uint8]) -> None:
        self._spare.append(buffer)

    def _buffer(self, length: int) -> NDArray[np.uint8]:
        # Fresh memory costs a page fault every 4 KiB, a tenth of the time that decoding takes.
        with contextlib.suppress(IndexError):
            buffer = self._spare.pop()
            if len(buffer) >= length:
                return buffer
        return np.empty(length, np.uint8)

    def _reader(self, shard: int) -> ShardReader:
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = self._corpus.open_shard(self._shards[shard])
                if len(self._readers) > _KEPT_SHARDS:
                    self._readers.popitem(last=False)
            self._readers.move_to_end(shard)
            return self._readers[shard]

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._of_thread, "decompressor"):
            self._of_thread.decompressor = zstandard.ZstdDecompressor()
        return self._of_thread.decompressor
