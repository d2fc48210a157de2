"""The vocabulary: ids 0–255 are the bytes themselves, specials follow from 256, padded to a GEMM-friendly 320.

One special exists. ``EOD`` stands between two documents: as a target it says that the document ends here, as an
input it says that the next one begins. It is never stored in a corpus, where all 256 byte values are data.
"""

from typing import Final

BYTE_COUNT: Final = 256
"""Ids below this are bytes."""

EOD: Final = 256
"""End of document when predicted, beginning of the next when read."""

VOCABULARY_SIZE: Final = 320
"""Width of every prediction head: 256 bytes, the specials, and unused ids up to a multiple of 64."""
