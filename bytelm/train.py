"""Training: from settings and a corpus to a run, as a generator of what happened.

    load      the next windows of the corpus, packed: ids, K targets, what counts
    learn     loss of all heads, backward, over the micro-batches of a step; clip; AdamW at the schedule's rate
    log       bits per byte of every head, to metrics.jsonl and to whoever iterates
    validate  the same held-out bytes each time
    save      a checkpoint, from which the run goes on as if it had not stopped

The caller draws the picture: ``train`` yields frozen records and prints nothing. With a budget of steps or bytes
nothing depends on time, and in float32 on the CPU a run that was stopped and resumed is equal bit for bit, in its
log and in its weights, to one that was not. A step whose loss or gradient is not finite is refused before it
touches a weight.
"""

import contextlib
import math
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bytelm.config import RunConfig
from bytelm.errors import TrainingError
from bytelm.evaluate import bits_per_byte
from bytelm.job import Job, Meter, PrecisionUsed, Resume, open_job
from bytelm.loss import head_weights, multi_byte_loss
from bytelm.optim import set_learning_rate
from bytelm.packing import PackedBatch, pack
from bytelm.schedule import budget_spent, learning_rate

BitsByHead = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Started:
    """The run is set up; the first step comes next."""

    run: Path
    parameters: int
    device: str
    precision: PrecisionUsed
    held_out_bytes: int
    """Bytes that each validation scores; 0 where the corpus holds nothing out."""
    step: int
    """Steps that were done before, 0 in a fresh run."""
    resumed_from: Path | None
    damaged: tuple[str, ...]
    """A line for each newer checkpoint that was found damaged and renamed."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A logged step; sums and means are over the steps since the one logged before."""

    step: int
    fraction: float
    """Share of the budget that is spent, 0 … 1."""
    bytes_seen: int
    elapsed_s: float
    """Seconds in training, validation and saving, over all starts of the run."""
    bits_per_byte_by_head: BitsByHead
    """Mean over all targets that count, ends of documents included."""
    loss: float
    """Nats: the sum over heads, as it is minimised."""
    grad_norm: float
    """Of the last step, before clipping."""
    learning_rate: float
    """Of the last step."""
    bytes_per_second: float
    """In training steps, without validation and saving."""
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out bytes were scored."""

    step: int
    bytes_seen: int
    elapsed_s: float
    bits_per_byte_by_head: BitsByHead
    scored_bytes: int
    context_bytes: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint was written."""

    step: int
    checkpoint: Path


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last record: the budget is spent, or the caller asked to stop. Everything is saved."""

    reason: Literal["budget", "stopped"]
    step: int
    bytes_seen: int
    elapsed_s: float
    checkpoint: Path


Event = Started | Progress | Validation | Saved | Finished


def train(
    config: RunConfig,
    corpus: Path,
    run: Path,
    *,
    resume: Resume = "never",
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train a model, or go on training it.

    A resumed run may be given another budget, another rate, other intervals. The schedule follows the share of the
    present budget: 2000 steps asked for after 1000 of 1000 continue at the rate of the middle of 2000.

    Args:
        config: All settings; one budget must be set.
        corpus: Folder of the corpus; on resume the one that the run was started with.
        run: Folder of the run, made if missing.
        resume: ``never`` refuses a run that has checkpoints, ``require`` one that has none; ``auto`` goes on if it
            can and starts otherwise.
        should_stop: Asked before each step; True saves and finishes.

    Yields:
        ``Started``, then ``Progress``, ``Validation`` and ``Saved`` as they happen, then ``Finished``.

    Raises:
        ConfigError: No budget, a device that is not there, or settings that the run cannot take up.
        TrainingError: The loss or the gradient is not finite; the step was refused.
        CorpusError: The corpus is missing, damaged or shorter than one window.
        CheckpointError: All checkpoints are damaged, or they and ``resume``, settings or corpus do not fit together.
        StorageError: The disk refuses; checkpoints that were saved before are whole.
    """
    with contextlib.ExitStack() as stack:
        job = open_job(stack, config, corpus, run, resume)
        settings, state, clock = config.train, job.state, job.clock
        step_bytes = settings.accumulation * settings.batch_windows * config.data.window_bytes
        yield Started(
            run=run,
            parameters=job.model.parameter_counts()["total"],
            device=str(job.device),
            precision=job.precision,
            held_out_bytes=sum(map(len, job.held_out)),
            step=state.step,
            resumed_from=job.resumed_from,
            damaged=job.damaged,
        )
        stopped = False
        finished = budget_spent(settings, state.step, state.bytes_seen, clock.elapsed_s()) >= 1.0
        while not (finished or (stopped := should_stop())):
            begun_s = clock.elapsed_s()
            # Where the step will end, so that the last step of a countable budget has the last rate.
            end = budget_spent(settings, state.step + 1, state.bytes_seen + step_bytes, begun_s)
            begin = budget_spent(settings, state.step, state.bytes_seen, begun_s)
            weights_K = head_weights(config.heads, begin)
            learnt = learn(job, load(job), learning_rate(end, settings), weights_K)
            state.step += 1
            state.bytes_seen += step_bytes
            count(state.meter, learnt, step_bytes, clock.elapsed_s() - begun_s)

            fraction = budget_spent(settings, state.step, state.bytes_seen, clock.elapsed_s())
            finished = fraction >= 1.0
            if finished or state.step % settings.log_every_steps == 0:
                yield log(job, learnt, min(fraction, 1.0))
            if job.held_out and (finished or state.step % settings.validate_every_steps == 0):
                yield validate(job)
            if finished or state.step % settings.save_every_steps == 0:
                yield save(job)
        if state.saved_step != state.step:
            yield save(job)
        assert state.checkpoint is not None
        yield Finished(
            reason="stopped" if stopped else "budget",
            step=state.step,
            bytes_seen=state.bytes_seen,
            elapsed_s=clock.elapsed_s(),
            checkpoint=state.checkpoint,
        )


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """One step, on the host."""

    loss: float
    grad_norm: float
    learning_rate: float
    bits_K: list[float]
    """Bits of each head, summed over its targets."""
    count_K: list[int]
    """Targets of each head."""


def load(job: Job) -> list[PackedBatch]:
    """The micro-batches of the next step."""
    micro_batches = []
    for _ in range(job.config.train.accumulation):
        batch = next(job.loader)
        windows_BW = batch.windows_BW.to(job.device, non_blocking=True)
        micro_batches.append(
            pack(
                windows_BW,
                batch.rows_N,
                batch.offsets_N,
                batch.document_start_N,
                prediction_heads=job.config.heads.count,
            )
        )
    return micro_batches


def learn(job: Job, micro_batches: list[PackedBatch], rate: float, weights_K: Sequence[float] | None = None) -> Learnt:
    """One step of the optimizer, as if its micro-batches were one batch.

    Args:
        job: Model and optimizer.
        micro_batches: Of this step.
        rate: Learning rate.
        weights_K: Weight of each head's loss; 1 where None.

    Raises:
        TrainingError: The loss or the gradient is not finite; no weight has changed.
    """
    valid_K = torch.stack([batch.valid_BTK.sum((0, 1)) for batch in micro_batches]).sum(0)
    job.optimizer.zero_grad()
    loss, bits_K = torch.zeros((), device=job.device), torch.zeros(len(valid_K), device=job.device)
    count_K = torch.zeros_like(valid_K)  # of heads that take part
    heads = job.config.heads
    for batch in micro_batches:
        with job.autocast():
            output = multi_byte_loss(
                job.model,
                batch,
                backward=heads.backward,
                counts_K=valid_K,
                weights_K=weights_K,
                z_loss=heads.z_loss,
            )
        output.loss.backward()
        loss += output.loss.detach()
        bits_K += output.bits_per_byte_K * output.valid_count_K
        count_K += output.valid_count_K
    gradients = [parameter.grad for parameter in job.model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    learnt = Learnt(
        loss=loss.item(),
        grad_norm=norm.item(),
        learning_rate=rate,
        bits_K=bits_K.tolist(),
        count_K=count_K.tolist(),
    )
    if not (math.isfinite(learnt.loss) and math.isfinite(learnt.grad_norm)):
        raise _diverged(job, learnt)
    nn.utils.clip_grads_with_norm_(job.model.parameters(), job.config.train.clip_norm, norm)
    set_learning_rate(job.optimizer, rate)
    job.optimizer.step()
    return learnt


def count(meter: Meter, learnt: Learnt, step_bytes: int, seconds: float) -> None:
    """Add a step to what the next logged record sums up."""
    meter.bits_K = [total + more for total, more in zip(meter.bits_K, learnt.bits_K, strict=True)]
    meter.count_K = [total + more for total, more in zip(meter.count_K, learnt.count_K, strict=True)]
    meter.loss += learnt.loss
    meter.steps += 1
    meter.bytes += step_bytes
    meter.seconds += seconds


def log(job: Job, learnt: Learnt, fraction: float) -> Progress:
    """Log the steps since the last logged one, and begin to count anew."""
    state, meter = job.state, job.state.meter
    progress = Progress(
        step=state.step,
        fraction=fraction,
        bytes_seen=state.bytes_seen,
        elapsed_s=job.clock.elapsed_s(),
        bits_per_byte_by_head=meter.bits_per_byte_by_head(),
        loss=meter.loss / meter.steps,
        grad_norm=learnt.grad_norm,
        learning_rate=learnt.learning_rate,
        bytes_per_second=meter.bytes / meter.seconds,
        peak_memory_bytes=peak_memory_bytes(job.device),
    )
    state.meter = Meter.empty(job.config.heads.count)
    job.log.append(_record("step", progress))
    return progress


def validate(job: Job) -> Validation:
    """Score the held-out bytes with every head, and log it."""
    with job.autocast():
        scored = bits_per_byte(job.model, job.held_out, context_bytes=job.config.data.window_bytes)
    validation = Validation(
        step=job.state.step,
        bytes_seen=job.state.bytes_seen,
        elapsed_s=job.clock.elapsed_s(),
        bits_per_byte_by_head=scored.by_head,
        scored_bytes=scored.scored_bytes,
        context_bytes=scored.context_bytes,
        stride=scored.stride,
    )
    job.log.append(_record("validation", validation))
    return validation


def save(job: Job) -> Saved:
    """Write a checkpoint of this very step."""
    return Saved(step=job.state.step, checkpoint=job.save())


def _record(kind: str, event: Progress | Validation) -> dict[str, Any]:
    return {"kind": kind, "bits_per_byte": event.bits_per_byte_by_head[0], **asdict(event)}


def _diverged(job: Job, learnt: Learnt) -> TrainingError:
    what = "gradient" if math.isfinite(learnt.loss) else "loss"
    saved = job.state.checkpoint
    remedy = "start again" if saved is None else f"go on from {saved} with --resume auto"
    return TrainingError(
        f"step {job.state.step + 1}: the {what} is not finite at learning rate {learnt.learning_rate:.3g}; the update "
        f"was refused and training stopped; {remedy} and a lower train.learning_rate"
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: of the whole process on a CPU, of the allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # what the system counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
