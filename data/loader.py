"""Shuffled windows out of a corpus, decoded ahead of the model, resumable at any window.

Which window comes n-th is ``bytelm.data.order``'s to say; the decoded groups are in ``bytelm.data.window_pool``. Here
windows become batches: they are planned and cut in blocks of some megabytes, so that what Python has to do is spread
over many windows, and each batch is then one copy.

Suffixes: B windows of a batch, W = T + K bytes of a window, N boundaries or windows.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from bytelm.data.frames import Frames
from bytelm.data.order import ORDER_VERSION, windows_of_rank
from bytelm.data.shards import Corpus
from bytelm.data.window_pool import Block, Plan, WindowPool
from bytelm.data.windows import StreamWindows
from bytelm.errors import CorpusError

_BLOCK_BYTES: Final = 8 << 20
_BLOCK_WINDOWS: Final = 8192
_BLOCK_GROWTH: Final = 4  # the first block is one batch, so that it is there soon


class WindowBatch(NamedTuple):
    """Windows of raw bytes, and where in them another piece of a document begins.

    A tuple is made in a third of the time of a frozen dataclass, which is much where batches are small.

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
        self._batch_windows = batch_windows
        self._rank = rank
        self._ranks = ranks
        width = window_bytes + prediction_heads
        windows = min(_BLOCK_BYTES // width, _BLOCK_WINDOWS)
        self._most_batches = max(1, windows // batch_windows)
        source = StreamWindows(
            Frames(corpus, split), seed=seed, window_bytes=window_bytes, prediction_heads=prediction_heads
        )
        self.windows_per_epoch = source.windows_per_epoch
        self._pool = WindowPool([source], width=width, threads=threads)
        self._seek(0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WindowBatch:
        """The next batch.

        Raises:
            ShardError: A shard is missing or damaged. None of its bytes is in any batch, and the state stays as it was.
        """
        block, number = self._block, self._given
        if block is None or number == len(block.first_marks) - 1:
            block, number = self._cut_block(), 0
        rows = slice(number * self._batch_windows, (number + 1) * self._batch_windows)
        marks = slice(block.first_marks[number], block.first_marks[number + 1])
        first = self._next_window + (self._rank - self._next_window) % self._ranks
        batch = WindowBatch(
            torch.from_numpy(self._pool.copy(block.at_N[rows])),
            block.rows_M[marks],
            block.offsets_M[marks],
            self._document_starts[marks],
            first,
            first // self.windows_per_epoch,
        )
        self._given = number + 1
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
        self._pool.clear()
        self._seek(int(state["window"]))

    def close(self) -> None:
        """Stop the threads. The loader gives no further batch."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _seek(self, window: int) -> None:
        self._next_window = window
        self._block: Block | None = None
        self._given = 0
        self._batches = 1
        self._planned: tuple[int, Plan] | None = None

    def _cut_block(self) -> Block:
        """Take the next block, and have the one after it decoded meanwhile."""
        self._block = block = self._pool.cut(self._plan(self._next_window), self._batch_windows)
        self._document_starts = block.starts_M & (block.ends_M | (block.offsets_M == 0))
        self._given = 0
        self._batches = min(self._batches * _BLOCK_GROWTH, self._most_batches)
        batches = len(block.first_marks) - 1
        self._pool.ask(self._plan(self._next_window + batches * self._batch_windows * self._ranks))
        return block

    def _plan(self, window: int) -> Plan:
        if self._planned is None or self._planned[0] != window:
            count = self._batches * self._batch_windows
            windows_N = windows_of_rank(window, count, rank=self._rank, ranks=self._ranks)
            self._planned = window, self._pool.plan(0, windows_N)
        return self._planned[1]
