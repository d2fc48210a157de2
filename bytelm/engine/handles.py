"""What everything inside the library has in common: owned pointers, checked arrays, statuses that become errors."""

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Hashable, Iterator
from ctypes import c_void_p
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from bytelm.errors import GenerationError

T = TypeVar("T")

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

NOT_FINITE: Final = "the model's logits are not finite: its weights have diverged; use another checkpoint"

_NOT_FINITE, _OUT_OF_MEMORY = 2, 3


class StatusError(Exception):
    """A function of the library did not succeed; ``code`` is its status.

    It never reaches a user: whoever calls the library makes an error of bytelm of it.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"the engine answered {code}")
        self.code = code

    @property
    def not_finite(self) -> bool:
        """A weight, a state or a logit is not finite."""
        return self.code == _NOT_FINITE


def check_status(status: int) -> None:
    """Raise ``StatusError`` for what the caller must put into words; everything else is a mistake of ours."""
    if status in (_NOT_FINITE, _OUT_OF_MEMORY):
        raise StatusError(status)
    assert status == 0, f"the engine refuses an argument ({status})"


def address_of(array: npt.NDArray[Any], dtype: npt.DTypeLike, size: int) -> int:
    """The address of an array's numbers, once it is what the library expects."""
    assert isinstance(array, np.ndarray), type(array)
    assert array.dtype == dtype, f"{array.dtype} in place of {np.dtype(dtype)}"
    assert array.size == size, f"{array.size} numbers in place of {size}"
    assert array.flags.c_contiguous and array.flags.aligned, "numbers must lie one behind the other"
    return array.ctypes.data


class Owned:
    """Something inside the library, freed when it is closed or when nobody refers to it any more."""

    def __init__(self, pointer: int, free: Callable[[int], None], *parents: "Owned") -> None:
        self._place = pointer
        self._parents = parents  # they live as long as this does
        self._free = weakref.finalize(self, free, pointer)
        self._free.atexit = False  # a process that ends gives everything back anyway, and sooner

    @property
    def pointer(self) -> int:
        """Where it is, as long as it is there.

        Raises:
            GenerationError: It was closed, or what it belongs to was.
        """
        if not self._free.alive:
            raise GenerationError(f"this {type(self).__name__} was closed; make a new one")
        for parent in self._parents:
            _ = parent.pointer
        return self._place

    def close(self) -> None:
        """Give its memory back at once; to use it afterwards is an error."""
        self._free()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the engine's {type(self).__name__} lives in this process alone and cannot be pickled; pickle a "
            "LanguageModel that was loaded from a path, or the path"
        )


def new_pointer(make: Callable[[Any], int], what: str, size_bytes: Callable[[], int]) -> int:
    """The pointer to something new, from a function of the library that makes it.

    Args:
        make: The function, called with the place that the pointer is written to.
        what: Name of the thing, for the error message.
        size_bytes: Memory that it needs, asked for only when there was too little.

    Raises:
        GenerationError: There is not enough memory.
    """
    out = c_void_p()
    try:
        check_status(make(ctypes.byref(out)))
    except StatusError as status:
        raise out_of_memory(what, size_bytes()) from status
    assert out.value is not None
    return out.value


def out_of_memory(what: str, size_bytes: int) -> GenerationError:
    """The error for memory that is used up."""
    return GenerationError(
        f"memory is used up: the engine needs {size_bytes / 1e6:,.0f} MB for {what}; take a smaller model or context, "
        "fewer sequences at a time, or a machine with more memory"
    )


class Spare:
    """What nobody uses at the moment, with all that it has read: the next prompt may begin alike.

    There is no lock: each operation on the list is one of the interpreter's, so that neither a fork nor a generator
    that is collected at any moment can find it taken.
    """

    _KEPT: Final = 3

    def __init__(self) -> None:
        self._free: list[tuple[Hashable, Any]] = []

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        """Something with this key, what was used last if there are several; a new one if there is none."""
        for entry in reversed(list(self._free)):
            if entry[0] == key:
                try:
                    self._free.remove(entry)
                except ValueError:  # another thread has just taken it
                    continue
                return entry[1]
        return make()

    def give_back(self, key: Hashable, thing: object) -> None:
        """Keep something for the next caller; of too many things the oldest goes."""
        self._free.append((key, thing))
        while len(self._free) > self._KEPT:
            del self._free[:1]


@contextlib.contextmanager
def status_errors(size_bytes: Callable[[], int]) -> Iterator[None]:
    """Turn a ``StatusError`` raised inside the block into an error that tells the caller what to do.

    Args:
        size_bytes: Memory that a pass needs, asked for only when there was too little.
    """
    try:
        yield
    except StatusError as status:
        if status.not_finite:
            raise GenerationError(NOT_FINITE) from status
        raise out_of_memory("a pass", size_bytes()) from status
