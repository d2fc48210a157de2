r"""A byte-level BPE vocabulary, the baseline that a byte model is measured against.

Data is first split into words as GPT-4's vocabulary does it (letters with one character in front, up to three digits,
signs with line ends, white space), where every byte from 0x80 on counts as a letter, so that no character of several
bytes is torn. Within words merges are learnt and applied by the ``tokenizers`` library, which is given one character a
byte, U+0000 to U+00FF, and no normalisation, no special words and no unknown id: nothing can be lost or added, and any
bytes, UTF-8 or not, are the bytes of their ids.

An id is what it is in every vocabulary (``bytelm.vocab``): the 256 bytes, ``EOD``, and from 257 on merges in the order
in which they were learnt.

Source:
    Sennrich et al. 2016, arXiv 1508.07909, on bytes as in Radford et al. 2019 (GPT-2), section 2.2.
"""

import itertools
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bytelm.errors import CheckpointError, ConfigError, CorpusError
from bytelm.own_files import ANYTHING, TEXT, WHOLE, Fields, FormError, ListOf, Number, parse_json
from bytelm.vocab import BYTE_COUNT, BYTE_VOCABULARY, BYTES, EOD, MOST_IDS, Vocab, ids_of, vocabulary_size

FORMAT: Final = "bytelm bpe vocabulary"
FORMAT_VERSION: Final = 1

_FILE: Final = Fields({"format": TEXT, "version": WHOLE}, others=ANYTHING)
_MERGES: Final = Fields(
    {
        "name": TEXT,
        "bytes_per_id": Number(1.0, 1e6),
        "merges": ListOf(ListOf(Number(0, MOST_IDS, whole=True), least=2, most=2), most=MOST_IDS),
    },
    others=ANYTHING,
)
_LONGEST_BYTES: Final = 1 << 16

_SPLIT: Final = re.compile(
    rb"'(?i:[sdmt]|ll|ve|re)|[^\r\nA-Za-z\x80-\xff0-9]?[A-Za-z\x80-\xff]+|[0-9]{1,3}"
    rb"| ?[^\sA-Za-z\x80-\xff0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BEHIND_LETTER: Final = re.compile(rb"[A-Za-z\x80-\xff](?=[^A-Za-z\x80-\xff])")
_REMEMBERED_BYTES: Final = 32
"""Of a word whose ids are remembered, at most."""
_REMEMBERED_WORDS: Final = 1 << 18


class BPEVocab(Vocab):
    """Bytes, ``EOD`` and merges.

    Args:
        merges: Pairs of ids in the order in which they are merged; the n-th makes id 257 + n.
        name: ``bpe:SIZE``; where fewer merges were found in the data than asked for, the last ids are never used.
        bytes_per_id: Mean bytes of an id in the data that the merges were learnt from.
    """

    def __init__(self, merges: list[tuple[int, int]], *, name: str, bytes_per_id: float) -> None:
        self.name = name
        self.count = EOD + 1 + len(merges)
        self.bytes_per_id = bytes_per_id
        self.merges = merges
        self._bytes = [bytes((value,)) for value in range(BYTE_COUNT)] + [b""]
        for left, right in merges:
            self._bytes.append(self._bytes[left] + self._bytes[right])
        assert self.count <= ids_of(name)
        self.sizes = np.zeros(vocabulary_size(name), np.int64)
        self.sizes[: self.count] = [len(one) for one in self._bytes]

    def encode(self, data: bytes) -> npt.NDArray[np.int64]:
        """See ``Vocab``."""
        ids = list(itertools.chain.from_iterable(map(self._words.__getitem__, _SPLIT.findall(data))))
        found = np.array(ids, np.int64)
        assert int(self.sizes[found].sum()) == len(data), "ids that do not stand for all bytes"
        return found

    def bytes_of(self, identifier: int) -> bytes:
        """See ``Vocab``."""
        return self._bytes[identifier] if identifier < self.count else b""

    def to_json(self) -> bytes:
        """The vocabulary as a file, from which ``from_json`` makes the same one."""
        facts = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "name": self.name,
            "bytes_per_id": self.bytes_per_id,
            "merges": self.merges,
        }
        return json.dumps(facts, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes, place: str) -> "BPEVocab":
        """A vocabulary out of its file.

        Args:
            content: Of the file.
            place: Where it was, for errors.

        Raises:
            CheckpointError: It is damaged or of an unknown version.
        """
        try:
            facts = parse_json(content, _FILE)
            if facts["format"] != FORMAT or facts["version"] != FORMAT_VERSION:
                raise CheckpointError(
                    f"{place} is {facts['format']!r}, version {facts['version']}, and this bytelm reads {FORMAT!r}, "
                    f"version {FORMAT_VERSION}; install another bytelm"
                )
            _MERGES.check(facts)
            merges = [(left, right) for left, right in facts["merges"]]
            if any(max(pair) >= EOD + 1 + place or EOD in pair for place, pair in enumerate(merges)):
                raise FormError("a merge of an id that is not there yet", "merges")
            if EOD + 1 + len(merges) > ids_of(facts["name"]):
                raise FormError(f"there are {len(merges):,}, more than {facts['name']} has ids for", "merges")
            sizes = [1] * BYTE_COUNT + [0]
            for left, right in merges:
                sizes.append(sizes[left] + sizes[right])
                if sizes[-1] > _LONGEST_BYTES:  # two of two of two …: a few lines can ask for all memory there is
                    raise FormError(f"an id stands for more than {_LONGEST_BYTES:,} bytes", "merges")
            return cls(merges, name=facts["name"], bytes_per_id=float(facts["bytes_per_id"]))
        except (FormError, ConfigError) as error:
            raise CheckpointError(f"{place} is no vocabulary or a damaged one ({error}); train again") from error

    @cached_property
    def _words(self) -> "_Words":
        characters = [one.decode("latin-1") for one in self._bytes]
        vocab: dict[str, int] = {}
        for identifier, one in enumerate(characters):
            if one:  # of two ids with the same bytes the first one is made, and the other is never used
                vocab.setdefault(one, identifier)
        merges = [(characters[left], characters[right]) for left, right in self.merges]
        library = tokenizers_library()
        return _Words(library.Tokenizer(library.models.BPE(vocab=vocab, merges=merges)))


class _Words(dict[bytes, tuple[int, ...]]):
    """Ids of words, found when they are first asked for."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: bytes) -> tuple[int, ...]:
        ids = tuple(self._tokenizer.encode(word.decode("latin-1"), add_special_tokens=False).ids)
        if len(word) <= _REMEMBERED_BYTES:
            if len(self) >= _REMEMBERED_WORDS:
                self.clear()
            self[word] = ids
        return ids


def train_bpe(pieces: Iterable[bytes], name: str) -> BPEVocab:
    """Learn the merges of a vocabulary.

    Args:
        pieces: Training data, much of it.
        name: ``bpe:SIZE``.

    Raises:
        ConfigError: The ``tokenizers`` library is missing.
        CorpusError: There is not one byte.
    """
    library = tokenizers_library()
    held = [piece for piece in pieces if piece]
    if not held:
        raise CorpusError("there is no byte to learn a vocabulary from; give another corpus")
    alphabet = [chr(value) for value in range(BYTE_COUNT)]
    tokenizer = library.Tokenizer(library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=ids_of(name) - 1, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    words = (word.decode("latin-1") for piece in held for word in _SPLIT.findall(piece))
    tokenizer.train_from_iterator(words, trainer=trainer)
    ids = {character: value for value, character in enumerate(alphabet)}
    merges: list[tuple[int, int]] = []
    for left, right in json.loads(tokenizer.to_str())["model"]["merges"]:
        merges.append((ids[left], ids[right]))
        ids.setdefault(left + right, EOD + len(merges))
    unmeasured = BPEVocab(merges, name=name, bytes_per_id=1.0)
    return BPEVocab(merges, name=name, bytes_per_id=measured_bytes_per_id(unmeasured, held))


def measured_bytes_per_id(vocabulary: Vocab, pieces: Iterable[bytes]) -> float:
    """Mean bytes of an id in some data."""
    size = ids = 0
    for piece in pieces:
        size += len(piece)
        ids += len(vocabulary.encode(piece))
    return size / ids


def read_vocabulary(name: str, content: bytes, place: Path | str) -> Vocab:
    """The vocabulary of saved weights.

    Args:
        name: As their settings have it.
        content: What was saved beside the weights, of ``saved_form``.
        place: Where, for errors.

    Raises:
        CheckpointError: It is damaged.
    """
    return BYTES if name == BYTE_VOCABULARY else BPEVocab.from_json(content, str(place))


def saved_form(vocabulary: Vocab) -> bytes:
    """What is saved beside weights; nothing for the vocabulary of bytes."""
    return vocabulary.to_json() if isinstance(vocabulary, BPEVocab) else b""


def split_places(data: bytes) -> list[int]:
    """Places at which a split begins whatever stands before and behind the data, ascending.

    Such a place is a byte that is no letter behind one that is. Ids on its two sides are found independently.

    Example:
        >>> split_places(b"def main(x):")
        [3, 8, 10]
    """
    return [found.end() for found in _BEHIND_LETTER.finditer(data)]


def tokenizers_library() -> Any:
    """The library, imported where it is first needed.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError("a BPE vocabulary needs the library tokenizers; pip install 'bytelm[bpe]'") from error
    return tokenizers
