"""Documents that are there already: the same bytes, found by digest, and nearly the same, found by MinHash.

Of equal documents the first in the order of the corpus stays. Two documents are near-duplicates when the share of
24-byte strings that they have in common, their Jaccard similarity, is estimated to be at least a threshold; one that
is a near-duplicate of a document that stays is left out. MinHash signatures make the estimate (128 numbers, standard
error 0.04 at most), bands of them find the candidates. An eighth of all strings, drawn by their hash, is looked at.

Source: Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", section 3.4, for the bands.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import ConfigError

SIGNATURE_LENGTH: Final = 128
"""Numbers of a signature, 32 bits each."""

NEAR_LEAST_BYTES: Final = 256
"""A shorter document has too few strings to compare; it counts as nobody's near-duplicate."""

_MOST_BYTES: Final = 16 << 20  # of a document that are compared
_STRING_BYTES: Final = 24
_SAMPLED: Final = np.uint64(7)  # bits of the hash that have to be zero: an eighth of all strings
_SEED: Final = 42
_RECALL: Final = 0.97
_LEAST_THRESHOLD: Final = 0.3
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_BASE: Final = np.uint64(0xBF58476D1CE4E5B9)
_CHUNK_BYTES: Final = 32 << 10


def exact_duplicates(digests_D: NDArray[np.uint64], before_E: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which documents have the digest of an earlier one.

    Args:
        digests_D: One digest a row, two numbers, in the order of the corpus.
        before_E: Digests of documents that come before all of them.

    Returns:
        A flag for each row of ``digests_D``.
    """
    both = np.concatenate([before_E, digests_D])
    order = np.lexsort((both[:, 1], both[:, 0]))  # stable: equal ones keep their order
    ranked = both[order]
    flags = np.zeros(len(both), np.bool_)
    flags[order[1:]] = (ranked[1:] == ranked[:-1]).all(axis=1)
    return flags[len(before_E) :]


def check_threshold(threshold: float | None) -> None:
    """See that near-duplicates can be looked for, before anything is read.

    Raises:
        ConfigError: The threshold is out of range, or the library for signatures is not installed.
    """
    if threshold is None:
        return
    if not _LEAST_THRESHOLD <= threshold <= 1:
        raise ConfigError(
            f"near_duplicates = {threshold}: a similarity from {_LEAST_THRESHOLD} to 1 is needed, like 0.8"
        )
    _rensa()


class StringSampler:
    """Hashes of a sample of the 24-byte strings of one document."""

    def __init__(self) -> None:
        self._hashes: list[NDArray[np.uint64]] = []
        self._least: list[int] = []
        self._carried = b""
        self._bytes = 0

    def add(self, block: bytes) -> None:
        """Add the next bytes of the document; what is beyond its first 16 MiB is not looked at."""
        block = block[: _MOST_BYTES - self._bytes]
        self._bytes += len(block)
        for begin in range(0, len(block), _CHUNK_BYTES):
            data = self._carried + block[begin : begin + _CHUNK_BYTES]
            self._carried = data[-(_STRING_BYTES - 1) :]
            if len(data) >= _STRING_BYTES:
                hashes = _string_hashes(np.frombuffer(data, np.uint8))
                self._hashes.append(hashes[hashes & _SAMPLED == 0])
                self._least.append(int(hashes.min()))

    def hashes(self) -> NDArray[np.uint64]:
        """The hashes, uint64; none for a document that is too short."""
        if self._bytes < NEAR_LEAST_BYTES:
            return np.empty(0, np.uint64)
        sampled = np.concatenate(self._hashes)
        # One string over and over may not be in the sample; then it stands for itself.
        return sampled if len(sampled) else np.array([min(self._least)], np.uint64)


def signatures_of(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint32]:
    """MinHash signatures of documents, one a row.

    Args:
        hashes: Of each document, as ``StringSampler.hashes`` gives them.
    """
    offsets = np.cumsum([0, *(len(one) for one in hashes)], dtype=np.uint64)
    flat = np.concatenate([np.empty(0, np.uint64), *hashes])
    matrix = _rensa().RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, SIGNATURE_LENGTH, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(hashes), SIGNATURE_LENGTH)


def near_duplicates(signatures_D: NDArray[np.uint32], candidates: Iterable[int], threshold: float) -> list[int]:
    """Documents that are near-duplicates of one that comes before them and stays.

    Args:
        signatures_D: One a row.
        candidates: Rows that are looked at, in order.
        threshold: Least similarity of near-duplicates.

    Returns:
        Their rows.
    """
    if not len(signatures_D):
        return []
    rows_of_band = _rows_of_band(threshold)
    bands = SIGNATURE_LENGTH // rows_of_band
    keys_DB = np.zeros((len(signatures_D), bands), np.uint64)
    for row in range(rows_of_band):
        column_DB = signatures_D[:, row : bands * rows_of_band : rows_of_band].astype(np.uint64)
        keys_DB = (keys_DB * _FACTOR) ^ ((column_DB + np.uint64(1)) * _BASE)
    staying: list[dict[int, list[int]]] = [{} for _ in range(bands)]
    found: list[int] = []
    for document in candidates:
        keys = keys_DB[document].tolist()
        near = list({other for band, key in zip(staying, keys, strict=True) for other in band.get(key, ())})
        if near and (signatures_D[near] == signatures_D[document]).mean(axis=1).max() >= threshold:
            found.append(document)
            continue
        for band, key in zip(staying, keys, strict=True):
            band.setdefault(key, []).append(document)
    return found


def _rows_of_band(threshold: float) -> int:
    """The longest bands with which a pair just at the threshold is still found with the probability ``_RECALL``."""
    for rows in range(SIGNATURE_LENGTH, 1, -1):
        if 1 - (1 - threshold**rows) ** (SIGNATURE_LENGTH // rows) >= _RECALL:
            return rows
    return 1


def _string_hashes(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A hash of the 24 bytes from each place on: a polynomial in 2^64, as differences of running sums."""
    powers, inverses = _powers()
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[: len(data)], out=sums[1:])
    hashes = (sums[_STRING_BYTES:] - sums[:-_STRING_BYTES]) * inverses[: len(data) - _STRING_BYTES + 1]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _FACTOR
    hashes ^= hashes >> np.uint64(29)
    return hashes


@cache
def _powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of the polynomial's base, and of its inverse."""
    length = _CHUNK_BYTES + _STRING_BYTES
    base, inverse = (int(_BASE), pow(int(_BASE), -1, 1 << 64))
    return tuple(  # pyright: ignore[reportReturnType]  two of them
        np.cumprod(np.array([1, *[factor] * (length - 1)], np.uint64)) for factor in (base, inverse)
    )


def _rensa() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise ConfigError("near-duplicates need a package: pip install 'bytelm[near-duplicates]'") from error
    return rensa
