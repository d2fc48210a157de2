"""What a byte is part of: its place in a word, the script of its character, the type of its document.

Words are maximal runs of ASCII letters, digits, underscores and bytes of multi-byte characters. A script is the first
word of a character's Unicode name where it is a letter, brought together where several names make one writing.
"""

import functools
import unicodedata
from typing import Final

import numpy as np
import numpy.typing as npt

WORD_PLACES: Final = ("outside", "first", "second", "third", "fourth", "fifth and later")
"""Of a byte: outside of words, or which byte of its word it is."""

COMMON: Final = "common"
"""Script of digits, punctuation and space, which belong to all."""

NOT_UTF8: Final = "no utf-8"
"""Script of bytes that make no character."""

_FAMILIES: Final = {
    "cjk": "han",
    "hiragana": "kana",
    "katakana": "kana",
    "katakana-hiragana": "kana",
    "fullwidth": "latin",
    "modifier": COMMON,
    "combining": COMMON,
    "masculine": "latin",
    "feminine": "latin",
    "micro": "greek",
}
_SNIFFED_BYTES: Final = 8 << 10

_IN_WORD: Final = np.zeros(256, bool)
_IN_WORD[[*b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"]] = True
_IN_WORD[0x80:] = True


def word_places(data: bytes) -> npt.NDArray[np.int64]:
    """For each byte its index in ``WORD_PLACES``.

    Example:
        >>> word_places(b"an if(").tolist()
        [1, 2, 0, 1, 2, 0]
    """
    inside = _IN_WORD[np.frombuffer(data, np.uint8)]
    place = np.arange(len(inside))
    last_outside = np.maximum.accumulate(np.where(inside, -1, place)) if len(inside) else place
    return np.where(inside, np.minimum(place - last_outside, len(WORD_PLACES) - 1), 0)


def scripts(data: bytes) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """For each byte the script of its character, as index into the names that are returned.

    Bytes that are no UTF-8 make no character; a multi-byte character that the end cuts off is one of them.

    Example:
        >>> codes, names = scripts("a я".encode())
        >>> [names[code] for code in codes]
        ['latin', 'common', 'cyrillic', 'cyrillic']
    """
    points = _code_points(data)
    kinds, codes = np.unique(points, return_inverse=True)
    named = [script_of(point) if point >= 0 else NOT_UTF8 for point in kinds.tolist()]
    names = tuple(dict.fromkeys(named))
    index = np.array([names.index(name) for name in named], np.int64)
    return index[codes] if len(named) else np.zeros(0, np.int64), names


@functools.lru_cache(maxsize=1 << 16)
def script_of(point: int) -> str:
    """The script of a character, by its code point.

    Example:
        >>> script_of(ord("z")), script_of(ord("漢")), script_of(ord("か")), script_of(ord("7"))
        ('latin', 'han', 'kana', 'common')
    """
    character = chr(point)
    if unicodedata.category(character)[0] not in "LM":
        return COMMON
    word = unicodedata.name(character, COMMON).split()[0].lower()
    return _FAMILIES.get(word, word)


def main_script(data: bytes) -> str:
    """The script of most characters that have one, in the first 8 KiB; ``common`` where none has.

    Example:
        >>> main_script("Всё, OK".encode())
        'cyrillic'
    """
    codes, names = scripts(data[:_SNIFFED_BYTES])
    lead = (np.frombuffer(data[:_SNIFFED_BYTES], np.uint8) & 0xC0) != 0x80
    counts = {
        name: int(((codes == code) & lead).sum()) for code, name in enumerate(names) if name not in (COMMON, NOT_UTF8)
    }
    return max(counts, key=lambda name: counts[name]) if counts else COMMON


def document_type(data: bytes, kind: str, group: str) -> str:
    """The type of a document: its kind, and for prose its script too.

    Args:
        data: Its bytes, or the beginning of them.
        kind: As the corpus names it, such as ``python`` or ``text``.
        group: Of that kind, such as ``code`` or ``prose``.

    Example:
        >>> document_type(b"import os", "python", "code"), document_type(b"Once", "text", "prose")
        ('python', 'text, latin')
    """
    return f"{kind}, {main_script(data)}" if group == "prose" else kind


def _code_points(data: bytes) -> npt.NDArray[np.int64]:
    """For each byte the code point of its character, -1 where it makes none."""
    size = len(data)
    byte = np.concatenate([np.frombuffer(data, np.uint8).astype(np.int64), np.zeros(3, np.int64)])
    points = np.full(size + 3, -1, np.int64)
    points[:size] = np.where(byte[:size] < 0x80, byte[:size], -1)
    follows = (byte & 0xC0) == 0x80
    for length, low, high, mask, least in (
        (2, 0xC2, 0xDF, 0x1F, 0x80),
        (3, 0xE0, 0xEF, 0x0F, 0x800),
        (4, 0xF0, 0xF4, 7, 0x10000),
    ):
        lead = np.flatnonzero((byte[:size] >= low) & (byte[:size] <= high))
        for offset in range(1, length):
            lead = lead[follows[lead + offset]]
        value = byte[lead] & mask
        for offset in range(1, length):
            value = value << 6 | byte[lead + offset] & 0x3F
        sound = (value >= least) & (value <= 0x10FFFF) & ~((value >= 0xD800) & (value < 0xE000))
        for offset in range(length):
            points[lead[sound] + offset] = value[sound]
    return points[:size]
