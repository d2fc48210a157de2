"""Small measurements of a machine: copies, writes, frames, and whether an attention backend computes what it should."""

import importlib.resources
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import zstandard

from bytelm.attention import Mask, attend
from bytelm.config import AttentionBackend

WRITTEN_BYTES: Final = 64 << 20
"""Size of the file that ``write_speed`` makes."""

_COPIED_BYTES: Final = 256 << 20
_PACKED_BYTES: Final = 1 << 20
_FRAME_BYTES: Final = 256 << 10


@dataclass(frozen=True, kw_only=True)
class FrameSpeed:
    """Raw bytes a second that one thread packs into frames of a corpus, and unpacks."""

    packed: float
    unpacked: float


def copy_speed(device: torch.device) -> float:
    """Bytes read and written in a second, by the fastest of several copies that are larger than the caches."""
    size = _COPIED_BYTES if device.type == "cpu" else 4 * _COPIED_BYTES
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # the pages of the target are made
    seconds = []
    for _ in range(3):
        begun_s = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun_s)
    return 2 * size / min(seconds)


def write_speed(folder: Path) -> tuple[float, float]:
    """Bytes a second into a file that is flushed at its end, and the median of seconds for a small flushed file.

    Args:
        folder: Where the files are made and removed.
    """
    block = os.urandom(1 << 20)  # nothing that a file system could compress
    with tempfile.TemporaryFile(dir=folder) as file:
        begun_s = time.perf_counter()
        for _ in range(WRITTEN_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        speed = WRITTEN_BYTES / (time.perf_counter() - begun_s)
    flushes = []
    for _ in range(5):
        with tempfile.TemporaryFile(dir=folder) as file:
            begun_s = time.perf_counter()
            file.write(block[:4096])
            file.flush()
            os.fsync(file.fileno())
            flushes.append(time.perf_counter() - begun_s)
    return speed, statistics.median(flushes)


def frame_speed(level: int) -> FrameSpeed:
    """How fast one thread packs and unpacks frames of text.

    Args:
        level: Of zstd.
    """
    sample = importlib.resources.files("bytelm.data").joinpath("sample.tar.zst").read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(sample)) as reader:
        raw = reader.read(_PACKED_BYTES)
    frames = [raw[start : start + _FRAME_BYTES] for start in range(0, len(raw), _FRAME_BYTES)]
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    packed = [compressor.compress(frame) for frame in frames]
    packed_s = _seconds(lambda: [compressor.compress(frame) for frame in frames])
    decompressor = zstandard.ZstdDecompressor()
    unpacked_s = min(_seconds(lambda: [decompressor.decompress(frame) for frame in packed]) for _ in range(5))
    return FrameSpeed(packed=len(raw) / packed_s, unpacked=len(raw) / unpacked_s)


def attention_fault(backend: AttentionBackend, device: torch.device, dtype: torch.dtype, channels: int) -> str | None:
    """What is wrong with a backend on packed documents and a window, forward and backward; None where nothing is."""
    generator = torch.Generator().manual_seed(0)
    length = 256
    documents_BT = (torch.arange(length) >= 100).int().unsqueeze(0).to(device)
    found: dict[AttentionBackend, list[torch.Tensor]] = {}
    for one in (backend, "reference"):
        generator.manual_seed(0)
        states = [
            torch.randn(1, heads, length, channels, generator=generator).to(device, dtype).requires_grad_()
            for heads in (4, 2, 2)
        ]
        mask = Mask.build(length, window_bytes=96, documents_BT=documents_BT, device=device, backend=one)
        try:
            mixed = attend(states[0], states[1], states[2], mask)
            mixed.float().square().sum().backward()
        except (RuntimeError, NotImplementedError, ImportError) as error:
            return f"it fails: {str(error).splitlines()[0]}"
        gradients = [torch.zeros_like(state) if state.grad is None else state.grad for state in states]
        found[one] = [mixed.detach(), *gradients]
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    worst = max(
        ((mine - right).float().norm() / right.float().norm()).item()
        for mine, right in zip(found[backend], found["reference"], strict=True)
    )
    return None if worst <= tolerance else f"it differs from the reference by {worst:.1e}"


def _seconds(work: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s
