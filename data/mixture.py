"""Shuffled windows out of several corpora at once, each with its weight, resumable at any window.

Which corpus gives the n-th window is ``bytelm.data.schedule``'s to say; each corpus's windows come in its own order,
one after another, whatever comes between them. The memory is that of one corpus: many corpora share its lanes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bytelm.data.batches import BatchLoader
from bytelm.data.loader import OnDamage, Packing, windows_of
from bytelm.data.order import MOST_LANES, ORDER_VERSION
from bytelm.data.schedule import Schedule, whole_weights
from bytelm.data.shards import Corpus
from bytelm.data.window_pool import Plan, WindowPool
from bytelm.errors import CorpusError

_LEAST_LANES: Final = 8


class MixtureLoader(BatchLoader):
    """Batches of windows out of several corpora; as ``WindowLoader`` in everything else.

    Args:
        corpora: Open corpora.
        weights: The weight of each as text: ``0.7``, ``2``, ``1/3``; what counts is their ratio.
        split: Which of their splits.
        window_bytes: T, the inputs of a window.
        prediction_heads: K; a window is T + K bytes.
        batch_windows: B, windows in a batch.
        seed: Seed of the orders.
        rank: Number of this process in [0, ranks); it gets the windows i with i mod ranks = rank.
        ranks: Number of processes.
        threads: Threads that decode ahead, at least 1.
        packing: See ``WindowLoader``.
        on_damage: See ``WindowLoader``; windows are replaced by some of the same corpus.

    Attributes:
        windows_per_epoch: Of each corpus.

    Raises:
        ConfigError: The weights make no schedule.
        CorpusError: A corpus has no such split, or not one window in it, or there are two of the same.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: Sequence[str],
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
        assert len(corpora) == len(weights)
        fingerprints = [corpus.fingerprint for corpus in corpora]
        for corpus in corpora:
            if fingerprints.count(corpus.fingerprint) > 1:
                raise CorpusError(f"{corpus.folder.address} is given twice; give it once, with the sum of its weights")
        lanes = max(_LEAST_LANES, MOST_LANES // len(corpora))
        sources = [
            windows_of(
                corpus,
                split,
                packing,
                seed=seed,
                window_bytes=window_bytes,
                prediction_heads=prediction_heads,
                most_lanes=lanes,
            )
            for corpus in corpora
        ]
        self.windows_per_epoch = [source.windows_per_epoch for source in sources]
        self._schedule = Schedule([(0, weights)])
        identity = {
            "order": ORDER_VERSION,
            "lanes": lanes,
            "fingerprints": fingerprints,
            "split": split,
            "packing": packing,
            "seed": seed,
            "window_bytes": window_bytes,
            "prediction_heads": prediction_heads,
        }
        width = window_bytes + prediction_heads
        pool = WindowPool(sources, width=width, threads=threads, replace_damaged=on_damage == "replace")
        super().__init__(
            pool, identity, width=width, batch_windows=batch_windows, rank=rank, ranks=ranks, end_window=end_window
        )

    @property
    def weights(self) -> tuple[str, ...]:
        """The present weights."""
        return self._schedule.weights

    def change_weights(self, weights: Sequence[str]) -> None:
        """Other weights from the next window on. Nothing is lost or repeated: each corpus goes on where it is.

        All ranks must do it at the same window.

        Raises:
            ConfigError: The weights make no schedule, or are not one for each corpus.
        """
        if len(weights) != len(self.weights) or whole_weights(weights) != whole_weights(self.weights):
            self._schedule = self._schedule.changed(self._next_window, weights)
            self._begin(self._next_window)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, the weights from which window on, and where it is in each corpus, in windows."""
        window = self._next_window
        schedule = [[begin, list(weights)] for begin, weights in self._schedule.stretches]
        return {**super().state_dict(), "schedule": schedule, "positions": self._schedule.counts(window).tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader was, with its weights, whatever its ranks, threads and batch size were.

        Args:
            state: What ``state_dict`` gave.

        Raises:
            CorpusError: The state belongs to other corpora, or to another split, seed or window size.
        """
        super().load_state_dict(state)
        self._schedule = Schedule([(begin, tuple(weights)) for begin, weights in state["schedule"]])

    def _plan(self, windows_N: NDArray[np.int64]) -> Plan:
        return self._pool.plan(*self._schedule.corpora(windows_N))
