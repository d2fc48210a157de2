"""Shuffled windows out of a corpus, decoded ahead of the model, resumable at any window.

Which window comes n-th is ``bytelm.data.order``'s to say, and what a window is ``bytelm.data.windows``'s; the decoded
groups are in ``bytelm.data.window_pool``, and ``bytelm.data.batches`` makes batches of them.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bytelm.data.batches import Batches, WindowBatch
from bytelm.data.frames import Frames
from bytelm.data.order import ORDER_VERSION
from bytelm.data.shards import Corpus
from bytelm.data.window_pool import Plan, WindowPool
from bytelm.data.windows import StreamWindows
from bytelm.errors import CorpusError

__all__ = ["WindowBatch", "WindowLoader"]


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
        self._identity: dict[str, int | str] = {
            "order": ORDER_VERSION,
            "fingerprint": corpus.fingerprint,
            "split": split,
            "seed": seed,
            "window_bytes": window_bytes,
            "prediction_heads": prediction_heads,
        }
        source = StreamWindows(
            Frames(corpus, split), seed=seed, window_bytes=window_bytes, prediction_heads=prediction_heads
        )
        self.windows_per_epoch = source.windows_per_epoch
        width = window_bytes + prediction_heads
        self._pool = WindowPool([source], width=width, threads=threads)
        self._batches = Batches(
            self._pool, self._plan, width=width, batch_windows=batch_windows, rank=rank, ranks=ranks
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WindowBatch:
        """The next batch.

        Raises:
            ShardError: A shard is missing or damaged. None of its bytes is in any batch, and the state stays as it was.
        """
        return self._batches.next()

    def state_dict(self) -> dict[str, int | str]:
        """Where the loader is: the next window that no rank has read, and what its number means."""
        return {"window": self._batches.next_window, **self._identity}

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
        self._batches.seek(int(state["window"]))

    def close(self) -> None:
        """Stop the threads. The loader gives no further batch."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, windows_N: NDArray[np.int64]) -> Plan:
        return self._pool.plan(np.zeros_like(windows_N), windows_N)
