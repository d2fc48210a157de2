"""The held-out text of a comparison in two parts: one to choose by, one for the scores that are published.

What was chosen on a text looks better on that text than it is. So rates and batches are chosen, and validations are
made, on the selection part; the final part is scored once, at the end.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bytelm.data.shards import Corpus
from bytelm.evaluate import some_bytes

SELECTION_SHARE: Final = 0.25
"""Share of the held-out bytes that the selection part has at least, where whole documents allow it."""
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which pieces of the validation split belong to the selection part.

    Attributes:
        selected: Numbers of the pieces, in the order of ``Corpus.pieces``; all others are the final part.
        selection_bytes: Bytes of the selection part.
        final_bytes: Bytes of the final part.
        apart: Whether the parts differ. A split of one document cannot be divided: both parts are the whole then.
    """

    selected: frozenset[int]
    selection_bytes: int
    final_bytes: int
    apart: bool

    def selection(self, corpus: Corpus, *, limit_bytes: int, window_bytes: int) -> list[bytes]:
        """Documents of the selection part, or pieces of them; see ``bytelm.evaluate.some_bytes``.

        Args:
            corpus: The corpus whose parts these are.
            limit_bytes: Bytes to give, at most.
            window_bytes: Bytes of the model's window.
        """
        return self._some(corpus, self.selection_bytes, limit_bytes, window_bytes, selected=True)

    def final(self, corpus: Corpus, *, limit_bytes: int, window_bytes: int) -> list[bytes]:
        """Documents of the final part, or pieces of them, with the arguments of ``selection``."""
        return self._some(corpus, self.final_bytes, limit_bytes, window_bytes, selected=False)

    def _some(
        self, corpus: Corpus, total_bytes: int, limit_bytes: int, window_bytes: int, *, selected: bool
    ) -> list[bytes]:
        documents = (
            data
            for number, data in enumerate(corpus.documents("validation"))
            if not self.apart or (number in self.selected) == selected
        )
        limit = min(limit_bytes, total_bytes)
        return list(some_bytes(documents, total_bytes, limit_bytes=limit, window_bytes=window_bytes))


def divide(corpus: Corpus) -> Parts:
    """Divide the validation split of a corpus by a hash of each document's content; no document is torn.

    Documents are taken in the order of their hashes, until the selection part has its share of the bytes. So the parts
    depend on the documents alone, not on their order, and equal documents stand in the same part.

    Args:
        corpus: With a validation split.

    Raises:
        ShardError: A shard is missing or damaged.

    Example:
        Of documents with hashes a, b, c and 10, 80, 10 bytes, a and b are the selection part: a alone has less than a
        quarter of the bytes.
    """
    members: dict[bytes, list[int]] = {}
    sizes: dict[bytes, int] = {}
    for numbers, digest, size_bytes in _documents(corpus):
        members.setdefault(digest, []).extend(numbers)
        sizes[digest] = sizes.get(digest, 0) + size_bytes
    total, selection = sum(sizes.values()), 0
    if len(members) < 2:
        return Parts(selected=frozenset(), selection_bytes=total, final_bytes=total, apart=False)
    selected: set[int] = set()
    for digest in sorted(members)[:-1]:  # the last one is left for the final part in any case
        if selection >= SELECTION_SHARE * total:
            break
        selected.update(members[digest])
        selection += sizes[digest]
    return Parts(selected=frozenset(selected), selection_bytes=selection, final_bytes=total - selection, apart=True)


def _documents(corpus: Corpus) -> Iterator[tuple[list[int], bytes, int]]:
    """Numbers of the pieces, hash and bytes of each document; consecutive parts of a long document are joined."""
    numbers: list[int] = []
    content, size_bytes, ends = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0, True
    for number, piece in enumerate(corpus.pieces("validation")):
        if numbers and (ends or piece.starts):
            yield numbers, content.digest(), size_bytes
            numbers, content, size_bytes = [], hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
        numbers.append(number)
        content.update(piece.data)
        size_bytes += len(piece.data)
        ends = piece.ends
    if numbers:
        yield numbers, content.digest(), size_bytes
