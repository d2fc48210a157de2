"""Functions that stay outside of compiled layers.

``torch.compiler.disable`` says so, too, but imports torch's whole compiler: a second and a half for every program that
only loads a model. So functions are named when they are defined, and kept out once something is going to be compiled.
"""

from collections.abc import Callable
from typing import Any, Final, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Uncompiled(Generic[P, R]):
    """A function that is called as it is, and that a compiled caller leaves for the call.

    Args:
        function: To be kept out of compiled programs.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self.__doc__ = function.__doc__
        self._function = function
        self._called: Callable[P, R] = function
        _ALL.append(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See the function."""
        return self._called(*args, **kwargs)

    def keep_out(self) -> None:
        """From now on torch's tracer stops before the function."""
        outside: Any = torch.compiler.disable(self._function)  # torch's own types leave open what it returns
        self._called = outside


_ALL: Final[list[Uncompiled[..., Any]]] = []


def keep_out_of_programs() -> None:
    """Keep every function that was named so out of what is compiled from now on; before the first compilation."""
    for function in _ALL:
        function.keep_out()
