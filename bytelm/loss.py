"""The loss of K heads: the weighted sum of their cross-entropies, each the mean over the targets that count for it.

Ways to the same gradients. ``naive`` keeps the activations of all heads. ``checkpoint`` computes each head again in
the backward pass. ``sequential`` takes the gradients of one head before the next one runs, and then of the trunk
once: the memory of one head, whatever K, at no extra work. What the memory of one head is depends on the family:
a piece of the logits for ``linear``; layer and logits for ``mlp`` and ``transformer``; the logits alone for a chain,
whose layers are needed until the gradient comes back through all of them.

Shapes: B batch, T bytes, D width, K prediction heads (k of them that take part), V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bytelm.config import BackwardMode, HeadsConfig
from bytelm.errors import ConfigError
from bytelm.fused_loss import NO_SECOND_DERIVATIVE, linear_heads_loss
from bytelm.heads import LinearHeads, PredictionHeads
from bytelm.layers import Pass
from bytelm.model import ByteLM
from bytelm.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class TrainOutput:
    """What a micro-batch gives.

    Attributes:
        loss: Scalar in nats: the weighted sum over heads of their mean cross-entropies; ``loss.backward()`` in every
            mode.
        bits_per_byte_K: Mean cross-entropy of each head in bits over this batch's own valid targets, detached and
            not weighted; 0 for a head that has none.
        valid_count_K: Valid targets of each head in this batch, int64; 0 for a head that takes no part.
    """

    loss: Tensor
    bits_per_byte_K: Tensor
    valid_count_K: Tensor


def head_weights(heads: HeadsConfig, spent: float) -> tuple[float, ...]:
    """Weight of each head's cross-entropy at a point of the budget.

    Args:
        heads: Ratio of one head's weight to that of the head before, and curriculum.
        spent: Share of the budget that is spent, 0 … 1; larger values count as 1.

    Returns:
        K weights, that of head 0 is 1; 0 for heads that take no part yet, or no more: they are not computed.

    Example:
        With three heads, a forward curriculum and a ratio of 0.5, the weights are (1, 0, 0) in the first third of
        the budget, (1, 0.5, 0) in the second, (1, 0.5, 0.25) in the last.

    Source:
        Curriculum in K equal stages, from one head to K or back: Aynetdinov and Akbik 2025, arXiv 2505.22757,
        section 3. Weights as powers of a constant: Cai et al. 2024, arXiv 2401.10774, section 2.2.1.
    """
    stage = min(int(max(spent, 0.0) * heads.count), heads.count - 1)
    active = {"none": heads.count, "forward": stage + 1, "reverse": heads.count - stage}[heads.curriculum]
    return tuple(heads.weight_ratio**head if head < active else 0.0 for head in range(heads.count))


def multi_byte_loss(
    model: ByteLM,
    batch: PackedBatch,
    *,
    backward: BackwardMode = "auto",
    counts_K: Tensor | None = None,
    weights_K: Sequence[float] | None = None,
    z_loss: float = 0.0,
) -> TrainOutput:
    """Cross-entropy of all heads on a packed batch.

    Args:
        model: Trunk and heads.
        batch: Inputs, targets, and which targets count.
        backward: How the heads are back-propagated; the gradients are the same. Where no gradient is wanted, all
            modes are the plain forward pass.
        counts_K: What each head's sum is divided by, where several micro-batches or ranks make one step: the valid
            targets of the whole step. This batch's own where None.
        weights_K: Weight of each head's mean in the loss, from ``head_weights``, one above 0 at least; 1 where None.
            Heads behind the last weight above 0 are not computed; their parameters get no gradient, or zeros.
        z_loss: Factor of the squared logarithm of the softmax's denominator, which is added to each cross-entropy
            in the loss: it keeps logits from drifting.

    Returns:
        Loss, bits per byte and counts.

    Raises:
        ConfigError: In the backward pass of ``sequential``, where a second derivative is asked for.

    Example:
        Two micro-batches as one step: divide both by the sum of their ``batch.valid_BTK.sum((0, 1))``, and add the
        gradients.

    Source:
        Gloeckle et al. 2024, arXiv 2404.19737, section 2, equation 2 and "memory-efficient implementation". z-loss:
        Chowdhery et al. 2022, arXiv 2204.02311, section 5.
    """
    heads = model.heads
    weights_K = [1.0] * heads.count if weights_K is None else weights_K
    active = range(max(head + 1 for head in range(heads.count) if weights_K[head] > 0))
    valid_count_K = batch.valid_BTK.sum((0, 1))
    divisor_K = (valid_count_K if counts_K is None else counts_K).clamp(min=1)
    weights = torch.tensor(weights_K, dtype=torch.float32, device=divisor_K.device)
    rule = _Rule(batch, weights / divisor_K, z_loss, active)

    hidden_BTD = model.trunk(batch.inputs_BT, batch.documents_BT)
    shared = heads.window_pass(hidden_BTD, batch.documents_BT)
    wants_gradient = torch.is_grad_enabled() and (
        hidden_BTD.requires_grad or any(parameter.requires_grad for parameter in heads.parameters())
    )
    if backward == "naive" or not wants_gradient:
        loss, nats_k = rule(heads.stacked_logits(hidden_BTD, shared, active), active)
    elif backward == "checkpoint":
        loss, nats_k = _checkpointed(heads, hidden_BTD, shared, rule)
    elif isinstance(heads, LinearHeads):
        loss, nats_k = _fused(heads, hidden_BTD, rule)
    else:
        function = _SequentialChain if heads.chained else _SequentialHeads
        used = heads.parameters_of(_computed(heads, active))
        loss, nats_k = function.apply(heads, shared, rule, hidden_BTD, *used)
    inactive = heads.count - len(active)
    valid_count_K = F.pad(valid_count_K[: len(active)], (0, inactive))
    bits_K = F.pad(nats_k.detach(), (0, inactive)) / valid_count_K.clamp(min=1) / math.log(2)
    return TrainOutput(loss, bits_K, valid_count_K)


@dataclass(frozen=True, slots=True)
class _Rule:
    """From logits to a loss.

    Attributes:
        batch: Targets, and which of them count.
        scale_K: Factor of each target of a head.
        z_loss: Factor of the squared logarithm of the denominator.
        active: Heads that take part.
    """

    batch: PackedBatch
    scale_K: Tensor
    z_loss: float
    active: range

    def __call__(self, logits_BTkV: Tensor, heads: range) -> tuple[Tensor, Tensor]:
        """Loss of some heads, and the cross-entropy of each summed over its valid targets (k), in float32."""
        some = slice(heads.start, heads.stop)
        targets, valid_BTk = self.batch.targets_BTK[..., some], self.batch.valid_BTK[..., some]
        return self._summed(logits_BTkV, targets, valid_BTk, some)

    def of(self, heads: PredictionHeads, head: int, state_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The same of one head, from its state, over the rows that it learns from."""
        if not heads.row_by_row:
            state_BTD = self.rows(head, state_BTD)
        targets, valid_BTK = self.rows(head, self.batch.targets_BTK), self.rows(head, self.batch.valid_BTK)
        some = slice(head, head + 1)
        return self._summed(heads.unembed(head, state_BTD).unsqueeze(2), targets[..., some], valid_BTK[..., some], some)

    def given(self, heads: PredictionHeads, head: int, before_BTD: Tensor) -> Tensor:
        """What a head needs of the state that it reads: the rows that it learns from, or all where it attends."""
        return self.rows(head, before_BTD) if heads.row_by_row else before_BTD

    def rows(self, head: int, states_BT: Tensor) -> Tensor:
        """The rows that a head learns from, as (1, R, …), of anything whose first dimensions are B, T."""
        rows_R = self.batch.draft_rows_R
        return states_BT if head == 0 or rows_R is None else states_BT.flatten(0, 1)[rows_R].unsqueeze(0)

    def _summed(self, logits_BTkV: Tensor, targets: Tensor, valid_BTk: Tensor, some: slice) -> tuple[Tensor, Tensor]:
        flat = logits_BTkV.float().flatten(0, -2)
        nats_BTk = F.cross_entropy(flat, targets.flatten(), reduction="none").view(valid_BTk.shape) * valid_BTk
        nats_k = penalised_k = nats_BTk.sum((0, 1))
        if self.z_loss:
            squares_BTk = flat.logsumexp(-1).square().view(valid_BTk.shape) * valid_BTk
            penalised_k = nats_k + self.z_loss * squares_BTk.sum((0, 1))
        return (penalised_k * self.scale_K[some]).sum(), nats_k


def _fused(heads: LinearHeads, hidden_BTD: Tensor, rule: _Rule) -> tuple[Tensor, Tensor]:
    count, size = len(rule.active), heads.vocabulary_size
    normed_BTD = heads.norm(hidden_BTD)
    scale_BTK = rule.batch.valid_BTK * rule.scale_K

    def part(some: slice) -> tuple[Tensor, Tensor]:
        """Heads that learn from the same rows."""
        states_ND, targets_NK, scale_NK = (
            rule.rows(some.start, one).flatten(0, 1) for one in (normed_BTD, rule.batch.targets_BTK, scale_BTK)
        )
        weight = heads.unembedding.weight[some.start * size : some.stop * size]
        return linear_heads_loss(states_ND, weight, targets_NK[:, some], scale_NK[:, some], rule.z_loss)

    if rule.batch.draft_rows_R is None or count == 1:
        return part(slice(0, count))
    (loss, nats_1), (more_loss, nats_k) = part(slice(0, 1)), part(slice(1, count))
    return loss + more_loss, torch.cat((nats_1, nats_k))


def _checkpointed(
    heads: PredictionHeads, hidden_BTD: Tensor, shared: Pass | None, rule: _Rule
) -> tuple[Tensor, Tensor]:
    """Each head computed again in the backward pass; of a chain, one state a head stays."""

    def run(head: int, before_BTD: Tensor) -> tuple[Tensor, ...]:
        state_BTD = heads.head_state(head, rule.given(heads, head, before_BTD), shared)
        return (state_BTD, *rule.of(heads, head, state_BTD)) if head in rule.active else (state_BTD,)

    losses, nats = [], {}
    before_BTD = hidden_BTD
    for head in _computed(heads, rule.active):
        state_BTD, *found = checkpoint(run, head, before_BTD, use_reentrant=False, preserve_rng_state=False)
        if heads.chained:
            before_BTD = state_BTD
        if found:
            losses.append(found[0])
            nats[head] = found[1]
    return torch.stack(losses).sum(), torch.cat([nats[head] for head in rule.active])


def _computed(heads: PredictionHeads, active: range) -> list[int]:
    """Heads that must be computed for the active ones, in order."""
    if not heads.chained:
        return list(active)
    order = list(heads.order)
    return order[: 1 + max(order.index(head) for head in active)]


class _Sequential(torch.autograd.Function):
    """What both ways of taking heads one by one share: the gradients are there when the forward pass is done.

    What stays is one gradient of the size of the hidden state, and the gradients of the heads' parameters, which the
    caller is about to have anyway.
    """

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradients below would pass for constants
            raise ConfigError(NO_SECOND_DERIVATIVE)
        gradients = iter(ctx.saved_tensors)
        found = [next(gradients) if wanted else None for wanted in ctx.needs_input_grad[3:]]
        grad_loss = grad_outputs[0]  # the cross-entropies of each head carry no gradient
        return (None, None, None, *(None if gradient is None else gradient * grad_loss for gradient in found))


class _SequentialHeads(_Sequential):
    """Independent heads: the logits and activations of a head are freed before the next head runs."""

    @staticmethod
    def forward(
        ctx: Any,
        heads: PredictionHeads,
        shared: Pass | None,
        rule: _Rule,
        hidden_BTD: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        hidden_BTD = hidden_BTD.detach().requires_grad_(ctx.needs_input_grad[3])
        wanted = [state for state in (hidden_BTD, *parameters) if state.requires_grad]
        total = _Total(wanted)
        for head in rule.active:
            with torch.enable_grad():
                loss, nats_1 = rule.of(heads, head, heads.head_state(head, rule.given(heads, head, hidden_BTD), shared))
            total.add_head(head, loss, nats_1)
            if loss.requires_grad:  # not of a head that is frozen
                total.add(torch.autograd.grad(loss, wanted, allow_unused=True))
        return total.hand_over(ctx, total.gradients)


class _SequentialChain(_Sequential):
    """Heads in a chain: all layers forward, then from the last head to the first logits, loss and layer backward.

    Each head's logits are freed before those of the next exist, and each layer's activations as soon as the gradient
    of all heads that stand on it has passed through.

    Source:
        Gloeckle et al. 2024, arXiv 2404.19737, appendix B, the order of forward and backward of a causal model.
    """

    @staticmethod
    def forward(
        ctx: Any,
        heads: PredictionHeads,
        shared: Pass | None,
        rule: _Rule,
        hidden_BTD: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        below_needs = ctx.needs_input_grad[3]
        layers, state_BTD = [], hidden_BTD
        for head in _computed(heads, rule.active):
            given_BTD = state_BTD.detach().requires_grad_(below_needs)
            with torch.enable_grad():
                state_BTD = heads.head_state(head, given_BTD, shared)
            layers.append((head, given_BTD, state_BTD))
            below_needs = state_BTD.requires_grad
        total, upstream_BTD = _Total(trained), None
        while layers:
            head, given_BTD, state_BTD = layers.pop()
            if head in rule.active:
                read_BTD = state_BTD.detach().requires_grad_(state_BTD.requires_grad)
                with torch.enable_grad():
                    loss, nats_1 = rule.of(heads, head, read_BTD)
                total.add_head(head, loss, nats_1)
                upstream_BTD = total.back(loss, None, read_BTD, upstream_BTD)
            if state_BTD.requires_grad:
                assert upstream_BTD is not None
                upstream_BTD = total.back(state_BTD, upstream_BTD, given_BTD, None)
        first = [upstream_BTD] if ctx.needs_input_grad[3] else []
        return total.hand_over(ctx, first + total.gradients)


class _Total:
    """Loss, cross-entropies and gradients so far."""

    def __init__(self, wanted: list[Tensor]) -> None:
        self.wanted = wanted
        self.gradients: list[Tensor | None] = [None] * len(wanted)
        self.losses: list[Tensor] = []
        self.nats: dict[int, Tensor] = {}

    def add_head(self, head: int, loss: Tensor, nats_1: Tensor) -> None:
        """Note what a head gave."""
        self.losses.append(loss.detach())
        self.nats[head] = nats_1.detach()

    def add(self, more: Sequence[Tensor | None]) -> None:
        """Add gradients of what is wanted."""
        self.gradients = [_sum(so_far, new) for so_far, new in zip(self.gradients, more, strict=True)]

    def back(self, result: Tensor, upstream: Tensor | None, given: Tensor, so_far: Tensor | None) -> Tensor | None:
        """Take a result's gradients, add those of what is wanted, and return that of what was given."""
        if not result.requires_grad:
            return so_far
        inputs = [state for state in (given, *self.wanted) if state.requires_grad]
        found = torch.autograd.grad(result, inputs, upstream, allow_unused=True)
        of_given = None
        if given.requires_grad:
            of_given, *found = found
        self.add(found)
        return _sum(so_far, of_given)

    def hand_over(self, ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Save the gradients for the backward pass; return the loss and the cross-entropies (k), heads ascending."""
        nats_k = torch.cat([self.nats[head] for head in sorted(self.nats)])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(nats_k)
        return torch.stack(self.losses).sum(), nats_k


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right
