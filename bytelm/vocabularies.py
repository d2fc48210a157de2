"""The vocabulary of a new run: the bytes, or one that is learnt from its training data."""

import itertools
from collections.abc import Iterator
from typing import Final

from bytelm.bpe import split_places, train_bpe
from bytelm.config import RunConfig
from bytelm.corpora import Corpora
from bytelm.vocab import BYTE_VOCABULARY, BYTES, Vocab

_LEARNT_BYTES: Final = 16 << 20
"""Of the training split, from which merges are learnt."""
_PIECE_BYTES: Final = 1 << 16
_PIECES_OF_ALL: Final = 64


def learn_vocabulary(config: RunConfig, corpora: Corpora) -> Vocab:
    """The vocabulary that settings name, made from training data where it is made from data; always the same one.

    Args:
        config: Of the run; its seed is of no account.
        corpora: Of the run; each gives as much as its weight says.

    Raises:
        ConfigError: The library that it needs is missing.
        CorpusError: A corpus is shorter than one window.
    """
    if config.model.vocabulary == BYTE_VOCABULARY:
        return BYTES
    return train_bpe(_shuffled_pieces(config, corpora), config.model.vocabulary)


def _shuffled_pieces(config: RunConfig, corpora: Corpora) -> Iterator[bytes]:
    """Some training data, from all over the corpora, without the torn words at the ends of windows."""
    total = sum(corpus.raw_bytes("train") for corpus in corpora.corpora)
    least = min(corpus.raw_bytes("train") for corpus in corpora.corpora)
    window_bytes = max(config.data.window_bytes, min(_PIECE_BYTES, least // _PIECES_OF_ALL))
    of_pieces = config.model_copy(
        update={
            "data": config.data.model_copy(update={"window_bytes": window_bytes, "packing": "stream"}),
            "train": config.train.model_copy(update={"seed": 0}),
        }
    )
    with corpora.loader(of_pieces, batch_windows=1) as loader:
        for batch in itertools.islice(loader, max(1, min(_LEARNT_BYTES, total) // window_bytes)):
            window = batch.windows_BW[0, :window_bytes].numpy().tobytes()
            first, *others = split_places(window) or [0]
            yield window[first : others[-1] if others else None]


def with_vocabulary(config: RunConfig, vocabulary: Vocab) -> RunConfig:
    """Settings that know how long the ids of their vocabulary are; as they were where it is not theirs."""
    if config.model.vocabulary != vocabulary.name:
        return config
    model = config.model.model_copy(update={"bytes_per_id": vocabulary.bytes_per_id})
    return config.model_copy(update={"model": model})
