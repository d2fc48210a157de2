"""What lies behind a network is fetched ahead by threads that do nothing else, many at a time."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

from bytelm.errors import CorpusError

_Key = TypeVar("_Key")

THREADS: Final = 16
"""Requests at a time: a server answers many at once, and each takes long."""


class Fetcher(Generic[_Key]):
    """Fetches things by key, each once as long as it is remembered.

    Args:
        remembered: How many keys are remembered after they were fetched.
    """

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._asked: dict[_Key, Future[None]] = {}
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="bytelm-fetcher")

    def ask(self, work: Mapping[_Key, Callable[[], object]]) -> None:
        """Begin to fetch what was not asked for before, in this order.

        Args:
            work: For each key what brings the thing to where it will be looked for. What that returns or raises does
                not count: whoever needs the thing finds it, or meets the error again.
        """
        for key, fetch in work.items():
            if key not in self._asked:
                self._asked[key] = self._executor.submit(_attempt, fetch)
        while len(self._asked) > self._remembered and next(iter(self._asked.values())).done():
            del self._asked[next(iter(self._asked))]

    def wait(self, keys: Iterable[_Key]) -> None:
        """Wait until these were fetched, as far as they were asked for."""
        for key in keys:
            asked = self._asked.get(key)
            if asked is not None:
                with contextlib.suppress(CancelledError):
                    asked.result()

    def clear(self) -> None:
        """Forget what was asked for and has not begun."""
        for key, asked in list(self._asked.items()):
            if asked.cancel():
                del self._asked[key]

    def close(self) -> None:
        """Stop the threads."""
        self._executor.shutdown(cancel_futures=True)


def _attempt(fetch: Callable[[], object]) -> None:
    with contextlib.suppress(CorpusError, OSError):
        fetch()
