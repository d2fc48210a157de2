"""Which device a setting means, and how many CPU threads decode fastest on it."""

from typing import Final

import torch

from bytelm.errors import ConfigError

_ONE_THREAD_UNTIL: Final = 8_000_000
"""Parameters up to which one thread decodes at least as fast as two (docs/experiments.md, 2026-11-23)."""


def choose_device(name: str) -> torch.device:
    """The device that a setting means.

    Args:
        name: torch's name for it, or ``auto``: CUDA where there is one, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch that was built without a device asserts
        cause = str(error).splitlines()[0]
        raise ConfigError(f"the device {name!r} cannot be used here ({cause}); use auto or cpu") from error
    return device


def choose_decoding_threads(parameters: int) -> int:
    """CPU threads for decoding: one for a small model, whose passes are shorter than the wait for a second thread.

    Args:
        parameters: Of the whole model.
    """
    return 1 if parameters <= _ONE_THREAD_UNTIL else torch.get_num_threads()
