"""Training: from settings and a corpus to a run, as a generator of what happened.

    load      the next windows of the corpus, packed: ids, K targets, what counts
    learn     loss of all heads, backward, over the micro-batches of a step; clip; update at the schedule's rate
    log       bits per byte of every head, to metrics.jsonl and to whoever iterates
    validate  the same held-out bytes each time
    save      a checkpoint, from which the run goes on as if it had not stopped, written while training goes on
    go_back   to the last checkpoint, at half the rate, where nothing was finite any more

The caller draws the picture: ``train`` yields frozen records and prints nothing. With a budget of steps or bytes
nothing depends on time, and in float32 on the CPU a run that was stopped and resumed is equal bit for bit, in its
log and in its weights, to one that was not. A step whose loss or gradient is not finite touches no weight. A disk
that is full stops nothing but its own checkpoint.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from bytelm.checkpoint import Snapshot, find_newest_sound, set_aside
from bytelm.config import RunConfig, TrainConfig
from bytelm.corpora import Given
from bytelm.decode import decode_steps
from bytelm.engine.library import load_library, unavailable_reason
from bytelm.engine.weights import engine_if_possible
from bytelm.errors import CheckpointError, GenerationError, StorageError, TrainingError
from bytelm.evaluate import BitsPerByte, bits_per_byte
from bytelm.events import (
    Event,
    Finished,
    Progress,
    Refused,
    Replaced,
    RolledBack,
    Saved,
    Skipped,
    Started,
    Validation,
)
from bytelm.generation import GenerateSettings
from bytelm.job import Job, open_job
from bytelm.loss import head_weights
from bytelm.memory import memory_bytes, peak_memory_bytes
from bytelm.mfu import MEASURED_S, mfu, peak_flops
from bytelm.model import ByteLM
from bytelm.ranks import ALONE, Ranks, lost_ranks_named
from bytelm.run_folder import RECORDS_AFTER_SAVING, Resume, find_together
from bytelm.schedule import budget_spent, learning_rate
from bytelm.state import Meter
from bytelm.step import Learnt, learn, load
from bytelm.utf8 import decode_text
from bytelm.vocab import Vocab

_PROMPT_BYTES: Final = 32
_SAMPLE_TEMPERATURE: Final = 0.7
_PEAK_SHARE: Final = 25.0
"""How many times as long as measuring it a run lasts before the device's peak is measured."""


def train(
    config: RunConfig,
    corpus: Given,
    run: Path,
    *,
    resume: Resume = "never",
    should_stop: Callable[[], bool] = lambda: False,
    vocabulary: Vocab | None = None,
    held_out: list[bytes] | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Event]:
    """Train a model, or go on training it.

    A resumed run may be given another budget, another rate, other intervals. The schedule follows the share of the
    present budget: 2000 steps asked for after 1000 of 1000 continue at the rate of the middle of 2000.

    Args:
        config: All settings; one budget must be set.
        corpus: Folder or address of the corpus, or several with weights; see ``bytelm.corpora``. On resume those that
            the run was started with, with the same weights or others.
        run: Folder of the run, made if missing.
        resume: ``never`` refuses a run that has checkpoints, ``require`` one that has none; ``auto`` goes on if it
            can and starts otherwise.
        should_stop: Asked before each step and during validation; True saves and finishes. Where several processes
            train, one that wants to stop is enough.
        vocabulary: That of ``model.vocabulary``, learnt before; if None, a new run learns it from its training data.
        held_out: Documents of every validation; where None, some of the corpus's validation split.
        ranks: The processes that train together, from ``bytelm.ranks.joined``; each of them calls this with the same
            arguments. The first one alone writes, the folder must be there for all.

    Yields:
        ``Started``, then the other events as they happen, then ``Finished``. ``Saved`` comes when a checkpoint is
        on the disk, which may be some steps later.

    Raises:
        ConfigError: No budget, a device that is not there, or settings that the run cannot take up.
        TrainingError: The loss or the gradient is not finite and going back did not help, or memory is used up, or
            another of the processes has ended.
        CorpusError: The corpus is missing, damaged or shorter than one window.
        CheckpointError: All checkpoints are damaged, or they and ``resume``, settings or corpus do not fit together,
            or another process trains in the same folder.
        StorageError: The disk refuses the first files, or the last checkpoint; those before are whole.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(lost_ranks_named(ranks))
        job = open_job(stack, config, corpus, run, resume, vocabulary=vocabulary, held_out=held_out, ranks=ranks)
        stack.push(_waits_for(job))
        settings, state = config.train, job.state
        step_bytes = settings.accumulation * settings.batch_windows * config.data.window_bytes
        yield Started(
            run=run,
            parameters=job.model.parameter_counts()["total"],
            device=str(job.device),
            precision=job.precision,
            attention=job.attention.backend,
            attention_reason=job.attention.reason,
            compiled=job.compiled,
            best_bits_per_byte=state.safety.best_bits_per_byte,
            held_out_bytes=sum(map(len, job.held_out)),
            step=state.step,
            resumed_from=job.resumed_from,
            damaged=job.damaged,
            ranks=ranks.count,
            parallel=job.shared.how,
            decoder=decoder_of_samples(job),
        )
        if job.resumed_from is None and job.config.train.init_from is not None:  # from now on the run stands alone
            yield from save(job)
        if state.safety.validation_due:  # the run was stopped in the middle of it
            best = yield from validate(job, should_stop)
            yield from save(job, best=best)
        stopped = False
        finished = budget_spent(settings, state.step, state.bytes_seen, job.elapsed_s()) >= 1.0
        while not (finished or (stopped := ranks.any(should_stop()))):
            begun_s = job.elapsed_s()
            # Where the step will end, so that the last step of a countable budget has the last rate.
            end = budget_spent(settings, state.step + 1, state.bytes_seen + step_bytes, begun_s)
            begin = budget_spent(settings, state.step, state.bytes_seen, begun_s)
            rate = learning_rate(end, settings) * state.safety.learning_rate_ratio
            micro_batches = load(job)
            yield from replaced(job)
            learnt = learn(job, micro_batches, rate, head_weights(config.heads, begin))
            state.step += 1
            state.bytes_seen += step_bytes
            count(job, learnt, step_bytes, job.clock.elapsed_s() - begun_s)
            if learnt.fault is not None:
                yield Skipped(step=state.step, what=learnt.fault, in_a_row=state.safety.in_a_row)
                if state.safety.in_a_row >= settings.most_skipped_steps:
                    yield from go_back(job, learnt)
                    continue

            fraction = budget_spent(settings, state.step, state.bytes_seen, job.elapsed_s())
            finished = fraction >= 1.0
            if finished or state.step % settings.log_every_steps == 0:
                yield from log(job, learnt, min(fraction, 1.0))
            best = False
            if job.held_out and (finished or validation_due(settings, state.step, begin, fraction)):
                if state.saved_step is None and learnt.fault is None:  # what goes wrong in the first one loses nothing
                    state.safety.validation_due = True
                    yield from save(job)
                try:
                    best = yield from validate(job, should_stop)
                except Exception:
                    # Of several processes the others may not have failed, and saving is for all of them together.
                    if ranks.count == 1 and learnt.fault is None and state.saved_step != state.step:
                        yield from save(job)  # the validation stays due, and is made again
                        yield from saved(job, wait=True)
                    raise
            # Not while nothing is finite: the last good checkpoint is the one to go back to.
            if finished or best or (state.step % settings.save_every_steps == 0 and learnt.fault is None):
                yield from save(job, best=best)
            yield from saved(job)
        if state.saved_step != state.step:
            yield from save(job)
        yield from saved(job, wait=True)
        with ranks.agreed():
            if ranks.is_first and state.checkpoint_step != state.step:
                raise StorageError(state.refusal)
        state.checkpoint = ranks.first(state.checkpoint)
        assert state.checkpoint is not None
        yield Finished(
            reason="stopped" if stopped else "budget",
            step=state.step,
            bytes_seen=state.bytes_seen,
            elapsed_s=job.clock.elapsed_s(),
            checkpoint=state.checkpoint,
        )


def validation_due(settings: TrainConfig, step: int, begin: float, end: float) -> bool:
    """Whether a validation follows a step.

    Args:
        settings: ``validate_every_steps`` and ``spread_validations`` say it.
        step: Steps that are done.
        begin: Share of the budget that was spent before the step, 0 … 1. It counts a validation that came before, so
            validations that take long against a budget of time are fewer, and never follow each other without a step.
        end: The same after the step.

    Example:
        >>> spread = TrainConfig(steps=16, validate_every_steps=1000, spread_validations=4)
        >>> [step for step in range(1, 17) if validation_due(spread, step, (step - 1) / 16, step / 16)]
        [4, 8, 12, 16]
    """
    parts = settings.spread_validations
    return step % settings.validate_every_steps == 0 or int(end * parts) > int(begin * parts)


def count(job: Job, learnt: Learnt, step_bytes: int, seconds: float) -> None:
    """Add a step to what the next logged record sums up."""
    meter, safety = job.state.meter, job.state.safety
    meter.bytes += step_bytes
    meter.seconds += seconds
    if learnt.fault is not None:
        safety.skipped_steps += 1
        safety.in_a_row += 1
        return
    safety.in_a_row = 0
    meter.bits_K = [total + more for total, more in zip(meter.bits_K, learnt.bits_K, strict=True)]
    meter.count_K = [total + more for total, more in zip(meter.count_K, learnt.count_K, strict=True)]
    meter.loss += learnt.loss
    meter.steps += 1


def replaced(job: Job) -> Iterator[Event]:
    """Tell what was found damaged since the last time, and was replaced."""
    found = job.loader.new_damage()
    if job.config.data.on_damage == "replace":
        found = itertools.chain(*job.ranks.all(found))
    for line in found:
        yield from _recorded(job, "damage", Replaced(step=job.state.step, reason=line))


def log(job: Job, learnt: Learnt, fraction: float) -> Iterator[Event]:
    """Log the steps since the last logged one, and begin to count anew."""
    state, meter = job.state, job.state.meter
    progress = Progress(
        step=state.step,
        fraction=fraction,
        bytes_seen=state.bytes_seen,
        flops=job.flops_per_byte * state.bytes_seen,
        elapsed_s=job.clock.elapsed_s(),
        bits_per_byte_by_head=meter.bits_per_byte_by_head(),
        loss=meter.loss / meter.steps if meter.steps else None,
        grad_norm=_finite(learnt.grad_norm),
        learning_rate=learnt.learning_rate,
        bytes_per_second=meter.bytes / meter.seconds,
        mfu=utilisation(job, meter.bytes / meter.seconds),
        memory_bytes=memory_bytes(job.device),
        peak_memory_bytes=peak_memory_bytes(job.device),
        skipped_steps=state.safety.skipped_steps,
        replaced_windows=int(job.ranks.sums([job.loader.replaced_windows])[0]),
    )
    state.meter = Meter.empty(job.config.heads.count)
    yield from _recorded(job, "step", progress)


def validate(job: Job, should_stop: Callable[[], bool]) -> Generator[Event, None, bool]:
    """Score the held-out bytes with every head, and log it; an interrupted validation is due in the next start.

    Returns:
        Whether it is the best so far and to be kept.
    """
    safety = job.state.safety

    def interrupt() -> None:
        if job.ranks.any(should_stop()):
            raise _Interrupted

    def score(model: ByteLM) -> BitsPerByte:
        return bits_per_byte(model, job.held_out, context_bytes=job.config.data.window_bytes, before_batch=interrupt)

    safety.validation_due = True
    try:
        with job.evaluated():
            with job.autocast():
                scored = job.ranks.first(job.shared.evaluate(score))
            # Many processes do not ask each other for each of a few bytes.
            asked = interrupt if job.ranks.count == 1 else lambda: None
            prompt, written = job.shared.evaluate(lambda model: sample(job, model, asked))
    except _Interrupted:
        return False
    safety.validation_due = False
    bits_by_head = tuple(map(_finite, scored.by_head))
    bits, best = bits_by_head[0], safety.best_bits_per_byte
    better = bits is not None and (best is None or bits < best)
    if better:
        safety.best_bits_per_byte = bits
    validation = Validation(
        step=job.state.step,
        bytes_seen=job.state.bytes_seen,
        flops=job.flops_per_byte * job.state.bytes_seen,
        elapsed_s=job.clock.elapsed_s(),
        bits_per_byte_by_head=bits_by_head,
        best_bits_per_byte=safety.best_bits_per_byte,
        agreement_by_head=scored.agreement_by_head,
        bytes_per_step_estimate=scored.bytes_per_step_estimate,
        scored_bytes=scored.scored_bytes,
        context_bytes=scored.context_bytes,
        stride=scored.stride,
        prompt=prompt,
        sample=written,
    )
    yield from _recorded(job, "validation", validation)
    return better and job.config.train.keep_best


def sample(job: Job, model: ByteLM, interrupt: Callable[[], None]) -> tuple[str, str]:
    """The beginning of held-out data and how the model goes on, both as text; nothing random is drawn for it.

    Args:
        job: Its settings and held-out data.
        model: With the weights that are evaluated.
        interrupt: Called again and again meanwhile; may raise.
    """
    length = job.config.train.sample_bytes
    if not length:
        return "", ""
    prompt = next((document for document in job.held_out if document), b"")[:_PROMPT_BYTES]
    settings = GenerateSettings(max_bytes=length, temperature=_SAMPLE_TEMPERATURE, seed=job.state.step)
    written = b""
    with contextlib.suppress(CheckpointError, GenerationError):  # what is not finite is told by the losses
        decoder = engine_if_possible(model) or model
        for step in decode_steps(decoder, prompt, settings, context_bytes=job.config.data.window_bytes):
            interrupt()
            written += step.data
    return decode_text(prompt, "escape"), decode_text(written, "escape")


def decoder_of_samples(job: Job) -> str:
    """What writes the samples of validations, for people."""
    if job.device.type != "cpu":
        return f"torch, for the engine decodes on CPUs and the device is {job.device}"
    library = load_library()
    return f"torch, for {unavailable_reason()}" if library is None else f"the engine ({library.isa})"


def utilisation(job: Job, bytes_per_second: float) -> float | None:
    """Model FLOP utilisation; None in a run that is so short yet that finding the device's peak would hold it up."""
    state = job.state
    if state.peak_flops is None and job.clock.elapsed_s() >= _PEAK_SHARE * MEASURED_S:
        state.peak_flops = peak_flops(job.device, job.precision)
    return (
        None
        if state.peak_flops is None
        else mfu(job.flops_per_byte, bytes_per_second / job.ranks.count, state.peak_flops)
    )


def save(job: Job, *, best: bool = False) -> Iterator[Event]:
    """Begin to save a checkpoint of this very step."""
    try:
        job.save(best=best)
    except StorageError as error:
        yield _refused(job, error)


def saved(job: Job, *, wait: bool = False) -> Iterator[Event]:
    """Tell how saving has ended since the last time.

    Args:
        job: Its saver knows.
        wait: For what is still being written.
    """
    for outcome in job.saver.outcomes(wait=wait):
        if outcome.refusal is not None:
            yield _refused(job, outcome.refusal)
        else:
            assert outcome.checkpoint is not None
            job.state.checkpoint, job.state.checkpoint_step = outcome.checkpoint, outcome.step
            yield Saved(step=outcome.step, checkpoint=outcome.checkpoint)


def go_back(job: Job, learnt: Learnt) -> Iterator[Event]:
    """Return to the newest sound checkpoint behind a finite step, or to the beginning, and go on at half the rate.

    Raises:
        TrainingError: The run went back as often as it may.
    """
    yield from saved(job, wait=True)
    state, settings = job.state, job.config.train
    before, from_step = state.safety, state.step
    if before.rollbacks >= settings.most_rollbacks:
        with job.ranks.agreed():
            raise _diverged(job, learnt)
    found = find_together(job.ranks, lambda: find_newest_sound(job.run, _behind_a_finite_step))
    job.restore(None if found is None else found.snapshot)
    state.checkpoint = None if found is None else found.checkpoint
    state.checkpoint_step = state.saved_step = None if found is None else state.step
    state.safety = replace(
        before, in_a_row=0, rollbacks=before.rollbacks + 1, learning_rate_ratio=before.learning_rate_ratio / 2
    )
    with job.ranks.agreed():
        damaged = () if found is None else found.damaged
        event = RolledBack(
            step=state.step,
            from_step=from_step,
            checkpoint=state.checkpoint,
            learning_rate_ratio=state.safety.learning_rate_ratio,
            damaged=tuple(f"{reason} (renamed to {set_aside(checkpoint).name})" for checkpoint, reason in damaged),
        )
    try:
        if job.ranks.is_first:
            job.log.go_back(state.step, again=RECORDS_AFTER_SAVING)
    except StorageError as error:
        yield _refused(job, error)
    yield from _recorded(job, "rollback", event)


def _behind_a_finite_step(snapshot: Snapshot) -> bool:
    return not snapshot.progress.get("safety", {}).get("in_a_row", 0)


class _Interrupted(Exception):  # noqa: N818  no error: the caller wants to stop
    """A validation was given up."""


def _recorded(job: Job, kind: str, event: Progress | Validation | RolledBack | Replaced) -> Iterator[Event]:
    """Log an event, and yield it; what a full disk does not take is logged later."""
    record = {"kind": kind, **asdict(event)}
    if isinstance(event, Progress | Validation):
        record["bits_per_byte"] = event.bits_per_byte_by_head[0]
    elif isinstance(event, RolledBack):
        record["checkpoint"] = None if event.checkpoint is None else event.checkpoint.name
    try:
        job.log.append(record)
    except StorageError as error:
        yield _refused(job, error)
    yield event


def _refused(job: Job, error: StorageError) -> Refused:
    job.state.refusal = str(error)
    return Refused(step=job.state.step, reason=str(error))


def _waits_for(job: Job) -> Callable[..., None]:
    """At the end of a job, but for a second Ctrl-C, what is being written is finished."""

    def wait(kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            job.saver.outcomes(wait=True)

    return wait


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _diverged(job: Job, learnt: Learnt) -> TrainingError:
    safety, saved_last = job.state.safety, job.state.checkpoint
    went_back = f"; the run went back {safety.rollbacks} times, each time at half the rate" if safety.rollbacks else ""
    remedy = "start again" if saved_last is None else f"go on from {saved_last} with --resume auto"
    return TrainingError(
        f"step {job.state.step}: the {learnt.fault} is not finite at learning rate {learnt.learning_rate:.3g}, for the "
        f"{safety.in_a_row}th step in a row{went_back}; training stopped, and these steps changed no weight; {remedy} "
        "and a lower train.learning_rate"
    )
