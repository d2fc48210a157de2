"""One step of a training: its windows, and what the model learns from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from bytelm.job import Job
from bytelm.loss import TrainOutput, multi_byte_loss
from bytelm.memory import out_of_memory_named
from bytelm.model import ByteLM
from bytelm.optim import set_learning_rate
from bytelm.packing import PackedBatch, with_draft_rows
from bytelm.split_tensors import whole
from bytelm.token_packing import pack_batch


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """One step, on the host."""

    loss: float
    grad_norm: float
    fault: Literal["loss", "gradient"] | None
    """What was not finite; the step then changed no weight."""
    learning_rate: float
    bits_K: list[float]
    """Bits of each head, summed over its targets."""
    count_K: list[int]
    """Bytes of each head's targets; of ids that stand for several bytes, their number times the mean."""


def load(job: Job) -> list[PackedBatch]:
    """The micro-batches of the next step that are this rank's."""
    micro_batches = []
    for _ in range(job.share.micro_batches):
        batch = pack_batch(next(job.loader), job.config, job.model.vocabulary, job.device)
        micro_batches.append(with_draft_rows(batch, job.config.heads.row_share, job.state.step))
    return micro_batches


def learn(job: Job, micro_batches: list[PackedBatch], rate: float, weights_K: Sequence[float] | None = None) -> Learnt:
    """One step of the optimizer, as if its micro-batches were one batch.

    Args:
        job: Model and optimizer.
        micro_batches: Of this step.
        rate: Learning rate.
        weights_K: Weight of each head's loss; 1 where None.

    Returns:
        What was learnt; where the loss or the gradient is not finite, nothing has changed.

    Raises:
        TrainingError: Memory is used up.
    """
    with out_of_memory_named(job.config, job.device, bfloat16=job.precision == "bfloat16", ranks=job.ranks):
        return _learn(job, micro_batches, rate, weights_K)


def _learn(job: Job, micro_batches: list[PackedBatch], rate: float, weights_K: Sequence[float] | None) -> Learnt:
    ranks = job.ranks
    valid_K = ranks.add_up(torch.stack([batch.valid_BTK.sum((0, 1)) for batch in micro_batches]).sum(0))
    job.optimizer.zero_grad()
    loss, bits_K = torch.zeros((), device=job.device), torch.zeros(len(valid_K), device=job.device)
    count_K = torch.zeros_like(valid_K)  # of heads that take part
    heads = job.config.heads

    def loss_of(model: ByteLM, batch: PackedBatch) -> TrainOutput:
        with job.autocast():
            return multi_byte_loss(
                model,
                batch,
                backward=heads.backward,
                counts_K=valid_K,
                weights_K=weights_K,
                z_loss=heads.z_loss,
            )

    for batch in micro_batches:
        output = job.shared.add_gradients(partial(loss_of, batch=batch), last=batch is micro_batches[-1])
        loss += output.loss.detach()
        bits_K += output.bits_per_byte_K * output.valid_count_K
        count_K += output.valid_count_K
    gradients = [parameter.grad for parameter in job.model.parameters() if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))
    length = norm.item()
    # Every rank decides from the same sums.
    total, infinite, *sums = ranks.sums([loss.item(), not math.isfinite(length), *bits_K.tolist(), *count_K.tolist()])
    finite = math.isfinite(total), infinite == 0
    learnt = Learnt(
        loss=total,
        grad_norm=length,
        fault=None if all(finite) else "gradient" if finite[0] else "loss",
        learning_rate=rate,
        bits_K=sums[: len(bits_K)],
        count_K=[round(count * job.config.model.bytes_per_id) for count in sums[len(bits_K) :]],
    )
    if learnt.fault is not None:
        job.optimizer.zero_grad()
        return learnt
    nn.utils.clip_grads_with_norm_(job.model.parameters(), job.config.train.clip_norm, norm)
    set_learning_rate(job.optimizer, rate)
    job.optimizer.step()
    if job.average is not None:
        job.average.update(job.state.step + 1)
    return learnt
