"""What the system says about this machine: processors, memory, other processes, GPUs; no torch needed.

Limits of a container count: of several answers to "how much may this process use", the least is taken. Where the
system does not say (it has no /proc), the answer is None or the plainest one.
"""

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_CGROUP: Final = Path("/sys/fs/cgroup")
_NO_LIMIT: Final = 1 << 60
"""cgroup v1 writes "no limit" as a number near the largest there is."""
_LEAST_CORES: Final = 0.05
_COMMAND_LENGTH: Final = 60


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Logical processors.

    Attributes:
        installed: In the machine.
        allowed: On which this process may run.
        quota: Of which the container lets it use the time of so many; None without a limit.
    """

    installed: int
    allowed: int
    quota: float | None

    @property
    def usable(self) -> int:
        """How many threads can run at once, at least 1."""
        return self.allowed if self.quota is None else max(1, min(self.allowed, int(self.quota)))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory, in bytes, within the container's limit."""

    total: int
    available: int


@dataclass(frozen=True, kw_only=True)
class BusyProcess:
    """Another process and the processors that it kept busy: 1.0 is one of them."""

    name: str
    """The beginning of its command."""
    number: int
    cores: float


def processor_name() -> str:
    """What the processor calls itself."""
    for line in _lines(_PROC / "cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> Cores:
    """Logical processors, and how many of them this process may use."""
    installed = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else installed
    quota: float | None = None
    for folder in _cgroups("cpu"):
        words = " ".join([*_lines(folder / "cpu.max"), *_lines(folder / "cpu.cfs_quota_us")]).split()
        period = (words[1:] or _lines(folder / "cpu.cfs_period_us") or ["100000"])[0]
        if words and words[0].lstrip("-").isdigit() and int(words[0]) > 0:
            share = int(words[0]) / int(period)
            quota = share if quota is None else min(quota, share)
    return Cores(installed=installed, allowed=allowed, quota=quota)


def memory() -> Memory | None:
    """Main memory; None where the system does not say."""
    facts = {}
    for line in _lines(_PROC / "meminfo"):
        name, _, value = line.partition(":")
        facts[name] = int(value.split()[0]) * 1024
    if "MemTotal" not in facts or "MemAvailable" not in facts:
        return None
    total, available = facts["MemTotal"], facts["MemAvailable"]
    for folder in _cgroups("memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = (_number(folder / name) for name in (limit_name, used_name))
            if limit is not None and used is not None and limit < _NO_LIMIT:
                # Cached files are given back when memory is asked for.
                cached = next((int(v) for k, v in _pairs(folder / "memory.stat") if k == "inactive_file"), 0)
                total, available = min(total, limit), min(available, max(0, limit - used + cached))
    return Memory(total=total, available=available)


def busy_processes(seconds: float) -> list[BusyProcess]:
    """Other processes that work, the busiest first; what takes less than a twentieth of a core is left out.

    Args:
        seconds: How long to look.
    """
    before, begun_s = _processor_seconds(), time.monotonic()
    time.sleep(seconds)
    after, passed_s = _processor_seconds(), time.monotonic() - begun_s
    found = [
        (number, (used_s - before[number]) / passed_s)
        for number, used_s in after.items()
        if number in before and number != os.getpid()
    ]
    busy = sorted((one for one in found if one[1] >= _LEAST_CORES), key=lambda one: -one[1])
    return [BusyProcess(name=_command(number), number=number, cores=share) for number, share in busy]


def nvidia_gpus() -> list[str]:
    """NVIDIA GPUs that the system sees, whether or not torch can use them, by name."""
    found = []
    for facts in sorted((_PROC / "driver/nvidia/gpus").glob("*/information")):
        name = next(
            (line.partition(":")[2].strip() for line in _lines(facts) if line.startswith("Model")), "NVIDIA GPU"
        )
        found.append(name)
    return found or ["NVIDIA GPU"] * len(list(Path("/dev").glob("nvidia[0-9]*")))


def file_system(folder: Path) -> str | None:
    """Kind of the file system on which a folder lies (ext4, nfs, tmpfs …); None where the system does not say."""
    place, kind, longest = folder.resolve(), None, -1
    for line in _lines(_PROC / "self/mounts"):
        _, mounted, its_kind = line.split()[:3]
        point = Path(mounted.encode().decode("unicode_escape"))  # a space is written \040
        if place.is_relative_to(point) and len(point.parts) > longest:
            kind, longest = its_kind, len(point.parts)
    return kind


def _cgroups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that bind this process, of version 2 and of version 1."""
    for line in _lines(_PROC / "self/cgroup"):
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = _CGROUP / controller if controllers else _CGROUP
        folder = base / place.lstrip("/")
        # In a container the own group is often mounted at the top.
        yield from (one for one in (folder, *folder.parents) if one.is_relative_to(base))


def _processor_seconds() -> dict[int, float]:
    """Seconds of computing of every process, in the kernel included."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for path in _PROC.glob("[0-9]*/stat"):
        fields = " ".join(_lines(path)).rpartition(")")[2].split()  # behind the name, which may hold anything
        if fields:  # else it has just ended
            found[int(path.parent.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return found


def _command(process: int) -> str:
    words = [Path(word).name if place == 0 else word for place, word in enumerate(_words(process))]
    return " ".join(words)[:_COMMAND_LENGTH] or f"process {process}"


def _words(process: int) -> list[str]:
    """Words of the command of a process; its bare name where it has none, as the system's own have not."""
    words = [word for word in "\n".join(_lines(_PROC / f"{process}/cmdline")).split("\0") if word]
    return words or _lines(_PROC / f"{process}/comm")


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        yield key, value


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
