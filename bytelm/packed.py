"""Matrices in the layout of the CPU's matrix kernel, made once: decoding multiplies few rows, again and again.

oneDNN reads a packed matrix at memory speed for one row and for a dozen alike, which a general matrix product does
not, and a row of its result has the same bits whatever the number of rows (``docs/experiments.md``, 2026-11-24).

Shapes: M rows, I inputs, O outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 150_000
"""Weights from which a packed product is faster: below, calling oneDNN takes longer than a general product."""


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
