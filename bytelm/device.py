"""Which device a setting means."""

import torch

from bytelm.errors import ConfigError


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
