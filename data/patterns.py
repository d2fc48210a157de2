r"""Patterns as in ``.gitignore``, matched byte for byte as git matches them.

    *.o           a name anywhere            /build        only at the top          doc/*.txt     a path from the top
    out/          folders only               **/x  a/**/x  a/**                     any number of folders
    !keep.o       takes back                 ?  [a-z]  [!a]  [[:digit:]]  \#        one byte; escaped

A path is asked for by itself: whether a folder above it is left out is asked for that folder. The last pattern that
matches decides, and where none does, the patterns have nothing to say. Libraries that match a folder's pattern against
everything below it cannot take back what git takes back; the tests compare with git itself.
"""

import re
import string
from collections.abc import Iterable
from typing import Final

_CLASSES: Final = {
    b"alnum": string.ascii_letters + string.digits,
    b"alpha": string.ascii_letters,
    b"blank": " \t",
    b"cntrl": "".join(map(chr, (*range(32), 127))),
    b"digit": string.digits,
    b"graph": string.ascii_letters + string.digits + string.punctuation,
    b"lower": string.ascii_lowercase,
    b"print": string.ascii_letters + string.digits + string.punctuation + " ",
    b"punct": string.punctuation,
    b"space": " \t\n\r\f\v",
    b"upper": string.ascii_uppercase,
    b"xdigit": string.hexdigits,
}
_SLASH: Final = ord("/")


class NoPattern(ValueError):  # noqa: N818  it says what the line is
    """A line that can match nothing: empty, a comment, or something unfinished."""


class Pattern:
    """One pattern.

    Args:
        line: A line of a ``.gitignore`` file, without its end.

    Attributes:
        excludes: What it says of the paths that it matches; one with ``!`` takes them back.

    Raises:
        NoPattern: It is none.
    """

    def __init__(self, line: bytes) -> None:
        body = _without_spaces(line)
        if not body or body.startswith(b"#"):
            raise NoPattern("it is empty or a comment")
        self.excludes = not body.startswith(b"!")
        body = body.removeprefix(b"!")
        self._folders_only = body.endswith(b"/")
        body = body.removesuffix(b"/")
        self._is_path = b"/" in body
        body = body.removeprefix(b"/")
        if not body:
            raise NoPattern("it names nothing")
        self._matches = re.compile(_regex(body), re.DOTALL).fullmatch

    def matches(self, path: bytes, name: bytes, *, is_folder: bool) -> bool:
        """Whether it matches a path.

        Args:
            path: Path from where the patterns hold, without a slash at its end.
            name: Its last part.
            is_folder: It is a folder.
        """
        if self._folders_only and not is_folder:
            return False
        return self._matches(path if self._is_path else name) is not None


class Patterns:
    """Several patterns, of which the last that matches decides.

    Args:
        patterns: In order.
    """

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self._last_first = tuple(patterns)[::-1]

    def verdict(self, path: bytes, *, is_folder: bool) -> bool | None:
        """What they say of a path: True where it is matched, False where it is taken back, None where nothing is said.

        Args:
            path: Path from where the patterns hold, without a slash at its end.
            is_folder: It is a folder.
        """
        name = path[path.rfind(b"/") + 1 :]
        for pattern in self._last_first:
            if pattern.matches(path, name, is_folder=is_folder):
                return pattern.excludes
        return None


def _without_spaces(line: bytes) -> bytes:
    """A line without the spaces at its end; one that is escaped stays."""
    body = line.rstrip(b" ")
    escapes = len(body) - len(body.rstrip(b"\\"))
    return body + b" " if escapes % 2 and len(body) < len(line) else body


def _regex(pattern: bytes) -> bytes:
    """The regular expression of a pattern, for a whole path or name.

    Raises:
        NoPattern: It ends in the middle of something.
    """
    parts: list[bytes] = []
    # git compares what stands before the first wildcard by itself; then "a**/b" begins with its stars, as "**/b" does.
    first = next((at for at, byte in enumerate(pattern) if byte in b"*?[\\"), 0)
    at = 0
    while at < len(pattern):
        byte = pattern[at : at + 1]
        if byte == b"*":
            end = len(pattern) - len(pattern[at:].lstrip(b"*"))
            begins_part = at == first or pattern[at - 1 : at] == b"/"
            if end - at >= 2 and begins_part and end == len(pattern):
                parts.append(b".*")
            elif end - at >= 2 and begins_part and pattern[end : end + 1] == b"/":
                parts.append(b"(?:.*/)?")
                end += 1
            else:
                parts.append(b"[^/]*")
            at = end
        elif byte == b"?":
            parts.append(b"[^/]")
            at += 1
        elif byte == b"[":
            chosen, at = _bracket(pattern, at + 1)
            parts.append(b"[%s]" % b"".join(b"\\x%02x" % one for one in chosen) if chosen else b"(?!)")
        else:
            at += byte == b"\\"
            if at == len(pattern):
                raise NoPattern("it ends with a backslash")
            parts.append(re.escape(pattern[at : at + 1]))
            at += 1
    return b"".join(parts)


def _bracket(pattern: bytes, at: int) -> tuple[list[int], int]:
    """The bytes that a bracket stands for, and where it ends.

    Raises:
        NoPattern: It does not end, or names an unknown class.
    """
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    chosen: set[int] = set()
    previous: int | None = None
    is_first = True
    while is_first or pattern[at : at + 1] != b"]":
        is_first = False
        if at >= len(pattern):
            raise NoPattern("its bracket does not end")
        is_range = pattern[at : at + 1] == b"-" and previous is not None and pattern[at + 1 : at + 2] not in (b"", b"]")
        class_end = pattern.find(b"]", at + 2) if pattern[at : at + 2] == b"[:" else -1
        if class_end > at + 2 and pattern[class_end - 1 : class_end] == b":":
            name = pattern[at + 2 : class_end - 1]
            if name not in _CLASSES:
                raise NoPattern(f"it names the class {name.decode('utf-8', 'backslashreplace')!r}")
            chosen.update(_CLASSES[name].encode())
            previous, at = None, class_end + 1
            continue
        at += is_range
        at += pattern[at : at + 1] == b"\\"
        if at >= len(pattern):
            raise NoPattern("its bracket does not end")
        byte = pattern[at]
        if is_range and previous is not None:
            chosen.update(range(previous, byte + 1))
        else:
            chosen.add(byte)
        previous = None if is_range else byte
        at += 1
    everything = set(range(256)) - chosen if negated else chosen
    return sorted(everything - {_SLASH}), at + 1
