"""The nearest known name to one that is not known."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a word was most likely meant to be; None where none is near.

    Example:
        >>> nearest("trian", ["train", "tune"]), nearest("--Set", ["--set"]), nearest("nothing", ["train"])
        ('train', '--set', None)
    """
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1)
    if not near and len(word) > 2:  # a name that was cut short, or has too much behind it
        near = [name for name in names if name.startswith(word.lower()) or word.lower().startswith(name)][:1]
    return names[near[0]] if near else None


def hint(word: str, known: Iterable[str]) -> str:
    """What a message says behind an unknown name: the nearest one, or all of them.

    Example:
        >>> hint("tniy", ["tiny", "small"]), hint("x", ["tiny", "small"])
        ("did you mean 'tiny'?", 'there are tiny, small')
    """
    names = list(known)
    near = nearest(word, names)
    return f"there are {', '.join(names)}" if near is None else f"did you mean {near!r}?"
