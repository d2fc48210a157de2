"""What a run will take, before it is run: parameters, operations, memory, disk, and from a few real steps the time.

The steps are those of the run itself (its corpus, its loader, its model, its optimizer), so nothing about the machine
is assumed. Nothing is written. Where a step would not fit into memory none is tried; what is known without one is told
all the same, with the settings that would fit.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from bytelm.checkpoint import Snapshot, checkpoint_bytes
from bytelm.config import RunConfig
from bytelm.corpora import Given, open_corpora
from bytelm.device import choose_device
from bytelm.evaluate import bits_per_byte
from bytelm.fine_tuning import freeze
from bytelm.job import Job, PrecisionUsed, choose_precision, open_job, random_states
from bytelm.memory import (
    StepMemory,
    advice,
    available_memory,
    needed_memory,
    peak_memory_bytes,
    trace_step,
)
from bytelm.mfu import mfu, peak_flops
from bytelm.model import ByteLM
from bytelm.run_folder import Resume
from bytelm.schedule import budget_spent, learning_rate
from bytelm.scoring import BATCH_IDS
from bytelm.step import learn, load
from bytelm.train import sample
from bytelm.vocabularies import learn_vocabulary, with_vocabulary

_LEAST_STEPS: Final = 3
_LEAST_S: Final = 2.0
_MOST_MICRO_BATCHES: Final = 4
"""Of a timed step: the others of a long step take as long as these."""
_VALIDATED_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What real steps took.

    Attributes:
        steps: How many were timed, after one that was not.
        step_s: Mean seconds of one, the wait for its windows included; of a step of many micro-batches some are timed.
        bytes_per_second: In steps.
        mfu: Model FLOP utilisation in steps.
        peak_flops: What that is a share of, and where the figure comes from.
        validation_s: Seconds of one validation; 0 where the corpus holds nothing out.
        peak_memory_bytes: As the run will log it: of the whole process on a CPU, of the allocator on a GPU.
        steps_left: Steps until the budget is spent.
        time_left_s: Seconds until then: steps and validations, without saving.
    """

    steps: int
    step_s: float
    bytes_per_second: float
    mfu: float
    peak_flops: str
    validation_s: float
    peak_memory_bytes: int
    steps_left: int
    time_left_s: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take.

    Attributes:
        parameters: By part.
        flops_per_byte: Forward and backward.
        step_bytes: Bytes learnt from in a step.
        device: Where it computes.
        precision: Of the matrix products.
        memory: At the peak of a step, by part, without the program itself and what the allocator wastes.
        available_memory_bytes: Free on the device now; None where the system does not say.
        saving_memory_bytes: Main memory for the copy from which checkpoints are written; 0 in the foreground.
        checkpoint_bytes: Disk for one checkpoint.
        disk_bytes: Disk for all that are kept, the best included, and one more while it is written.
        speed: What real steps took; None where none was tried.
        obstacle: Why none was tried, and what to change.
    """

    parameters: dict[str, int]
    flops_per_byte: float
    step_bytes: int
    device: str
    precision: PrecisionUsed
    memory: StepMemory
    available_memory_bytes: int | None
    saving_memory_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    speed: Speed | None
    obstacle: str | None


def estimate(config: RunConfig, corpus: Given, run: Path, *, resume: Resume = "never") -> Estimate:
    """Tell what a run will take, and refuse what the run would refuse.

    Args:
        config: All settings; one budget must be set.
        corpus: Folder or address of the corpus, or several with weights.
        run: Folder of the run; it is not made.
        resume: As for ``bytelm.train.train``; what is left of the budget of a run that goes on is told.

    Raises:
        ConfigError, CorpusError, CheckpointError, StorageError, TrainingError: As ``bytelm.train.train``.
    """
    settings = config.train
    budget_spent(settings, 0, 0, 0.0)  # refuses settings without a budget
    vocabulary = None
    if resume == "never" and config.train.init_from is None:  # otherwise it is saved, and its lengths with it
        vocabulary = learn_vocabulary(config, open_corpora(corpus, config))
        config = with_vocabulary(config, vocabulary)
    device = choose_device(settings.device)
    precision = choose_precision(settings, device)
    traced = trace_step(config, device, bfloat16=precision == "bfloat16")
    available = available_memory(device)
    speed, obstacle = None, None
    if available is not None and needed_memory(traced.memory, device) > available:
        obstacle = advice(config, device, bfloat16=precision == "bfloat16", available=available)
    else:
        micro_batches = min(settings.accumulation, _MOST_MICRO_BATCHES)
        shorter = config.with_changes([f"train.accumulation={micro_batches}"])
        with contextlib.ExitStack() as stack:
            job = open_job(stack, shorter, corpus, run, resume, vocabulary=vocabulary, dry=True)
            speed = measure(job, accumulation=settings.accumulation)
    with torch.device("meta"):
        model = ByteLM(config.model, config.heads)
        freeze(model, settings.frozen)
    size = checkpoint_bytes(
        Snapshot(
            step=0,
            config=config,
            corpus=open_corpora(corpus, config).place,
            fingerprint="0" * 64,
            model=traced.model,
            average=traced.average,
            optimizer=traced.optimizer,
            random=random_states(device),
            progress={},
        )
    )
    return Estimate(
        parameters=model.parameter_counts(),
        flops_per_byte=model.flops_per_byte(config.data.window_bytes, training=True),
        step_bytes=_step_bytes(config),
        device=str(device),
        precision=precision,
        memory=traced.memory,
        available_memory_bytes=available,
        saving_memory_bytes=size if settings.save_in_background else 0,
        checkpoint_bytes=size,
        disk_bytes=size * (settings.keep_checkpoints + settings.keep_best + 1),
        speed=speed,
        obstacle=obstacle,
    )


def measure(job: Job, *, accumulation: int) -> Speed:
    """Time real steps of a job, and reckon up to the end of its budget.

    Args:
        job: Just opened, dry; its weights move a little.
        accumulation: Micro-batches of a step of the run, if they are more than those of the job.

    Raises:
        TrainingError: The loss or the gradient is not finite.
    """
    settings, config = job.config.train, job.config
    elapsed_s = job.clock.elapsed_s()
    spent = budget_spent(settings, job.state.step, job.state.bytes_seen, elapsed_s)
    rate = learning_rate(max(spent, 1e-3), settings)
    learn(job, load(job), rate)
    seconds: list[float] = []
    while len(seconds) < _LEAST_STEPS or sum(seconds) < _LEAST_S:
        begun_s = time.perf_counter()
        learn(job, load(job), rate)
        seconds.append(time.perf_counter() - begun_s)
    step_bytes = _step_bytes(config) * accumulation // settings.accumulation
    step_s = sum(seconds) / len(seconds) * accumulation / settings.accumulation
    bytes_per_second = step_bytes / step_s
    validation_s = _validation_s(job)
    peak = peak_flops(job.device, job.precision)
    most_bytes = peak_memory_bytes(job.device)
    flops_per_byte = job.model.flops_per_byte(config.data.window_bytes, training=True)
    steps_left, time_left_s = _left(job, elapsed_s, step_bytes, step_s, validation_s)
    return Speed(
        steps=len(seconds),
        step_s=step_s,
        bytes_per_second=bytes_per_second,
        mfu=mfu(flops_per_byte, bytes_per_second, peak),
        peak_flops=peak.source,
        validation_s=validation_s,
        peak_memory_bytes=most_bytes,
        steps_left=steps_left,
        time_left_s=time_left_s,
    )


def _left(job: Job, elapsed_s: float, step_bytes: int, step_s: float, validation_s: float) -> tuple[int, float]:
    """Steps and seconds until the budget is spent."""
    settings, state = job.config.train, job.state
    every, spread = settings.validate_every_steps, settings.spread_validations
    if settings.time_budget_s is not None:
        time_left_s = max(0.0, settings.time_budget_s - elapsed_s)
        in_steps_s = time_left_s - spread * validation_s * time_left_s / settings.time_budget_s
        return math.ceil(max(step_s, in_steps_s) / (step_s + validation_s / every)), time_left_s
    if settings.steps is not None:
        end = settings.steps
    else:
        assert settings.bytes is not None
        end = state.step + math.ceil((settings.bytes - state.bytes_seen) / step_bytes)
    steps = max(0, end - state.step)
    besides = {-(-end * part // spread) for part in range(1, spread + 1)} | {end}
    validations = end // every - state.step // every + sum(step > state.step and step % every > 0 for step in besides)
    return steps, steps * step_s + validations * validation_s


def _validation_s(job: Job) -> float:
    """Seconds of one validation with its sample, of its scores from a part where all of them take long."""
    total = sum(map(len, job.held_out))
    scored, begun_s, left = 0, time.perf_counter(), iter(job.held_out)
    while time.perf_counter() - begun_s < _VALIDATED_S and (some := _some_of(left)):
        with job.evaluated(), job.autocast():
            bits_per_byte(job.model, some, context_bytes=job.config.data.window_bytes)
        scored += sum(map(len, some))
    if not scored:
        return 0.0
    scoring_s = (time.perf_counter() - begun_s) * total / scored
    begun_s = time.perf_counter()
    with job.evaluated():
        sample(job, job.model, lambda: None)
    return scoring_s + time.perf_counter() - begun_s


def _some_of(documents: Iterator[bytes]) -> list[bytes]:
    """The next documents, enough to fill the batches of a validation."""
    some: list[bytes] = []
    while sum(map(len, some)) < 2 * BATCH_IDS and (document := next(documents, None)) is not None:
        some.append(document)
    return some


def _step_bytes(config: RunConfig) -> int:
    return config.train.accumulation * config.train.batch_windows * config.data.window_bytes
