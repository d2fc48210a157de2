"""Kinds of documents, told by their names and their first bytes."""

from typing import Final

KINDS: Final = ("binary", "text")
"""Kinds of documents; the piece table holds the index into this. New ones are put at the end."""

GROUPS: Final = ("code", "markup", "data", "prose", "binary")
"""What kinds are put together as."""

_SNIFFED_BYTES: Final = 8 << 10


def kind_of(name: bytes, beginning: bytes) -> int:
    """Index in ``KINDS`` of a document: text is UTF-8 without a zero byte.

    Args:
        name: Name of the document, as in ``Document.name``.
        beginning: The first block of the document; only its first 8 KiB are looked at.
    """
    del name
    sniffed = beginning[:_SNIFFED_BYTES]
    if b"\0" in sniffed:
        return KINDS.index("binary")
    try:
        sniffed.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character that the end of the sniffed bytes cuts through is no fault of the document.
        cut_through = error.reason == "unexpected end of data" and len(beginning) > len(sniffed)
        return KINDS.index("text" if cut_through else "binary")
    return KINDS.index("text")


def group_of(kind: int) -> str:
    """The group, one of ``GROUPS``, of a kind's index."""
    return "binary" if KINDS[kind] == "binary" else "prose"
