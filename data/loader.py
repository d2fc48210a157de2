"""Shuffled windows out of a corpus, decoded ahead of the model, resumable at any window.

Which window comes n-th is ``bytelm.data.order``'s to say, and what a window is ``bytelm.data.windows``'s; the decoded
groups are in ``bytelm.data.window_pool``, and ``bytelm.data.batches`` makes batches of them.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bytelm.data.batches import BatchLoader, WindowBatch
from bytelm.data.document_windows import DocumentWindows
from bytelm.data.frames import Frames
from bytelm.data.order import MOST_LANES, ORDER_VERSION
from bytelm.data.shards import Corpus
from bytelm.data.window_pool import Plan, WindowPool
from bytelm.data.windows import StreamWindows, Windows

__all__ = ["OnDamage", "Packing", "WindowBatch", "WindowLoader", "windows_of"]

Packing = Literal["stream", "document"]
OnDamage = Literal["stop", "replace"]


def windows_of(
    corpus: Corpus,
    split: str,
    packing: Packing,
    *,
    seed: int,
    window_bytes: int,
    prediction_heads: int,
    most_lanes: int = MOST_LANES,
) -> Windows:
    """A split of a corpus as windows; the arguments are those of ``WindowLoader``, and of ``WindowOrder``."""
    policy = StreamWindows if packing == "stream" else DocumentWindows
    return policy(
        Frames(corpus, split),
        seed=seed,
        window_bytes=window_bytes,
        prediction_heads=prediction_heads,
        most_lanes=most_lanes,
    )


class WindowLoader(BatchLoader):
    """Batches of windows; the n-th window is the same for any ranks, threads and batch size.

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
        packing: ``stream`` cuts windows one behind the other, across documents; ``document`` begins each with a
            document and fills it with whole ones, see ``bytelm.data.document_windows``.
        on_damage: ``stop`` raises where a shard is missing or damaged; ``replace`` gives other windows of the epoch in
            the place of those that cannot be read, always the same ones, and counts them.
        end_window: Batches end with the one that reaches this global index, and nothing behind it is decoded; None:
            they go on, epoch after epoch.

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
        packing: Packing = "stream",
        on_damage: OnDamage = "stop",
        end_window: int | None = None,
    ) -> None:
        source = windows_of(
            corpus, split, packing, seed=seed, window_bytes=window_bytes, prediction_heads=prediction_heads
        )
        self.windows_per_epoch = source.windows_per_epoch
        identity = {
            "order": ORDER_VERSION,
            "fingerprint": corpus.fingerprint,
            "split": split,
            "packing": packing,
            "seed": seed,
            "window_bytes": window_bytes,
            "prediction_heads": prediction_heads,
        }
        width = window_bytes + prediction_heads
        pool = WindowPool([source], width=width, threads=threads, replace_damaged=on_damage == "replace")
        super().__init__(
            pool, identity, width=width, batch_windows=batch_windows, rank=rank, ranks=ranks, end_window=end_window
        )

    def _plan(self, windows_N: NDArray[np.int64]) -> Plan:
        return self._pool.plan(np.zeros_like(windows_N), windows_N)
