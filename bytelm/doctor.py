"""What this machine offers to training and decoding, what stands in the way, and what to do about it.

Every figure is measured now, in a fraction of a second each, and what else the machine is doing is part of the answer.
A *fault* keeps something from working or makes it much slower than it need be; a *note* is worth knowing. Both come
with a remedy.
"""

import importlib.metadata
import os
import platform
import re
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
import zstandard

import bytelm
from bytelm import attention_flex, attention_xformers, machine
from bytelm.attention import choose_backend
from bytelm.config import AttentionBackend, TrainConfig
from bytelm.device import choose_device
from bytelm.engine.library import REMEDY, load_library, unavailable_reason
from bytelm.errors import BytelmError, ConfigError
from bytelm.files import refusals_named
from bytelm.job import choose_precision
from bytelm.mfu import known_peak_flops, measured_flops
from bytelm.probes import WRITTEN_BYTES, attention_fault, copy_speed, frame_speed, write_speed

State = Literal["ok", "note", "fault"]

_FOR_DEVELOPERS: Final = ("bench", "bench-llama", "cross", "dev")
"""Extras that a user does not want."""

_LEVEL: Final = 9
_LITTLE_DISK: Final = 2 << 30
_LITTLE_MEMORY: Final = 2 << 30
_SLOW_DISK: Final = 50e6
_MUCH_ELSE: Final = 0.5
"""Processors' worth of other work from which on figures and runs suffer."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: Of the machine or the installation.
        state: ``ok``, ``note`` or ``fault``.
        text: What was found, for people.
        figures: The same for programs: JSON values.
        remedy: What to do; None where all is well.
    """

    part: str
    state: State
    text: str
    figures: dict[str, Any] = field(default_factory=dict)
    remedy: str | None = None


def examine(folder: Path) -> Iterator[Finding]:
    """Look at everything, one part after another.

    Args:
        folder: Where runs are to be written; a file of 64 MiB is written there and removed.
    """
    yield from _others()  # first, before this process itself keeps the machine busy
    yield from _versions()
    yield from _devices()
    yield from _threads()
    yield from _products()
    yield from _attention()
    yield from _compiler()
    yield from _engine()
    yield from _memory()
    yield from _disk(folder)
    yield from _frames()
    yield from _extras()


def _others() -> Iterator[Finding]:
    busy = machine.busy_processes(0.4)
    cores = sum(one.cores for one in busy)
    figures = {
        "cores": round(cores, 2),
        "processes": [{"name": one.name, "pid": one.number, "cores": round(one.cores, 2)} for one in busy[:5]],
    }
    if cores < _MUCH_ELSE:
        yield Finding(part="other work", state="ok", text="nothing else keeps the processors busy", figures=figures)
        return
    named = ", ".join(f"{one.name} (process {one.number}, {one.cores:.1f})" for one in busy[:3])
    yield Finding(
        part="other work",
        state="note",
        text=f"other processes keep {cores:.1f} cores busy: {named}",
        figures=figures,
        remedy="what follows is slower than on a quiet machine; wait for them, or train with fewer threads",
    )


def _versions() -> Iterator[Finding]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    packages = {name: _version_of(name) for name in ("numpy", "zstandard", "safetensors", "pydantic")}
    figures = {
        "bytelm": bytelm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "build": build,
    }
    text = f"bytelm {bytelm.__version__}, Python {platform.python_version()}, torch {torch.__version__} ({build})"
    wanted = _torch_wanted()
    if wanted is not None and not _within(torch.__version__, *wanted):
        low, high = wanted
        yield Finding(
            part="versions",
            state="note",
            text=f"{text}; bytelm is tested with torch {low} up to, but without, {high}",
            figures=figures | packages,
            remedy=f"pip install 'torch>={low},<{high}'; equal bytes in decoding are proved for these alone",
        )
    else:
        yield Finding(part="versions", state="ok", text=text, figures=figures | packages)


def _devices() -> Iterator[Finding]:
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = sorted(name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if able.get(name))
    yield Finding(
        part="processor",
        state="ok",
        text=f"{machine.processor_name()} ({', '.join(fast) or platform.machine()})",
        figures={"name": machine.processor_name(), "able": fast},
    )
    seen = machine.nvidia_gpus()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
            yield Finding(
                part="GPU",
                state="ok" if bfloat16 else "note",
                text=f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, compute capability {facts.major}.{facts.minor}",
                figures={
                    "name": facts.name,
                    "memory_bytes": facts.total_memory,
                    "capability": f"{facts.major}.{facts.minor}",
                    "known_peak_flops": known_peak_flops(facts.name),
                },
                remedy=None if bfloat16 else "it has no bfloat16: train.precision = auto takes float32",
            )
    elif seen and torch.version.cuda is None:
        yield Finding(
            part="GPU",
            state="fault",
            text=f"{', '.join(seen)} is there, but this torch is a CPU build",
            remedy="install the CUDA build: pip install --force-reinstall torch, from an index that has it",
        )
    elif seen:
        yield Finding(
            part="GPU",
            state="fault",
            text=f"{', '.join(seen)} is there, but torch cannot use it",
            remedy="try nvidia-smi; is the driver too old for this torch, or CUDA_VISIBLE_DEVICES empty?",
        )
    else:
        yield Finding(part="GPU", state="ok", text="none; everything runs on the processor", figures={"count": 0})


def _threads() -> Iterator[Finding]:
    cores = machine.cores()
    used = torch.get_num_threads()
    settings = {
        name: os.environ[name]
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
        if name in os.environ
    }
    figures = {
        "installed": cores.installed,
        "allowed": cores.allowed,
        "quota": cores.quota,
        "usable": cores.usable,
        "torch_threads": used,
        "environment": settings,
    }
    limits = "" if cores.usable == cores.installed else f" (of {cores.installed}; affinity or container take the rest)"
    told = ", ".join(f"{name}={value}" for name, value in settings.items())
    text = f"{cores.usable} cores{limits}, torch computes with {used} threads" + (f"; {told}" if told else "")
    if used > cores.usable:
        yield Finding(
            part="threads",
            state="fault",
            text=text,
            figures=figures,
            remedy=f"threads wait for each other: set train.threads or OMP_NUM_THREADS to {cores.usable}",
        )
    elif used == 1 < cores.usable:
        yield Finding(
            part="threads",
            state="note",
            text=text,
            figures=figures,
            remedy=f"other cores stay idle: --set train.threads={cores.usable}, or unset OMP_NUM_THREADS",
        )
    else:
        yield Finding(part="threads", state="ok", text=text, figures=figures)


def _products() -> Iterator[Finding]:
    device = choose_device("auto")
    side = 8192 if device.type == "cuda" else 1024
    speeds = {
        precision: measured_flops(device, precision, side=side, seconds=0.3) for precision in ("float32", "bfloat16")
    }
    text = ", ".join(f"{precision} {_flops(speed)}" for precision, speed in speeds.items())
    taken = choose_precision(TrainConfig(), device)
    yield Finding(
        part="products",
        state="ok",
        text=f"matrix products on {device}: {text}; train.precision = auto takes {taken}",
        figures={"device": str(device), "auto": taken, **{f"{name}_flops": round(speeds[name]) for name in speeds}},
    )


def _attention() -> Iterator[Finding]:
    device, channels = choose_device("auto"), 64
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    choice = choose_backend("auto", device, dtype=dtype, channels=channels)
    obstacles: dict[AttentionBackend, str | None] = {
        "torch": None,
        "flex": attention_flex.obstacle(device, channels),
        "xformers": attention_xformers.obstacle(device, dtype, channels),
    }
    for backend, obstacle in obstacles.items():
        figures = {"backend": backend, "auto": backend == choice.backend}
        name = f"attention: {backend}" + (" (auto takes it)" if backend == choice.backend else "")
        if obstacle is not None:
            yield Finding(part=name, state="ok", text=f"not here: {obstacle}", figures=figures | {"works": False})
            continue
        fault = attention_fault(backend, device, dtype, channels)
        if fault is None:
            text = "forward and backward agree with the reference"
            yield Finding(part=name, state="ok", text=text, figures=figures | {"works": True})
        else:
            yield Finding(
                part=name,
                state="fault",
                text=fault,
                figures=figures | {"works": False},
                remedy="choose another with train.attention_backend, and please report this",
            )


def _compiler() -> Iterator[Finding]:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is not None:
        yield Finding(
            part="compiler",
            state="ok",
            text=f"{compiler}, for torch.compile and the engine",
            figures={"path": compiler},
        )
    else:
        yield Finding(
            part="compiler",
            state="note",
            text="no C++ compiler, which torch.compile and the build of the engine need",
            figures={"path": None},
            remedy="install one, e.g. apt install g++; nothing else needs it",
        )


def _engine() -> Iterator[Finding]:
    asked = os.environ.get("BYTELM_ENGINE")
    try:
        library, reason = load_library(), unavailable_reason()
    except ConfigError as error:
        yield Finding(
            part="engine",
            state="fault",
            text=str(error),
            figures={"engine": None, "reason": str(error)},
            remedy="unset BYTELM_ENGINE, or give it another value",
        )
        return
    if library is not None:
        others = [name for name in library.isas if name != library.isa]
        yield Finding(
            part="engine",
            state="ok",
            text=f"decodes on CPUs with {library.isa} ({_listed(others)}), built by {library.compiler}",
            figures={
                "engine": library.isa,
                "variants": list(library.isas),
                "runnable": list(library.runnable),
                "compiler": library.compiler,
                "path": str(library.path),
            },
        )
        return
    off = asked == "off"
    yield Finding(
        part="engine",
        state="note" if off else "fault",
        text=f"torch decodes on CPUs, several times slower: {reason.removesuffix(REMEDY).rstrip(' ;')}",
        figures={"engine": None, "reason": reason},
        remedy="unset BYTELM_ENGINE" if off else "with a C++ compiler installed: python -m bytelm.engine.build",
    )


def _listed(names: list[str]) -> str:
    return f"it also has {', '.join(names)}" if names else "its only variant"


def _memory() -> Iterator[Finding]:
    device = choose_device("auto")
    memory = machine.memory()
    speed = copy_speed(torch.device("cpu"))
    figures: dict[str, Any] = {"copy_bytes_per_second": round(speed)}
    text = f"{speed / 1e9:.1f} GB/s read and written in a copy"
    state: State = "ok"
    if memory is not None:
        figures |= {"total_bytes": memory.total, "available_bytes": memory.available}
        text = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free, {text}"
        state = "note" if memory.available < _LITTLE_MEMORY else "ok"
    yield Finding(
        part="memory",
        state=state,
        text=text,
        figures=figures,
        remedy=None if state == "ok" else "close other programs, or train with a smaller train.batch_windows",
    )
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        speed = copy_speed(device)
        yield Finding(
            part="GPU memory",
            state="ok" if free > 0.5 * total else "note",
            text=f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free, {speed / 1e9:.0f} GB/s read and written in a copy",
            figures={"total_bytes": total, "available_bytes": free, "copy_bytes_per_second": round(speed)},
            remedy=None if free > 0.5 * total else "another process holds the rest: nvidia-smi names it",
        )


def _disk(folder: Path) -> Iterator[Finding]:
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    kind = machine.file_system(place)
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    free = shutil.disk_usage(place).free
    figures: dict[str, Any] = {"folder": str(place), "file_system": kind, "free_bytes": free}
    if free < 2 * WRITTEN_BYTES or 0 <= limit < 2 * WRITTEN_BYTES:
        cause = "is nearly full" if free < 2 * WRITTEN_BYTES else f"takes no file above {limit} bytes (ulimit -f)"
        yield Finding(
            part="disk", state="fault", text=f"{place} {cause}", figures=figures, remedy="choose another folder"
        )
        return
    try:
        with refusals_named(place):
            speed, flush_s = write_speed(place)
    except BytelmError as error:
        yield Finding(part="disk", state="fault", text=str(error), figures=figures, remedy="choose another folder")
        return
    figures |= {"write_bytes_per_second": round(speed), "flush_s": round(flush_s, 5)}
    text = (
        f"{place}: {free / 1e9:.0f} GB free{f' on {kind}' if kind else ''}, writes {speed / 1e6:.0f} MB/s to the disk, "
        f"a small file in {flush_s * 1e3:.1f} ms"
    )
    remedy = None
    if kind in ("tmpfs", "ramfs"):
        remedy = "this is main memory: checkpoints are gone after a restart, and what they hold cannot be used"
    elif free < _LITTLE_DISK:
        remedy = "free some space: a checkpoint takes 12 bytes a parameter, and several are kept"
    elif speed < _SLOW_DISK:
        remedy = "checkpoints take long here: choose another folder, or raise train.save_every_steps"
    yield Finding(part="disk", state="ok" if remedy is None else "note", text=text, figures=figures, remedy=remedy)


def _frames() -> Iterator[Finding]:
    speed = frame_speed(_LEVEL)
    backend = zstandard.backend
    text = (
        f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}, one thread: packs {speed.packed / 1e6:.0f} MB/s at "
        f"level {_LEVEL}, unpacks {speed.unpacked / 1e6:.0f} MB/s of text"
    )
    figures = {
        "version": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "backend": backend,
        "pack_bytes_per_second": round(speed.packed),
        "unpack_bytes_per_second": round(speed.unpacked),
    }
    slow = backend not in ("cext", "rust")
    yield Finding(
        part="zstd",
        state="note" if slow else "ok",
        text=text,
        figures=figures,
        remedy="it runs without its compiled backend: pip install --force-reinstall zstandard" if slow else None,
    )


def _extras() -> Iterator[Finding]:
    for extra, names in _declared_extras().items():
        versions = {name: _version_of(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        text = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
        yield Finding(
            part=f"extra: {extra}",
            state="ok",
            text=f"not installed; pip install 'bytelm[{extra}]' brings {', '.join(names)}" if missing else text,
            figures={"extra": extra, "versions": versions},
        )


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _declared_extras() -> dict[str, list[str]]:
    """Optional extras of this installation, with the distributions that each brings."""
    extras: dict[str, list[str]] = {}
    for requirement in _requirements():
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == [\"']([\w-]+)", requirement)
        if name and extra and extra[1] not in _FOR_DEVELOPERS:
            extras.setdefault(extra[1], []).append(name[0])
    return extras


def _requirements() -> list[str]:
    """What this installation declares; nothing where the source tree runs uninstalled."""
    try:
        return importlib.metadata.requires("bytelm") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _torch_wanted() -> tuple[str, str] | None:
    """Least version of torch and the first that is too new, as this installation declares them."""
    for requirement in _requirements():
        low, high = re.search(r">=([\d.]+)", requirement), re.search(r"<([\d.]+)", requirement)
        if re.match(r"torch\b", requirement) and low and high:
            return low[1], high[1]
    return None


def _within(version: str, low: str, high: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:2]]

    return numbers(low) <= numbers(version) < numbers(high)


def _flops(speed: float) -> str:
    return f"{speed / 1e12:.0f} TFLOP/s" if speed >= 10e12 else f"{speed / 1e9:.0f} GFLOP/s"
