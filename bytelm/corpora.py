"""What a run is trained on: one corpus, or several, each with its weight.

Several are given as ``address:weight``, such as ``a/:0.7`` and ``s3://bucket/b:0.3``; what counts is the ratio of the
weights. A run keeps its corpora, and may change their weights when it is resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bytelm.config import RunConfig
from bytelm.data.batches import BatchLoader
from bytelm.data.cache import BlockCache, cache_folder
from bytelm.data.loader import WindowLoader
from bytelm.data.mixture import MixtureLoader
from bytelm.data.schedule import whole_weights
from bytelm.data.shards import Corpus
from bytelm.data.storage import parse_weighted
from bytelm.errors import ConfigError
from bytelm.evaluate import some_bytes

Given = Path | str | Sequence[str]
"""The folder or address of a corpus, or several, each with its weight."""


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """The corpora of a run, opened. ``open_corpora`` makes one.

    Attributes:
        corpora: One or more.
        weights: The weight of each as text; None where there is just one.
    """

    corpora: tuple[Corpus, ...]
    weights: tuple[str, ...] | None

    @property
    def place(self) -> str | list[str]:
        """Where they are, so that they can be opened again from any folder."""
        if self.weights is None:
            return self.corpora[0].place
        return [f"{corpus.place}:{weight}" for corpus, weight in zip(self.corpora, self.weights, strict=True)]

    @property
    def fingerprint(self) -> str | list[str]:
        """Which ones they are."""
        fingerprints = [corpus.fingerprint for corpus in self.corpora]
        return fingerprints[0] if self.weights is None else fingerprints

    def loader(self, config: RunConfig, *, batch_windows: int, rank: int = 0, ranks: int = 1) -> BatchLoader:
        """Batches of training windows.

        Args:
            config: Windows, heads, packing, seed, threads.
            batch_windows: Windows of a batch of this process.
            rank: Its number.
            ranks: Processes that share the windows.

        Raises:
            ConfigError: The weights make no schedule.
            CorpusError: A corpus is shorter than one window.
        """
        settings = {
            "window_bytes": config.data.window_bytes,
            "prediction_heads": config.ahead_bytes,
            "batch_windows": batch_windows,
            "rank": rank,
            "ranks": ranks,
            "seed": config.train.seed,
            "threads": config.data.loader_threads,
            "packing": config.data.packing,
            "on_damage": config.data.on_damage,
        }
        if self.weights is None:
            return WindowLoader(self.corpora[0], **settings)
        return MixtureLoader(self.corpora, self.weights, **settings)

    def load_state(self, loader: BatchLoader, state: dict[str, object]) -> None:
        """Let a loader go on at a saved place, with these weights from there on.

        Raises:
            CorpusError: The place is one in other corpora, or with other settings.
        """
        loader.load_state_dict(state)
        if self.weights is not None:
            assert isinstance(loader, MixtureLoader)
            loader.change_weights(self.weights)

    def held_out(self, config: RunConfig) -> list[bytes]:
        """The documents of every validation: of each corpus by its weight; none where nothing is held out."""
        totals = [corpus.raw_bytes("validation") for corpus in self.corpora]
        parts = [1] if self.weights is None else whole_weights(self.weights)
        parts = [part if total else 0 for part, total in zip(parts, totals, strict=True)]
        documents: list[bytes] = []
        for corpus, total, part in zip(self.corpora, totals, parts, strict=True):
            limit = config.train.validation_bytes * part // max(1, sum(parts))
            if limit:
                found = corpus.documents("validation")
                documents += some_bytes(found, total, limit_bytes=limit, window_bytes=config.data.window_bytes)
        return documents


def open_corpora(given: Given, config: RunConfig) -> Corpora:
    """Open what a run is to be trained on.

    Args:
        given: One corpus, or several with weights; one without a weight has weight 1.
        config: Its ``data.cache_bytes`` limits what is kept of remote ones.

    Raises:
        CorpusError: A corpus is missing or damaged.
        ConfigError: A weight is no number, or no weight is above 0; or an address cannot be reached with what is
            installed.
    """
    texts = [given] if isinstance(given, Path | str) else list(given)
    if not texts:
        raise ConfigError("no corpus is given; name one at least, with --corpus")
    pairs = [(text, "1") if isinstance(text, Path) else parse_weighted(text) for text in texts]
    whole_weights([weight for _, weight in pairs])  # one corpus of weight 0 gives nothing, too
    cache = BlockCache(cache_folder(), config.data.cache_bytes)
    corpora = tuple(Corpus.open(address, cache=cache) for address, _ in pairs)
    return Corpora(corpora=corpora, weights=None if len(pairs) == 1 else tuple(weight for _, weight in pairs))
