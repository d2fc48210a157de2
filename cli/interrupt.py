"""Ctrl-C as a wish: the first one asks a training to stop and save, the second leaves at once.

A terminal that goes away (SIGHUP) asks like SIGTERM does. What is said afterwards has no reader, and must not end what
it asked for.
"""

import contextlib
import os
import signal
import stat
from types import FrameType
from typing import Any, Final, Self

_STOPPING: Final = b"\nstopping after this step, and saving; once more to leave at once\n"


class StopRequest:
    """Within its context the first SIGINT, SIGTERM or SIGHUP is noted, the second interrupts. Called, it tells.

    A SIGHUP that is ignored, as ``nohup`` has it, stays so.

    Args:
        quiet: Say nothing to whoever asks: where several processes stop together. If one of them has died, torchrun
            sends SIGTERM to the others while they are about to say so: after an error it is ignored, so that the one
            line gets out.

    Example:
        >>> with StopRequest() as should_stop:
        ...     should_stop()
        False
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._asked = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            ending = self._quiet and error is not None and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ending else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP:
            _leave_terminals_that_went()
            if self._asked:  # a shell sends it once more than a person would
                return
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if not self._quiet:
            with contextlib.suppress(OSError):
                os.write(2, _STOPPING)  # whatever the signal has interrupted, even a line that is just being printed


def _leave_terminals_that_went() -> None:
    """Point standard output and error to nothing where they were a terminal that is no longer one."""
    for end in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(end).st_mode) and not os.isatty(end):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, end)
                os.close(nothing)
