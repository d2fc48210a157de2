"""What a running training holds, and how it comes about: from nothing, or from the newest sound checkpoint of a run.

Opening a job checks all that can be refused (settings, corpus, device, whether a checkpoint belongs to them) before
it touches the run's folder. From then on a fresh job and a restored one are alike.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from bytelm.attention import BackendChoice, choose_backend
from bytelm.checkpoint import Found, Snapshot, checkpoints, config_text, find_newest_sound, save_checkpoint, set_aside
from bytelm.config import PATH_OF_CONFIG, ModelConfig, RunConfig, TrainConfig
from bytelm.data.loader import WindowLoader
from bytelm.data.shards import Corpus
from bytelm.device import choose_device
from bytelm.errors import CheckpointError, StorageError
from bytelm.evaluate import some_bytes
from bytelm.files import refusals_named, write_file
from bytelm.model import ByteLM
from bytelm.optim import Optimizer, load_optimizer_tensors, make_optimizer, optimizer_tensors
from bytelm.run_log import RunLog
from bytelm.schedule import budget_spent

Resume = Literal["never", "auto", "require"]
PrecisionUsed = Literal["float32", "bfloat16"]

_KEPT_SETTINGS: Final = (
    *(("model", key) for key in ModelConfig.model_fields),
    *(("heads", key) for key in ("family", "count", "keep_parameters_equal")),
    ("data", "window_bytes"),
    ("train", "seed"),
    ("train", "optimizer"),
)
"""What a run cannot change: the shape of its weights, the order of its windows, and what is kept of the gradients."""


@dataclass(kw_only=True)
class Meter:
    """Sums over the steps since the last logged one; part of a checkpoint, so that a stop leaves no gap in the log."""

    bits_K: list[float]
    """Bits of each head over its targets."""
    count_K: list[int]
    """Targets of each head."""
    loss: float = 0.0
    steps: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, prediction_heads: int) -> "Meter":
        """Nothing counted."""
        return cls(bits_K=[0.0] * prediction_heads, count_K=[0] * prediction_heads)

    def bits_per_byte_by_head(self) -> tuple[float | None, ...]:
        """Mean bits of each head's targets; None for a head that had none."""
        return tuple(bits / count if count else None for bits, count in zip(self.bits_K, self.count_K, strict=True))


@dataclass(kw_only=True)
class State:
    """What a step changes, beside weights, optimizer and loader."""

    step: int
    bytes_seen: int
    meter: Meter
    checkpoint: Path | None = None
    """The newest one."""
    saved_step: int | None = None
    """Its step."""


class Clock:
    """Seconds in training, over all starts of a run."""

    def __init__(self, elapsed_before_s: float) -> None:
        self._begun_s = time.perf_counter() - elapsed_before_s

    def elapsed_s(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self._begun_s


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a running training holds. ``open_job`` makes one."""

    config: RunConfig
    corpus: Corpus
    run: Path
    device: torch.device
    precision: PrecisionUsed
    attention: BackendChoice
    """What computes attention, and why."""
    model: ByteLM
    optimizer: Optimizer
    loader: WindowLoader
    held_out: list[bytes]
    """The documents of every validation."""
    state: State
    log: RunLog
    clock: Clock
    resumed_from: Path | None
    damaged: tuple[str, ...]
    """A line for each newer checkpoint that was found damaged and set aside."""

    def autocast(self) -> torch.autocast:
        """Matrix products in the job's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def save(self) -> Path:
        """Write a checkpoint of this very moment.

        Raises:
            StorageError: The disk refuses; older checkpoints are whole.
        """
        self.log.flush()  # first, so that the log on the disk is never behind a checkpoint
        snapshot = Snapshot(
            step=self.state.step,
            config=self.config,
            corpus=str(self.corpus.path.resolve()),
            fingerprint=self.corpus.fingerprint,
            model=self.model.state_dict(),
            optimizer=optimizer_tensors(self.optimizer, self.model),
            random=random_states(self.device),
            progress={
                "bytes_seen": self.state.bytes_seen,
                "elapsed_s": self.clock.elapsed_s(),
                "loader": self.loader.state_dict(),
                "meter": asdict(self.state.meter),
            },
        )
        self.state.checkpoint = save_checkpoint(self.run, snapshot, keep=self.config.train.keep_checkpoints)
        self.state.saved_step = self.state.step
        return self.state.checkpoint


def open_job(
    stack: contextlib.ExitStack, config: RunConfig, corpus: Path, run: Path, resume: Resume, *, dry: bool = False
) -> Job:
    """Start a run, or take it up where it was saved.

    Args:
        stack: Closes the loader's threads and the log.
        config: All settings.
        corpus: Folder of the corpus.
        run: Folder of the run, made if missing.
        resume: See ``train``.
        dry: Refuse what must be refused, but touch nothing: what the job logs is lost, and it must not be saved.

    Raises:
        ConfigError, CorpusError, CheckpointError, StorageError: See ``train``.
    """
    settings = config.train
    budget_spent(settings, 0, 0, 0.0)  # refuses settings without a budget
    found = _checkpoint_to_resume(run, resume)
    source = Corpus.open(corpus)
    if found is not None:
        _check_same_run(found, config, source)
    _check_folder(run, found)
    device = choose_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    precision = choose_precision(settings, device)
    attention = choose_backend(
        settings.attention_backend,
        device,
        dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
        channels=config.model.head_channels,
    )
    model = ByteLM(config.model, config.heads, attention_backend=attention.backend).to(device)
    optimizer = make_optimizer(model, settings)
    loader = stack.enter_context(
        WindowLoader(
            source,
            window_bytes=config.data.window_bytes,
            prediction_heads=config.heads.count,
            batch_windows=settings.batch_windows,
            seed=settings.seed,
            threads=config.data.loader_threads,
        )
    )
    held_out = _held_out(source, config)
    state, elapsed_s = State(step=0, bytes_seen=0, meter=Meter.empty(config.heads.count)), 0.0
    if found is not None:
        snapshot, progress = found.snapshot, found.snapshot.progress
        state = State(
            step=snapshot.step,
            bytes_seen=progress["bytes_seen"],
            meter=Meter(**progress["meter"]),
            checkpoint=found.checkpoint,
            saved_step=snapshot.step,
        )
        elapsed_s = progress["elapsed_s"]
        model.load_state_dict(snapshot.model)
        load_optimizer_tensors(optimizer, model, snapshot.optimizer)
        loader.load_state_dict(progress["loader"])
        restore_random_states(snapshot.random, device)
    damaged: tuple[str, ...] = ()
    if dry:
        log = RunLog(Path(os.devnull))
    else:
        damaged = _prepare_folder(run, config, source, found)
        log = RunLog.start(run) if found is None else RunLog.go_on(run, state.step)
    return Job(
        config=config,
        corpus=source,
        run=run,
        device=device,
        precision=precision,
        attention=attention,
        model=model,
        optimizer=optimizer,
        loader=loader,
        held_out=held_out,
        state=state,
        damaged=damaged,
        log=stack.enter_context(log),
        clock=Clock(elapsed_s),
        resumed_from=None if found is None else found.checkpoint,
    )


def choose_precision(train: TrainConfig, device: torch.device) -> PrecisionUsed:
    """What ``train.precision = "auto"`` means: bfloat16 products where the device multiplies bfloat16 itself.

    Weights, their updates, norms and the loss are float32 in both.

    Args:
        train: Its ``precision`` decides, unless it is ``auto``.
        device: On a CPU, AVX-512 BF16 or AMX; on CUDA, what the driver reports.
    """
    if train.precision != "auto":
        return train.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        able: Mapping[str, Any] = torch.cpu.get_capabilities()
        return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"
    return "float32"


def _checkpoint_to_resume(run: Path, resume: Resume) -> Found | None:
    saved = checkpoints(run)
    if saved and resume == "never":
        raise CheckpointError(
            f"{run} already holds a run, saved up to {saved[-1].name}; "
            "go on with it: --resume auto, or choose another --out"
        )
    if not saved and resume == "require":
        raise CheckpointError(f"{run} has no checkpoint to go on from; start it with --resume auto")
    return find_newest_sound(run)


def _check_same_run(found: Found, config: RunConfig, corpus: Corpus) -> None:
    saved = found.snapshot
    if corpus.fingerprint != saved.fingerprint:
        raise CheckpointError(
            f"{found.checkpoint} was trained on another corpus (fingerprint {saved.fingerprint[:12]}…, and "
            f"{corpus.path} has {corpus.fingerprint[:12]}…); give --corpus {saved.corpus}, "
            "or start another run with another --out"
        )
    for section, key in _KEPT_SETTINGS:
        before, now = (getattr(getattr(settings, section), key) for settings in (saved.config, config))
        if before != now:
            raise CheckpointError(
                f"{found.checkpoint} has {section}.{key} = {before}, and {now} was asked for; a run keeps this "
                "setting: leave it out, or start another run with another --out"
            )


def _check_folder(run: Path, found: Found | None) -> None:
    if run.exists() and not run.is_dir():
        raise StorageError(f"{run} is a file; choose another --out")
    if found is None and run.is_dir() and not (run / PATH_OF_CONFIG).exists() and any(run.iterdir()):
        raise StorageError(f"{run} is not empty and is no run of bytelm; choose another --out")


def _prepare_folder(run: Path, config: RunConfig, corpus: Corpus, found: Found | None) -> tuple[str, ...]:
    with refusals_named(run):
        run.mkdir(parents=True, exist_ok=True)
    text = config_text(config, corpus=str(corpus.path.resolve()), fingerprint=corpus.fingerprint)
    write_file(run / PATH_OF_CONFIG, text.encode())
    damaged = () if found is None else found.damaged
    return tuple(f"{reason} (renamed to {set_aside(checkpoint).name})" for checkpoint, reason in damaged)


def _held_out(corpus: Corpus, config: RunConfig) -> list[bytes]:
    """The documents of every validation; none where the corpus holds nothing out."""
    total = corpus.raw_bytes("validation")
    if total == 0:
        return []
    return list(
        some_bytes(
            corpus.documents("validation"),
            total,
            limit_bytes=config.train.validation_bytes,
            window_bytes=config.data.window_bytes,
        )
    )


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the random generators that a run on a device draws from, by device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put them back, the inverse of ``random_states``."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
