"""Muon for many small matrices: those of one shape are orthogonalised together, in the precision of the device.

torch has Muon too, and this one takes the same steps. torch's goes from matrix to matrix, in bfloat16 whatever the
device: on a processor that does not multiply bfloat16 itself this took a fifth of a training step of nano's shape
(docs/experiments.md).

Shapes: N matrices of a shape, S their shorter side, L their longer one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from bytelm.device import multiplies_bfloat16

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 5
_LEAST_NORM: Final = 1e-7
_ADAMW_SIZE: Final = 0.2
"""Root mean square of the entries of a step of AdamW, over its rate, as it is found in practice."""


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, for matrices.

    Args:
        params: Matrices, or groups of them.
        lr: Rate; an entry of a step has the root mean square 0.2 · lr.
        weight_decay: Decoupled, times the rate.
        momentum: Decay of the mean gradient.

    Source:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with Nesterov's momentum; the
        factor 0.2 · sqrt(longer side) of the rate: Liu et al. 2025, arXiv 2502.16982, section 2.2, equation 4.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if matrices:
                self._update(matrices, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, matrices: Sequence[Tensor], rate: float, weight_decay: float, momentum: float) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for matrix in matrices:
            assert matrix.grad is not None
            mean = self._mean_of(matrix).lerp_(matrix.grad, 1.0 - momentum)
            update = matrix.grad.lerp(mean, momentum)
            matrix.mul_(1.0 - rate * weight_decay)
            wide = (update, matrix) if matrix.shape[0] <= matrix.shape[1] else (update.T, matrix.T)
            by_shape.setdefault(tuple(wide[0].shape), []).append(wide)
        for (_, long), alike in by_shape.items():
            steps_NSL = orthogonalised(torch.stack([update for update, _ in alike])).to(alike[0][1].dtype)
            for step, (_, matrix) in zip(steps_NSL, alike, strict=True):
                matrix.add_(step, alpha=-rate * _ADAMW_SIZE * math.sqrt(long))

    def _mean_of(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:  # torch's name: what was saved by either is continued by the other
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def orthogonalised(matrices_NSL: Tensor) -> Tensor:
    """Matrices whose singular values are all brought near 1 (0.7 to 1.2), by Newton and Schulz' iteration.

    Args:
        matrices_NSL: No side S longer than L; each is divided by its norm first.

    Returns:
        The same shape, in bfloat16 where the device multiplies it itself, else in float32.
    """
    x_NSL = matrices_NSL.to(torch.bfloat16 if multiplies_bfloat16(matrices_NSL.device) else torch.float32)
    x_NSL = x_NSL / torch.linalg.vector_norm(x_NSL, dim=(1, 2), keepdim=True).clamp_min(_LEAST_NORM)
    of_x, of_cube, of_fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram_NSS = torch.bmm(x_NSL, x_NSL.mT)
        change_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=of_cube, alpha=of_fifth)
        x_NSL = torch.baddbmm(x_NSL, change_NSS, x_NSL, beta=of_x)
    return x_NSL
