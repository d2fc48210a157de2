r"""Bytes that arrive in pieces, as text: any chunking gives the text of decoding all bytes at once.

A character of up to four bytes may be split over several pieces; its first bytes are kept until it is whole. What
happens to bytes that are no UTF-8 is the caller's choice, never a silent loss:

    replace   each maximal invalid part becomes U+FFFD, as Unicode recommends
    escape    each invalid byte becomes \xNN
    strict    GenerationError names the first invalid byte
"""

import codecs
from typing import Final, Literal, get_args

from bytelm.errors import GenerationError

InvalidBytes = Literal["strict", "replace", "escape"]

_HANDLERS: Final = {"strict": "strict", "replace": "replace", "escape": "backslashreplace"}


class TextDecoder:
    """Incremental UTF-8 decoder with a stated policy for invalid bytes."""

    def __init__(self, invalid: InvalidBytes = "replace") -> None:
        if invalid not in _HANDLERS:
            raise GenerationError(
                f"invalid bytes are treated as {invalid!r}; known: {', '.join(get_args(InvalidBytes))}"
            )
        self._decoder = codecs.getincrementaldecoder("utf-8")(_HANDLERS[invalid])
        self._fed_bytes = 0

    def feed(self, data: bytes) -> str:
        r"""Text that is certain after these bytes.

        Args:
            data: The next bytes, any number of them.

        Returns:
            All characters that are whole by now and were not returned before.

        Raises:
            GenerationError: The policy is strict and a byte is invalid.

        Example:
            >>> decoder = TextDecoder()
            >>> decoder.feed(b"\xe2\x82"), decoder.feed(b"\xac!")
            ('', '€!')
        """
        return self._decode(data, final=False)

    def finish(self) -> str:
        """Text of an unfinished character, by the policy; the decoder is then as new.

        Raises:
            GenerationError: The policy is strict and the bytes end inside a character.
        """
        text = self._decode(b"", final=True)
        self._decoder.reset()
        self._fed_bytes = 0
        return text

    def _decode(self, data: bytes, *, final: bool) -> str:
        kept_bytes = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            offset = self._fed_bytes - kept_bytes + error.start
            raise GenerationError(
                f"byte {offset} (0x{error.object[error.start]:02x}) is not valid UTF-8: {error.reason}; "
                "choose replace or escape for invalid bytes, or take the raw bytes"
            ) from error
        self._fed_bytes += len(data)
        return text


def decode_text(data: bytes, invalid: InvalidBytes = "replace") -> str:
    """Decode all bytes at once, by the same policies.

    Args:
        data: Any bytes.
        invalid: What invalid bytes become.

    Raises:
        GenerationError: The policy is strict and a byte is invalid.
    """
    decoder = TextDecoder(invalid)
    return decoder.feed(data) + decoder.finish()


def shown(text: str) -> str:
    r"""Text with control characters escaped, so that a terminal shows them instead of obeying them.

    Newline and tab stay. C0, DEL and C1 controls become ``\xNN``; line and paragraph separators and the
    bidirectional controls, which reorder what is printed, become ``\uNNNN``.

    Example:
        >>> shown("a\x1b[2J")
        'a\\x1b[2J'
    """
    return "".join(character if _harmless(character) else _escaped(character) for character in text)


def _harmless(character: str) -> bool:
    if character in "\n\t":
        return True
    code = ord(character)
    reorders = code in (0x061C, 0x200E, 0x200F, 0x2028, 0x2029) or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return not (code < 0x20 or 0x7F <= code < 0xA0 or reorders)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def is_utf8(data: bytes) -> bool:
    """Whether bytes are well-formed UTF-8, whole characters alone."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
