"""Ctrl-C as a wish: the first one asks a training to stop and save, the second leaves at once."""

import os
import signal
from types import FrameType
from typing import Any, Final, Self

_STOPPING: Final = b"\nstopping after this step, and saving; once more to leave at once\n"


class StopRequest:
    """Within its context the first SIGINT or SIGTERM is noted, and the second interrupts. Called, it tells.

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
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            ending = self._quiet and error is not None and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ending else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if not self._quiet:
            os.write(2, _STOPPING)  # whatever the signal has interrupted, even a line that is just being printed
