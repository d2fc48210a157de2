"""Vocabularies: what the ids stand for that a model reads and predicts.

In every one of them ids 0–255 are the bytes themselves and ``EOD`` is 256. The byte vocabulary ends there. That of a
BPE baseline (``bytelm.bpe``) goes on with ids that stand for several bytes each; trunk, heads, loss, trainer and
decoder are the same for both. Widths are padded to a multiple of 64, which matrix products like.

``EOD`` stands between two documents: as a target it says that the document ends here, as an input it says that the
next one begins. It is never stored in a corpus, where all 256 byte values are data.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from bytelm.errors import ConfigError

BYTE_COUNT: Final = 256
"""Ids below this are bytes."""

EOD: Final = 256
"""End of document when predicted, beginning of the next when read."""

BYTE_VOCABULARY: Final = "bytes"
"""Name of the vocabulary of bytes, as settings have it."""

MOST_IDS: Final = 1 << 17
_FEWEST_IDS: Final = 258
_NAME: Final = re.compile(r"bpe:(\d+)(k?)")
_WIDTH_MULTIPLE: Final = 64


class Vocab(ABC):
    """What ids stand for.

    Attributes:
        name: As ``model.vocabulary`` has it.
        count: Ids that mean something: they can be predicted, and those from ``count`` on never are.
        bytes_per_id: Mean bytes that an id of the training data stands for; 1 for bytes.
        sizes: Bytes that each id stands for, as many numbers as the vocabulary is wide; 0 for ``EOD`` and padding.
    """

    name: str
    count: int
    bytes_per_id: float
    sizes: npt.NDArray[np.int64]

    @abstractmethod
    def encode(self, data: bytes) -> npt.NDArray[np.int64]:
        """Ids of some bytes, without ``EOD``; what the ids stand for is ``data``, byte for byte."""
        ...

    @abstractmethod
    def bytes_of(self, identifier: int) -> bytes:
        """What an id stands for; nothing for ``EOD``."""
        ...

    def decode(self, ids: Sequence[int]) -> bytes:
        """What ids stand for, side by side."""
        return b"".join(map(self.bytes_of, ids))


class ByteVocab(Vocab):
    """Every byte is an id."""

    name = BYTE_VOCABULARY
    count = EOD + 1
    bytes_per_id = 1.0

    def __init__(self) -> None:
        self.sizes = (np.arange(VOCABULARY_SIZE) < BYTE_COUNT).astype(np.int64)

    def encode(self, data: bytes) -> npt.NDArray[np.int64]:
        """See ``Vocab``."""
        return np.frombuffer(data, np.uint8).astype(np.int64)

    def bytes_of(self, identifier: int) -> bytes:
        """See ``Vocab``."""
        return bytes((identifier,)) if identifier < BYTE_COUNT else b""


def ids_of(name: str) -> int:
    """Ids that mean something in the vocabulary of a name, ``EOD`` included.

    Args:
        name: ``bytes``, or ``bpe:SIZE``; 4k is 4096.

    Raises:
        ConfigError: There is no such vocabulary.

    Example:
        >>> ids_of("bytes"), ids_of("bpe:1000"), ids_of("bpe:4k")
        (257, 1000, 4096)
    """
    if name == BYTE_VOCABULARY:
        return EOD + 1
    found = _NAME.fullmatch(name)
    count = int(found[1]) * (1024 if found[2] else 1) if found else 0
    if not _FEWEST_IDS <= count <= MOST_IDS:
        raise ConfigError(
            f"there is no vocabulary {name!r}; use bytes, or bpe:SIZE with a size from {_FEWEST_IDS} to {MOST_IDS}, "
            "such as bpe:4096"
        )
    return count


def vocabulary_size(name: str) -> int:
    """Width of every prediction head: the ids of the vocabulary and unused ones up to a multiple of 64.

    Example:
        >>> vocabulary_size("bytes"), vocabulary_size("bpe:1000")
        (320, 1024)
    """
    return -(-ids_of(name) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE


VOCABULARY_SIZE: Final = vocabulary_size(BYTE_VOCABULARY)
"""That of the bytes: 320."""

BYTES: Final = ByteVocab()
"""The vocabulary of bytes."""
