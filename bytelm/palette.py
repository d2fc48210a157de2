"""One colour for each source of a byte, the same in the terminal, in figures and in pages.

Head 0, whose bytes the trunk verified itself, is grey. Drafting heads run from blue (the next byte) over green to
red (the farthest), all of a middle lightness, so that they read on a dark and on a light ground.
"""

import colorsys
from typing import Final

VERIFIED: Final = "#8a8f98"
LOOKUP: Final = "#b455c8"
_NEAREST_HUE, _FARTHEST_HUE = 0.62, 0.0


def head_colour(head: int, heads: int) -> str:
    """Colour of a head as ``#rrggbb``.

    Args:
        head: k, 0 … heads - 1; -1 is prompt lookup.
        heads: K, at least 1.

    Example:
        >>> head_colour(0, 8)
        '#8a8f98'
    """
    if head == 0:
        return VERIFIED
    if head == -1:
        return LOOKUP
    share = (head - 1) / max(heads - 2, 1)
    hue = _NEAREST_HUE + share * (_FARTHEST_HUE - _NEAREST_HUE)
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.47, 0.68))


def source_name(source: int) -> str:
    """A source in words.

    Example:
        >>> [source_name(source) for source in (0, 3, -1)]
        ['verified', 'head 3', 'lookup']
    """
    names = {0: "verified", -1: "lookup"}
    return names.get(source, f"head {source}")
