"""Cross-entropy of many linear heads, of which only few logits ever exist.

A linear head costs little but its logits: V numbers a byte, in float32, with their gradients. Here a piece of them is
made, turned into its own gradient in place, multiplied into the gradients of weights and states, and forgotten.
Memory does not grow with K, and no pass over the logits leaves the cache.

Shapes: N bytes of the batch, D width, K prediction heads, V vocabulary; R bytes and k heads of a piece.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from bytelm.errors import ConfigError

NO_SECOND_DERIVATIVE: Final = (
    "heads that are back-propagated in the forward pass have no second derivative; set heads.backward = naive"
)

_HEADS: Final = 4
_ROWS: Final = {"cpu": 1024, "cuda": 65_536}
"""Size of a piece: on a CPU its logits stay in the cache, on a GPU the kernels are worth starting."""


def linear_heads_loss(
    states_ND: Tensor, weight: Tensor, targets_NK: Tensor, scale_NK: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Scaled cross-entropies of linear heads, summed up.

    Args:
        states_ND: What the heads read.
        weight: Rows of all heads (K · V, D).
        targets_NK: Ids, integers in [0, V).
        scale_NK: Factor of each target in the loss, float32; where 0, the target does not count.
        z_loss: Factor of the squared logarithm of the softmax's denominator, beside each cross-entropy.

    Returns:
        Loss, to be back-propagated, and the cross-entropies of each head (K) summed over what counts, detached and
        not scaled.
    """
    return _LinearHeadsLoss.apply(states_ND, weight, targets_NK, scale_NK, z_loss)


class _LinearHeadsLoss(torch.autograd.Function):
    """The forward pass already takes the gradients; the backward pass hands them on."""

    @staticmethod
    def forward(
        ctx: Any, states_ND: Tensor, weight: Tensor, targets_NK: Tensor, scale_NK: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        device = states_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states_ND.dtype
        wanted = list(ctx.needs_input_grad[:2])
        cast = states_ND.detach().to(dtype), weight.detach().to(dtype)
        loss, nats_K, grad_ND, grad_weight = _loss_and_gradients(*cast, targets_NK, scale_NK, z_loss, *wanted)
        ctx.save_for_backward(grad_ND, grad_weight)
        ctx.dtypes = states_ND.dtype, weight.dtype
        ctx.mark_non_differentiable(nats_K)
        return loss, nats_K

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradients below would pass for constants
            raise ConfigError(NO_SECOND_DERIVATIVE)
        grad_loss = grad_outputs[0]  # the cross-entropies of each head carry no gradient
        found = (
            (gradient * grad_loss).to(dtype) if wanted else None
            for gradient, dtype, wanted in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
        )
        return *found, None, None, None


def _sum_of_pieces(
    states_ND: Tensor,
    weight: Tensor,
    targets_NK: Tensor,
    scale_NK: Tensor,
    z_loss: float,
    wants_states: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, cross-entropies of each head (K), gradients of states and weight in float32, empty where not wanted."""
    count, heads = targets_NK.shape
    size = len(weight) // heads
    device = states_ND.device.type
    grad_ND, grad_weight = _room(states_ND, wants_states).zero_(), _room(weight, wants_weight).zero_()
    loss, nats_K = scale_NK.new_zeros(()), scale_NK.new_zeros(heads)
    with torch.autocast(device, enabled=False):
        for rows, some in _pieces(count, heads, device):
            states_RD, of_some = states_ND[rows], slice(some.start * size, some.stop * size)
            logits = states_RD @ weight[of_some].T
            more_loss, nats_k, grad_logits = _piece(logits, targets_NK[rows, some], scale_NK[rows, some], z_loss)
            loss += more_loss
            nats_K[some] += nats_k
            if wants_states:
                grad_ND[rows] += grad_logits @ weight[of_some]
            if wants_weight:
                grad_weight[of_some] += grad_logits.T @ states_RD
    return loss, nats_K, grad_ND, grad_weight


# An operator of its own, so that whoever traces or compiles a step meets one node and not the loop over all pieces.
_loss_and_gradients = torch.library.custom_op("bytelm::linear_heads_loss", _sum_of_pieces, mutates_args=())


@_loss_and_gradients.register_fake
def _(
    states_ND: Tensor,
    weight: Tensor,
    targets_NK: Tensor,
    scale_NK: Tensor,
    z_loss: float,  # noqa: ARG001
    wants_states: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nats_K = scale_NK.new_empty(targets_NK.shape[1])
    return scale_NK.new_empty(()), nats_K, _room(states_ND, wants_states), _room(weight, wants_weight)


def _room(state: Tensor, wanted: bool) -> Tensor:
    return torch.empty(state.shape if wanted else 0, dtype=torch.float32, device=state.device)


def _pieces(count: int, heads: int, device: str) -> Iterator[tuple[slice, slice]]:
    rows = _ROWS.get(device, _ROWS["cuda"])
    starts = itertools.product(range(0, count, rows), range(0, heads, _HEADS))
    for row, head in starts:
        yield slice(row, min(row + rows, count)), slice(head, min(head + _HEADS, heads))


def _piece(logits: Tensor, targets_Rk: Tensor, scale_Rk: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, cross-entropies of each head, and the gradient of the logits (R, k · V) in their own dtype."""
    rows, heads = targets_Rk.shape
    target, scale = targets_Rk.unsqueeze(2), scale_Rk.unsqueeze(2)
    scores = logits.view(rows, heads, -1).float()
    of_target = scores.gather(2, target)
    highest = scores.amax(2, keepdim=True)
    scores = scores.sub_(highest).exp_()
    sums = scores.sum(2, keepdim=True)
    log_sums = sums.log() + highest
    nats = log_sums - of_target
    loss = ((nats + z_loss * log_sums.square()) * scale).sum()
    # d loss / d logit = scale · ((1 + 2 z log_sum) · share - [this is the target])
    gradient = scores.mul_(scale * (1.0 + 2.0 * z_loss * log_sums) / sums)
    gradient.scatter_add_(2, target, -scale)
    return loss, (nats * (scale > 0)).sum((0, 2)), gradient.view(rows, -1).to(logits.dtype)
