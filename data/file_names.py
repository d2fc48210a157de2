"""Which file each piece of a corpus comes from: one small file beside the shards for each ingestion.

It is zstd of JSON: the names of the files, and for each shard the number of the name of each piece, packed. A corpus
without one, of an earlier bytelm, is whole; nothing that trains or scores reads it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from bytelm.own_files import TEXT, Fields, FormError, ListOf, parse_json

MOST_FILE_BYTES: Final = 1 << 30
"""Of the JSON; more files are not named."""

_MOST_FILES: Final = 1 << 26
_LEVEL: Final = 9
_SCHEMA: Final = Fields({"files": ListOf(TEXT, most=_MOST_FILES), "shards": Fields(others=TEXT)})


def packed_numbers(numbers: Sequence[int] | NDArray[np.int64]) -> str:
    """Ascending whole numbers as a short text."""
    steps = np.diff(np.asarray(numbers, "<i8"), prepend=0)
    return base64.b64encode(zstandard.compress(steps.astype("<i8").tobytes(), _LEVEL)).decode("ascii")


def unpacked_numbers(text: str, most: int) -> NDArray[np.int64] | None:
    """The numbers that ``packed_numbers`` made this of; None if it is of something else, or of more than ``most``."""
    try:
        stored = base64.b64decode(text, validate=True)
        if zstandard.get_frame_parameters(stored).content_size > 8 * most:
            return None
        return np.cumsum(np.frombuffer(zstandard.decompress(stored), "<i8"))
    except (ValueError, zstandard.ZstdError):
        return None


def packed_names(files: Sequence[str], shards: Mapping[str, str]) -> bytes:
    """The file.

    Args:
        files: Names of files.
        shards: For each shard by name ``packed_numbers`` of the name of each of its pieces.
    """
    return zstandard.compress(json.dumps({"files": list(files), "shards": dict(shards)}).encode("ascii"), _LEVEL)


def names_in(content: bytes, shard: str, pieces: int) -> list[str] | None:
    """The name of the file that each piece of a shard comes from.

    Args:
        content: A file that ``packed_names`` made.
        shard: Name of the shard.
        pieces: Number of pieces of the shard.

    Returns:
        A name for each piece; None if the file does not say.
    """
    try:
        if zstandard.get_frame_parameters(content).content_size > MOST_FILE_BYTES:
            return None
        tree: dict[str, Any] = parse_json(zstandard.decompress(content), _SCHEMA)
    except (FormError, zstandard.ZstdError):
        return None
    if shard not in tree["shards"]:
        return None
    numbers = unpacked_numbers(tree["shards"][shard], pieces)
    files = tree["files"]
    if numbers is None or len(numbers) != pieces or (pieces and not 0 <= numbers.min() <= numbers.max() < len(files)):
        return None
    return [files[number] for number in numbers.tolist()]
