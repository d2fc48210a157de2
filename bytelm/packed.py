"""Matrices in the layout of the CPU's matrix kernel, made once: decoding multiplies few rows, again and again.

oneDNN reads a packed matrix at memory speed for one row and for a dozen alike, which a general matrix product does
not, and a row of its result has the same bits whatever the number of rows (``docs/experiments.md``, 2026-11-24).

Large matrices may be kept as int8. Then each row of the inputs is made int8 as well, by its own largest number, and the
products are sums of whole numbers: exact, so that here, too, a row's bits depend on nothing beside it.

Shapes: M rows, I inputs, O outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 150_000
"""Weights from which a packed product is faster: below, calling oneDNN takes longer than a general product."""

SMALLEST_INT8 = 500_000
"""Weights from which a product of int8 is faster than a packed one of float32: below, making rows int8 takes longer."""

_LARGEST = 127
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix that is going to be multiplied often and not changed.

    Attributes:
        tensor: In oneDNN's own layout.
        dtype: Of the weights, which inputs must have too.
    """

    tensor: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight_OI: Tensor) -> "PackedWeight | None":
        """Pack a copy of a matrix; None where that is not faster, on an accelerator, or without oneDNN."""
        if weight_OI.numel() < SMALLEST:
            return None
        if weight_OI.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return None
        if weight_OI.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return None
        if weight_OI.dtype not in (torch.float32, torch.bfloat16):
            return None
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous()), weight_OI.dtype)

    def product(self, input_MI: Tensor) -> Tensor:
        """Inputs (…, I) times the transposed matrix: (…, O)."""
        return torch.ops.mkldnn._linear_pointwise(input_MI, self.tensor, None, "none", [], "")


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A matrix as int8, each output by its own scale.

    Attributes:
        tensor: In oneDNN's own layout, int8.
        scale_O: What 1 is worth in each output's weights, float32.
        zero_O: Zeros, which the kernel asks for.
        dtype: Of inputs and products: float32.

    Source:
        Dettmers et al. 2022, arXiv 2208.07339, section 2: inputs by rows, weights by outputs ("vector-wise"), here
        without a part for outliers.
    """

    tensor: Tensor
    scale_O: Tensor
    zero_O: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight_OI: Tensor) -> "QuantizedWeight":
        """Quantize a float32 matrix to the nearest of 255 numbers, evenly spaced about 0; each output has its own."""
        largest_O1 = weight_OI.detach().abs().amax(1, keepdim=True).clamp_min(_TINY)
        whole_OI = (weight_OI.detach() * (_LARGEST / largest_O1)).round().to(torch.int8)
        return cls(
            torch.ops.onednn.qlinear_prepack(whole_OI, None),
            largest_O1.squeeze(1) / _LARGEST,
            torch.zeros(len(weight_OI), dtype=torch.int64),
            torch.float32,
        )

    def product(self, input_MI: Tensor) -> Tensor:
        """Inputs (…, I) times the transposed matrix: (…, O), both float32."""
        unit_M1 = torch.linalg.vector_norm(input_MI, torch.inf, -1, keepdim=True).clamp_min_(_TINY).mul_(1 / _LARGEST)
        # 128 is the zero of the unsigned bytes, and what is cut off behind the point rounds to the nearest. In single
        # operations, which are rounded alike wherever an element stands.
        whole_MI = input_MI.div(unit_M1).add_(128.5).to(torch.uint8)
        product_MO = torch.ops.onednn.qlinear_pointwise(
            whole_MI, 1.0, 128, self.tensor, self.scale_O, self.zero_O, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product_MO.mul_(unit_M1)


Packed = PackedWeight | QuantizedWeight


def pack(weight_OI: Tensor, *, int8: bool = False) -> Packed | None:
    """The fastest form of a matrix; None where that is the matrix itself.

    Args:
        weight_OI: As trained.
        int8: Whether large matrices are to be int8; ``why_not_int8`` must have nothing against it.
    """
    if int8 and weight_OI.numel() >= SMALLEST_INT8:
        return QuantizedWeight.of(weight_OI)
    return PackedWeight.of(weight_OI)


def why_not_int8(device: torch.device) -> str:
    """Why products of int8 cannot be had here; "" where they can."""
    if device.type != "cpu":
        return f"it is for CPUs, and the device is {device}"
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    if not torch.cpu._is_vnni_supported():
        return "this processor has no instructions for it (VNNI)"
    return ""
