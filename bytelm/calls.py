"""Calls of the Python interface that do not fit: one line that names the argument, as for a value that cannot be."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from bytelm.errors import KeywordError
from bytelm.names import hint

P = ParamSpec("P")
R = TypeVar("R")


def checked_call(options: Iterable[str] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a public function or method: what does not fit its parameters is a ``KeywordError``.

    Args:
        options: Keywords that it takes besides those that its signature names.

    Example:
        >>> @checked_call()
        ... def double(number: int) -> int:
        ...     return 2 * number
        >>> double(numbr=1)
        Traceback (most recent call last):
        bytelm.errors.KeywordError: double has no keyword 'numbr'; did you mean 'number'?
    """
    others = tuple(options)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        parameters = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
        known = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
        needed = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
        shown = ", ".join(needed if len(needed) == len(parameters) else [*needed, "…"])
        *_, owner, call = (".", *function.__qualname__.split("."))
        call = owner if call == "__init__" else call

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in known and name not in others:
                    raise KeywordError(f"{call} has no keyword {name!r}; {hint(name, (*known, *others))}")
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise KeywordError(f"{call}: {error}; write {call}({shown})") from None
            return function(*args, **kwargs)

        return called

    return decorate
