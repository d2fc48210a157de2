"""Model FLOP utilisation: operations that the model needs, over those that the device could have done meanwhile.

What the model needs is counted by ``ByteLM.flops_per_byte``: work that is done twice or for nothing (masked scores,
recomputed heads) does not raise it. What a device can do is the data sheet's figure for the GPUs that are known here,
and otherwise the speed of a large matrix product in the run's precision.

Source: Chowdhery et al. 2022 (arXiv 2204.02311), appendix B.
"""

import time
from dataclasses import dataclass
from typing import Final, Literal

import torch

_DENSE_BFLOAT16: Final[tuple[tuple[str, float], ...]] = (
    ("B200", 2250e12),
    ("GH200", 989.4e12),
    ("H200 NVL", 835e12),
    ("H200", 989.4e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989.4e12),
    ("A100", 312e12),
    ("L40S", 362e12),
)
"""A part of the name that the driver reports, and FLOP/s without sparsity from NVIDIA's data sheets; first match."""

MEASURED_S: Final = 0.4
"""How long a peak is measured, about."""
_SIDE: Final = {"cpu": 1536, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class PeakFlops:
    """What a device can do at most.

    Attributes:
        flops_per_second: Multiplications and additions, two for each pair.
        source: Where the figure comes from, in words.
    """

    flops_per_second: float
    source: str


def peak_flops(device: torch.device, precision: Literal["float32", "bfloat16"]) -> PeakFlops:
    """The most that a device can do, from its data sheet or, for half a second, measured.

    Args:
        device: On a CPU torch's present number of threads counts.
        precision: Of the matrix products.
    """
    if device.type == "cuda" and precision == "bfloat16":
        name = torch.cuda.get_device_name(device)
        known = known_peak_flops(name)
        if known is not None:
            return PeakFlops(flops_per_second=known, source=f"data sheet of {name}, dense bfloat16")
    side = _SIDE.get(device.type, 2048)
    return PeakFlops(
        flops_per_second=measured_flops(device, precision, side=side),
        source=f"measured here: {precision} product of {side} x {side} matrices",
    )


def known_peak_flops(gpu: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by the name that its driver reports; None where it is not known here.

    Example:
        >>> known_peak_flops("NVIDIA A100-SXM4-80GB")
        312000000000000.0
    """
    return next((flops for part, flops in _DENSE_BFLOAT16 if part in gpu), None)


def measured_flops(
    device: torch.device,
    precision: Literal["float32", "bfloat16"],
    *,
    side: int,
    seconds: float = MEASURED_S,
) -> float:
    """FLOP/s of the fastest of several products of two square matrices.

    Args:
        device: Where.
        precision: Of the matrices.
        side: Rows and columns.
        seconds: How long to try; one product is timed in any case.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    # No random numbers: a run's own generators must not notice.
    values = torch.linspace(-1, 1, side * side, device=device)
    left, right = values.cos().to(dtype).view(side, side), values.to(dtype).view(side, side)
    product = left @ right  # the first one may choose and load a kernel
    fastest_s = float("inf")
    end_s = time.perf_counter() + seconds
    while True:
        _wait(device)
        begun_s = time.perf_counter()
        torch.mm(left, right, out=product)
        _wait(device)
        now_s = time.perf_counter()
        fastest_s = min(fastest_s, now_s - begun_s)
        if now_s >= end_s:
            return 2.0 * side**3 / fastest_s


def mfu(flops_per_byte: float, bytes_per_second: float, peak: PeakFlops) -> float:
    """Model FLOP utilisation, 0 … 1.

    Args:
        flops_per_byte: Of the model at the run's window, forward and backward.
        bytes_per_second: Bytes learnt from.
        peak: Of the device, or of all devices together.

    Example:
        >>> mfu(6e6, 50e3, PeakFlops(flops_per_second=1e12, source="example"))
        0.3
    """
    return flops_per_byte * bytes_per_second / peak.flops_per_second


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
