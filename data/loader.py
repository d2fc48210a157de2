"""Shuffled windows out of a corpus, decoded ahead of the model, resumable at any window.

Which window comes n-th is ``bytelm.data.order``'s to say, and what a window is ``bytelm.data.windows``'s; the decoded
groups are in ``bytelm.data.window_pool``, and ``bytelm.data.batches`` makes batches of them.
"""

import numpy as np
from numpy.typing import NDArray

from bytelm.data.batches import BatchLoader, WindowBatch
from bytelm.data.frames import Frames
from bytelm.data.order import ORDER_VERSION
from bytelm.data.shards import Corpus
from bytelm.data.window_pool import Plan, WindowPool
from bytelm.data.windows import StreamWindows

__all__ = ["WindowBatch", "WindowLoader"]


class WindowLoader(BatchLoader):
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

    Attributes:
        windows_per_epoch: Windows in one epoch, those of all ranks together.

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
        source = StreamWindows(
            Frames(corpus, split), seed=seed, window_bytes=window_bytes, prediction_heads=prediction_heads
        )
        self.windows_per_epoch = source.windows_per_epoch
        identity = {
            "order": ORDER_VERSION,
            "fingerprint": corpus.fingerprint,
            "split": split,
            "seed": seed,
            "window_bytes": window_bytes,
            "prediction_heads": prediction_heads,
        }
        width = window_bytes + prediction_heads
        pool = WindowPool([source], width=width, threads=threads)
        super().__init__(pool, identity, width=width, batch_windows=batch_windows, rank=rank, ranks=ranks)

    def _plan(self, windows_N: NDArray[np.int64]) -> Plan:
        return self._pool.plan(np.zeros_like(windows_N), windows_N)
