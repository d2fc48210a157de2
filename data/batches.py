"""Batches of windows out of a pool, in blocks: what the loaders of one and of several corpora share.

Windows are planned and cut in blocks of some megabytes, so that what Python has to do is spread over many of them, and
each batch is then one copy. The next block is decoded while a block is given.

Suffixes: B windows of a batch, W = T + K bytes of a window, N boundaries or windows.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from bytelm.data.order import windows_of_rank
from bytelm.data.window_pool import Block, Plan, WindowPool
from bytelm.errors import CorpusError

_BLOCK_BYTES: Final = 8 << 20
_BLOCK_WINDOWS: Final = 8192
_BLOCKS_FETCHED: Final = 4
_BLOCK_GROWTH: Final = 4  # the first block is one batch, so that it is there soon


class WindowBatch(NamedTuple):
    """Windows of raw bytes, and where in them another piece of a document begins.

    A tuple is made in a third of the time of a frozen dataclass, which is much where batches are small.

    Attributes:
        windows_BW: uint8 (B, W), contiguous, the caller's own: the loader does not touch it again.
        rows_N: Row of each boundary, int64; boundaries are sorted by row, then by offset.
        offsets_N: Offset of each boundary, int64, in [0, W): the byte there is the first of another piece, or the
            first that is no data.
        document_start_N: bool. A document begins with that byte, so an end of document belongs in front of it.
        document_end_N: bool. A document ends in front of that byte, within the window. Where none begins or ends,
            bytes are joined that do not belong together.
        data_bytes_B: How many bytes of each row are data, int64; what stands behind them has no meaning. None where
            all are.
        corpora_B: Index of the corpus that each row comes from, int64.
        first_window: Global index of row 0, over all epochs; row b is window ``first_window + b * ranks``.
        epoch: Epoch of row 0 in its corpus; a batch may reach into the next one.
    """

    windows_BW: torch.Tensor
    rows_N: NDArray[np.int64]
    offsets_N: NDArray[np.int64]
    document_start_N: NDArray[np.bool_]
    document_end_N: NDArray[np.bool_]
    data_bytes_B: NDArray[np.int64] | None
    corpora_B: NDArray[np.int64]
    first_window: int
    epoch: int


class BatchLoader(ABC):
    """Batches of one rank, resumable at any window. Which windows they are is a subclass's to say.

    Args:
        pool: What windows come from.
        identity: All that the number of a window depends on, as JSON values: a saved place counts only if it is equal.
        width: W.
        batch_windows: B.
        rank: In [0, ranks).
        ranks: Processes that share the windows.
        end_window: See ``WindowLoader``.

    Attributes:
        replaced_windows: Windows given so far that stand in for damaged ones; only where that was asked for.
    """

    def __init__(
        self,
        pool: WindowPool,
        identity: Mapping[str, Any],
        *,
        width: int,
        batch_windows: int,
        rank: int,
        ranks: int,
        end_window: int | None,
    ) -> None:
        assert 0 <= rank < ranks
        self._pool = pool
        self._identity = identity
        self._batch_windows = batch_windows
        self._rank = rank
        self._ranks = ranks
        self._end_window = end_window
        self._most_batches = max(1, min(_BLOCK_BYTES // width, _BLOCK_WINDOWS) // batch_windows)
        self.replaced_windows = 0
        self._told_damage = 0
        self._begin(0)

    @property
    def damage(self) -> tuple[str, ...]:
        """What was found damaged and replaced, one line for each place."""
        return tuple(self._pool.damage)

    def new_damage(self) -> tuple[str, ...]:
        """What of it was found since this was asked for the last time."""
        found = self.damage[self._told_damage :]
        self._told_damage += len(found)
        return found

    @abstractmethod
    def _plan(self, windows_N: NDArray[np.int64]) -> Plan:
        """Where the windows with these global indices come from."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WindowBatch:
        """The next batch.

        Raises:
            StopIteration: The next one would begin at ``end_window`` or behind it.
            ShardError: A shard is missing or damaged. None of its bytes is in any batch, and the state stays as it was.
        """
        block, number = self._block, self._given
        if block is None or number == len(block.first_marks) - 1:
            if self._end_window is not None and self._next_window >= self._end_window:
                raise StopIteration
            block, number = self._cut_block(), 0
        begin, end = number * self._batch_windows, (number + 1) * self._batch_windows
        marks = slice(block.first_marks[number], block.first_marks[number + 1])
        batch = WindowBatch(
            torch.from_numpy(self._pool.copy(block.at_N[begin:end])),
            block.rows_M[marks],
            block.offsets_M[marks],
            block.starts_M[marks],
            block.ends_M[marks],
            None if block.data_bytes_N is None else block.data_bytes_N[begin:end],
            block.plan.sources_N[begin:end],
            self._next_window + (self._rank - self._next_window) % self._ranks,
            int(block.plan.epochs_N[begin]),
        )
        if block.replaced_N is not None:
            self.replaced_windows += int(np.count_nonzero(block.replaced_N[begin:end]))
        self._given = number + 1
        self._next_window += self._batch_windows * self._ranks
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: the next window that no rank has read, and what its number means."""
        return {"window": self._next_window, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
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
        self._pool.clear()
        self._begin(int(state["window"]))

    def close(self) -> None:
        """Stop the threads. The loader gives no further batch."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, window: int) -> None:
        """Nothing is planned, and this window comes next."""
        self._next_window = window
        self._block: Block | None = None
        self._given = 0
        self._batches = 1
        self._planned: tuple[int, Plan] | None = None

    def _cut_block(self) -> Block:
        """Take the next block, and have the one after it decoded meanwhile."""
        self._block = block = self._pool.cut(self._plan_from(self._next_window), self._batch_windows)
        self._given = 0
        self._batches = min(self._batches * _BLOCK_GROWTH, self._most_batches)
        batches = len(block.first_marks) - 1
        following = self._next_window + batches * self._batch_windows * self._ranks
        ahead_N = self._windows_from(following, self._batches)
        if len(ahead_N):
            self._pool.ask(self._plan_from(following))
        if self._pool.fetches:  # further ahead than is decoded: a network answers late
            ahead_N = self._windows_from(following + len(ahead_N) * self._ranks, _BLOCKS_FETCHED * self._batches)
            if len(ahead_N):
                self._pool.fetch(self._plan(ahead_N))
        return block

    def _plan_from(self, window: int) -> Plan:
        if self._planned is None or self._planned[0] != window:
            self._planned = window, self._plan(self._windows_from(window, self._batches))
        return self._planned[1]

    def _windows_from(self, window: int, batches: int) -> NDArray[np.int64]:
        """This rank's windows of that many batches, or of as many as there are before the end."""
        if self._end_window is not None:
            left = max(0, self._end_window - window)
            batches = min(batches, -(-left // (self._batch_windows * self._ranks)))
        return windows_of_rank(window, batches * self._batch_windows, rank=self._rank, ranks=self._ranks)
