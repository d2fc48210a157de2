"""The loss of K heads: the sum of their cross-entropies, each the mean over the targets that count for it.

Four ways to the same gradients. ``naive`` keeps the activations of all heads. ``checkpoint`` computes each head
again in the backward pass. ``sequential`` runs one head forward and backward before the next, against the trunk's
output, and then the trunk once: the memory of one head, whatever K, at no extra work. ``auto`` is ``naive`` for
families whose heads are light, ``sequential`` for transformer heads.

Shapes: B batch, T bytes, D width, K prediction heads, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bytelm.config import BackwardMode
from bytelm.errors import ConfigError
from bytelm.heads import PredictionHeads
from bytelm.layers import Pass
from bytelm.model import ByteLM
from bytelm.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class TrainOutput:
    """What a micro-batch gives.

    Attributes:
        loss: Scalar in nats: the sum over heads of their mean cross-entropies; ``loss.backward()`` in every mode.
        bits_per_byte_K: Mean cross-entropy of each head in bits over this batch's own valid targets, detached; 0 for
            a head that has none.
        valid_count_K: Valid targets of each head in this batch, int64.
    """

    loss: Tensor
    bits_per_byte_K: Tensor
    valid_count_K: Tensor


def multi_byte_loss(
    model: ByteLM, batch: PackedBatch, *, backward: BackwardMode = "auto", counts_K: Tensor | None = None
) -> TrainOutput:
    """Cross-entropy of all heads on a packed batch.

    Args:
        model: Trunk and heads.
        batch: Inputs, targets, and which targets count.
        backward: How the heads are back-propagated; the gradients are the same. Where no gradient is wanted, all
            modes are the plain forward pass.
        counts_K: What each head's sum is divided by, where several micro-batches or ranks make one step: the valid
            targets of the whole step. This batch's own where None.

    Returns:
        Loss, bits per byte and counts.

    Raises:
        ConfigError: In the backward pass of ``sequential``, where a second derivative is asked for.

    Example:
        Two micro-batches as one step: divide both by the sum of their ``batch.valid_BTK.sum((0, 1))``, and add the
        gradients.

    Source:
        Gloeckle et al. 2024, arXiv 2404.19737, section 2, equation 2 and "memory-efficient implementation".
    """
    valid_count_K = batch.valid_BTK.sum((0, 1))
    divisor_K = (valid_count_K if counts_K is None else counts_K).clamp(min=1)
    hidden_BTD = model.trunk(batch.inputs_BT, batch.documents_BT)
    if backward == "auto":
        backward = "sequential" if model.heads.cache_layers else "naive"
    wants_gradient = torch.is_grad_enabled() and (
        hidden_BTD.requires_grad or any(parameter.requires_grad for parameter in model.heads.parameters())
    )
    if backward == "naive" or not wants_gradient:
        logits_BTKV = model.heads.logits(hidden_BTD, batch.documents_BT)
        nats_K = _nats(logits_BTKV, batch.targets_BTK, batch.valid_BTK)
        loss = (nats_K / divisor_K).sum()
    elif backward == "checkpoint":
        nats_K = _checkpointed_nats(model.heads, hidden_BTD, batch)
        loss = (nats_K / divisor_K).sum()
    else:
        shared = model.heads.window_pass(hidden_BTD, batch.documents_BT)
        arguments = (model.heads, shared, batch, divisor_K, hidden_BTD, *model.heads.parameters())
        loss, nats_K = _SequentialHeads.apply(*arguments)
    bits_K = nats_K.detach() / valid_count_K.clamp(min=1) / math.log(2)
    return TrainOutput(loss, bits_K, valid_count_K)


def _nats(logits_BTKV: Tensor, targets_BTK: Tensor, valid_BTK: Tensor) -> Tensor:
    """Summed cross-entropy of each head over its valid targets, in float32: (K)."""
    nats = F.cross_entropy(logits_BTKV.float().flatten(0, -2), targets_BTK.flatten(), reduction="none")
    return (nats.view(valid_BTK.shape) * valid_BTK).sum((0, 1))


def _head_nats(
    heads: PredictionHeads, head: int, hidden_BTD: Tensor, shared: Pass | None, batch: PackedBatch
) -> Tensor:
    """Summed cross-entropy of one head over its valid targets: (1)."""
    logits_BTKV = heads.head_logits(head, hidden_BTD, shared).unsqueeze(2)
    one = slice(head, head + 1)
    return _nats(logits_BTKV, batch.targets_BTK[..., one], batch.valid_BTK[..., one])


def _checkpointed_nats(heads: PredictionHeads, hidden_BTD: Tensor, batch: PackedBatch) -> Tensor:
    shared = heads.window_pass(hidden_BTD, batch.documents_BT)
    return torch.cat(
        [
            checkpoint(
                _head_nats, heads, head, hidden_BTD, shared, batch, use_reentrant=False, preserve_rng_state=False
            )
            for head in range(heads.count)
        ]
    )


class _SequentialHeads(torch.autograd.Function):
    """Heads one after another: the forward pass already takes their gradients, the backward pass hands them on.

    The logits and activations of a head are freed before the next head runs. What stays is one gradient of the size
    of the hidden state, and the gradients of the heads' parameters, which the caller is about to have anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        heads: PredictionHeads,
        shared: Pass | None,
        batch: PackedBatch,
        divisor_K: Tensor,
        hidden_BTD: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        hidden_BTD = hidden_BTD.detach().requires_grad_(ctx.needs_input_grad[4])
        wanted = [state for state in (hidden_BTD, *parameters) if state.requires_grad]
        gradients: list[Tensor | None] = [None] * len(wanted)
        nats = []
        for head in range(heads.count):
            with torch.enable_grad():
                nats_1 = _head_nats(heads, head, hidden_BTD, shared, batch)
                loss = (nats_1 / divisor_K[head]).sum()
            of_head = torch.autograd.grad(loss, wanted, allow_unused=True)
            gradients = [_sum(so_far, more) for so_far, more in zip(gradients, of_head, strict=True)]
            nats.append(nats_1.detach())
        nats_K = torch.cat(nats)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(nats_K)
        return (nats_K / divisor_K).sum(), nats_K

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradients below would pass for constants
            raise ConfigError(
                "heads that are back-propagated one after another have no second derivative; set heads.backward = naive"
            )
        gradients = iter(ctx.saved_tensors)
        found = [next(gradients) if wanted else None for wanted in ctx.needs_input_grad[4:]]
        grad_loss = grad_outputs[0]  # the nats of each head carry no gradient
        return (None, None, None, None, *(None if gradient is None else gradient * grad_loss for gradient in found))


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right
