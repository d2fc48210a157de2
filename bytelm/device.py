"""Which device a setting means, and how many CPU threads decode fastest on it.

Nothing here imports torch before it must: a machine without a GPU answers ``auto`` by itself.
"""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bytelm.errors import ConfigError
from bytelm.machine import cores
from bytelm.names import hint

if TYPE_CHECKING:
    import torch

_ONE_THREAD_UNTIL: Final = 8_000_000
"""Parameters up to which one thread decodes at least as fast as two (docs/experiments.md, 2026-11-23)."""

_DEVICES: Final = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
"""What a driver of GPUs that torch calls CUDA puts there: NVIDIA's, that of its small boards, WSL's, AMD's."""
_CPUS: Final = Path("/sys/devices/system/cpu")


_KNOWN: Final = ("auto", "cpu", "cuda", "mps", "xpu")


def check_device_name(name: str) -> None:
    """Refuse what is no name of a device that torch computes on, without importing torch.

    Raises:
        ConfigError: It is none; with the nearest name.

    Example:
        >>> check_device_name("cuda:1")
        >>> check_device_name("cdua")
        Traceback (most recent call last):
        bytelm.errors.ConfigError: there is no device 'cdua'; did you mean 'cuda'?
    """
    kind, _, number = name.partition(":")
    if kind not in _KNOWN or not (number.isdecimal() or ":" not in name):
        raise ConfigError(f"there is no device {name!r}; {hint(kind, _KNOWN)}")


def choose_device(name: str) -> "torch.device":
    """The device that a setting means.

    Args:
        name: torch's name for it, or ``auto``: CUDA where there is one, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    check_device_name(name)

    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch that was built without a device asserts
        cause = str(error).splitlines()[0]
        raise ConfigError(f"the device {name!r} cannot be used here ({cause}); use auto or cpu") from error
    return device


def multiplies_bfloat16(device: "torch.device") -> bool:
    """Whether a device multiplies bfloat16 itself: a CPU with AVX-512 BF16 or AMX, a GPU whose driver says so."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def means_cpu(name: str) -> bool:
    """Whether a setting means the CPU; torch is asked only where there may be another device.

    Args:
        name: As ``choose_device`` takes it.

    Raises:
        ConfigError: There is no such device here.
    """
    if name == "cpu" or (name == "auto" and not may_have_cuda()):
        return True
    return choose_device(name).type == "cpu"


def may_have_cuda() -> bool:
    """Whether a driver is there without which torch finds no CUDA device."""
    if platform.system() == "Linux":
        return any(Path(place).exists() for place in _DEVICES)
    return platform.system() != "Darwin"


def choose_decoding_threads(parameters: int) -> int:
    """CPU threads for decoding: one for a small model, whose passes are shorter than the wait for a second thread.

    Args:
        parameters: Of the whole model.
    """
    return 1 if parameters <= _ONE_THREAD_UNTIL else usable_threads()


def usable_threads() -> int:
    """Threads that can compute at once: the cores that this process may use, or fewer if OMP_NUM_THREADS says so."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    # Two threads of one core share what computes.
    usable = max(1, min(cores().usable, len({_siblings(number) for number in allowed})))
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(usable, int(asked)) if asked.isdigit() and int(asked) > 0 else usable


def _siblings(number: int) -> str:
    """The logical processors of the core that one belongs to; itself where the system does not say."""
    try:
        return (_CPUS / f"cpu{number}/topology/thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(number)
