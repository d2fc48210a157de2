"""What a running training holds, and how it comes about: from nothing, or from the newest sound checkpoint of a run.

Opening a job checks all that can be refused (settings, corpus, device, whether a checkpoint belongs to them) before
it touches the run's folder. From then on a fresh job and a restored one are alike. A lock keeps a second training off
the folder for as long as the job is open.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from bytelm.attention import BackendChoice, choose_backend
from bytelm.averaging import WeightAverage
from bytelm.checkpoint import Found, Snapshot, checkpoints, config_text, find_newest_sound, load_snapshot, set_aside
from bytelm.config import PATH_OF_CONFIG, ModelConfig, RunConfig, TrainConfig
from bytelm.corpora import Corpora, Given, open_corpora
from bytelm.data.batches import BatchLoader
from bytelm.device import choose_device
from bytelm.distributed import SharedModel, choose_parallel, own_device
from bytelm.errors import CheckpointError, StorageError
from bytelm.files import locked, refusals_named, write_file
from bytelm.fine_tuning import begin_with, check_source, freeze, read_source
from bytelm.model import ByteLM
from bytelm.optim import Optimizer, load_optimizer_tensors, make_optimizer, optimizer_tensors
from bytelm.ranks import ALONE, Ranks, Share
from bytelm.run_log import RunLog
from bytelm.saver import Saver
from bytelm.schedule import budget_spent
from bytelm.split_tensors import part_of, whole
from bytelm.state import Clock, Meter, Safety, State

PATH_OF_LOCK: Final = ".train.lock"
RECORDS_AFTER_SAVING: Final = ("rollback",)
"""Kinds of records that are logged behind the checkpoint of their own step."""

Resume = Literal["never", "auto", "require"]
PrecisionUsed = Literal["float32", "bfloat16"]

_KEPT_SETTINGS: Final = (
    *(("model", key) for key in ModelConfig.model_fields),
    *(("heads", key) for key in ("family", "count", "keep_parameters_equal")),
    ("data", "window_bytes"),
    ("data", "packing"),
    ("train", "seed"),
    ("train", "optimizer"),
    ("train", "frozen"),
)
"""What a run cannot change: the shape of its weights, the order of its windows, and what is kept of the gradients."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a running training holds. ``open_job`` makes one."""

    config: RunConfig
    corpora: Corpora
    run: Path
    device: torch.device
    precision: PrecisionUsed
    attention: BackendChoice
    """What computes attention, and why."""
    model: ByteLM
    flops_per_byte: float
    """Of a training step."""
    optimizer: Optimizer
    average: WeightAverage | None
    """Of the weights, where one is kept."""
    ranks: Ranks
    """The processes that train the model together."""
    shared: SharedModel
    """The model as all of them compute with it."""
    share: Share
    """What this one does of each step."""
    loader: BatchLoader
    loader_beginning: dict[str, Any]
    """The loader's state at the run's beginning."""
    saver: Saver
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

    def evaluated(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model holds the weights that are evaluated."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def elapsed_s(self) -> float:
        """Seconds in training, over all starts; where they are the budget, those of rank 0 on all ranks."""
        own = self.clock.elapsed_s()
        return own if self.config.train.time_budget_s is None else self.ranks.first(own)

    def save(self, *, best: bool = False) -> None:
        """Begin to save this very moment; the saver tells how it ended.

        Args:
            best: Whether it is the best so far.

        Raises:
            StorageError: The disk refuses the log, which must never be behind a checkpoint.
        """
        with self.ranks.agreed():
            if self.ranks.is_first:
                self.log.flush()
        self.state.saved_step = self.state.step
        self.saver.save(self.snapshot(), best=best)

    def snapshot(self) -> Snapshot:
        """This very moment; its tensors are the job's own."""
        weights = self.model.state_dict()
        return Snapshot(
            step=self.state.step,
            config=self.config,
            corpus=self.corpora.place,
            fingerprint=self.corpora.fingerprint,
            model=weights,
            average={} if self.average is None else {**weights, **self.average.tensors()},
            optimizer=optimizer_tensors(self.optimizer, self.model),
            random=random_states(self.device),
            progress={
                "bytes_seen": self.state.bytes_seen,
                "elapsed_s": self.clock.elapsed_s(),
                "loader": self.loader.state_dict(),
                "meter": asdict(self.state.meter),
                "safety": asdict(self.state.safety),
            },
        )

    def restore(self, snapshot: Snapshot | None) -> None:
        """Be what the job was at a snapshot, but for the clock.

        Args:
            snapshot: Of this run; None for its beginning.

        Raises:
            CheckpointError: It is of another model or optimizer.
        """
        state = self.state
        if snapshot is None:
            torch.manual_seed(self.config.train.seed)
            first = ByteLM(self.config.model, self.config.heads)
            if self.config.train.init_from is not None:
                begin_with(first, read_source(Path(self.config.train.init_from)))
            self._load_weights(first.state_dict())
            load_optimizer_tensors(self.optimizer, self.model, {})
            self.corpora.load_state(self.loader, self.loader_beginning)
            state.step, state.bytes_seen = 0, 0
            state.meter, state.safety = Meter.empty(self.config.heads.count), Safety()
            average = {}
        else:
            progress = snapshot.progress
            self._load_weights(snapshot.model)
            load_optimizer_tensors(self.optimizer, self.model, snapshot.optimizer)
            self.corpora.load_state(self.loader, progress["loader"])
            state.step, state.bytes_seen = snapshot.step, progress["bytes_seen"]
            state.meter, state.safety = Meter(**progress["meter"]), Safety(**progress.get("safety", {}))
            average = snapshot.average
            restore_random_states(snapshot.random, self.device)
        if self.average is not None:  # one that begins now begins with the weights
            self.average.load(average or {name: whole(weight) for name, weight in self.model.state_dict().items()})

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        held = self.model.state_dict()
        self.model.load_state_dict({name: part_of(weight, held[name]) for name, weight in weights.items()})


def open_job(
    stack: contextlib.ExitStack,
    config: RunConfig,
    corpus: Given,
    run: Path,
    resume: Resume,
    *,
    ranks: Ranks = ALONE,
    dry: bool = False,
) -> Job:
    """Start a run, or take it up where it was saved.

    Args:
        stack: Closes the loader's threads and the log.
        config: All settings.
        corpus: Folder or address of the corpus, or several with weights; see ``bytelm.corpora``.
        run: Folder of the run, made if missing.
        resume: See ``train``.
        ranks: The processes that open it together. The first one alone writes in the folder, and all of them read a
            checkpoint there.
        dry: Refuse what must be refused, but touch nothing: what the job logs is lost, and it must not be saved.

    Raises:
        ConfigError, CorpusError, CheckpointError, StorageError: See ``train``.
    """
    settings = config.train
    settings = config.train
    writes = ranks.is_first and not dry
    with ranks.agreed():
        budget_spent(settings, 0, 0, 0.0)  # refuses settings without a budget
        share = Share.of_step(settings, ranks.count)
        parallel = choose_parallel(config, ranks)
        begun = (run / PATH_OF_CONFIG).exists() or bool(checkpoints(run))
        if begun and writes:
            stack.enter_context(_sole_training(run))
    found = find_together(ranks, lambda: _checkpoint_to_resume(run, resume))
    with ranks.agreed():
        corpora = open_corpora(corpus, config)
        source = None
        if found is not None:
            _check_same_run(found, config, corpora)
            config = _begun_with(config, found.snapshot.config.train.init_from)
        elif settings.init_from is not None:
            source = read_source(Path(settings.init_from))
            check_source(source, config)
            config = _begun_with(config, str(source.checkpoint))
        settings = config.train
        if ranks.is_first:
            _check_folder(run, found)
        device = own_device(choose_device(settings.device), ranks)
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
        model = ByteLM(config.model, config.heads, attention_backend=attention.backend)
        if source is not None:
            begin_with(model, source)
        freeze(model, settings.frozen)
        loader = stack.enter_context(
            corpora.loader(config, batch_windows=share.batch_windows, rank=ranks.rank, ranks=ranks.count)
        )
        held_out = corpora.held_out(config)
        step = 0 if found is None else found.snapshot.step
        damaged: tuple[str, ...] = ()
        if writes:
            if not begun:
                stack.enter_context(_begin_folder(run))
            damaged = _prepare_folder(run, config, corpora, found)
            log = RunLog.start(run) if found is None else RunLog.go_on(run, step, again=_made_again(found))
        else:
            log = RunLog(Path(os.devnull))
    shared = SharedModel(model, ranks, parallel, device)
    job = Job(
        config=config,
        corpora=corpora,
        run=run,
        device=device,
        precision=precision,
        attention=attention,
        model=model,
        flops_per_byte=model.flops_per_byte(config.data.window_bytes, training=True),
        optimizer=make_optimizer(model, settings),
        average=WeightAverage(model, settings.ema_decay) if settings.ema_decay else None,
        ranks=ranks,
        shared=shared,
        share=share,
        loader=loader,
        loader_beginning=loader.state_dict(),
        saver=Saver(run, keep=settings.keep_checkpoints, background=settings.save_in_background, writes=writes),
        held_out=held_out,
        state=State(
            step=0,
            bytes_seen=0,
            meter=Meter.empty(config.heads.count),
            safety=Safety(),
            checkpoint=None if found is None else found.checkpoint,
            checkpoint_step=None if found is None else step,
            saved_step=None if found is None else step,
        ),
        log=stack.enter_context(log),
        clock=Clock(0.0 if found is None else found.snapshot.progress["elapsed_s"]),
        resumed_from=None if found is None else found.checkpoint,
        damaged=damaged,
    )
    if found is not None:
        job.restore(found.snapshot)
    return job


def find_together(ranks: Ranks, find: Callable[[], Found | None]) -> Found | None:
    """What rank 0 finds, read by all; only rank 0 knows what was passed over.

    Raises:
        CheckpointError: From ``find``, or another rank cannot read it.
    """
    found = None
    with ranks.agreed():
        if ranks.is_first:
            found = find()
    checkpoint = ranks.first(None if found is None else found.checkpoint)
    with ranks.agreed():
        if not ranks.is_first and checkpoint is not None:
            found = Found(checkpoint=checkpoint, snapshot=load_snapshot(checkpoint), damaged=())
    return found


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


def _check_same_run(found: Found, config: RunConfig, corpora: Corpora) -> None:
    saved = found.snapshot
    if corpora.fingerprint != saved.fingerprint:
        raise CheckpointError(
            f"{found.checkpoint} was trained on another corpus (fingerprint {_shown(saved.fingerprint)}, and "
            f"{_listed(corpora.place)} has {_shown(corpora.fingerprint)}); give --corpus "
            f"{' --corpus '.join(_several(saved.corpus))}, or start another run with another --out"
        )
    for section, key in _KEPT_SETTINGS:
        before, now = (getattr(getattr(settings, section), key) for settings in (saved.config, config))
        if before != now:
            raise CheckpointError(
                f"{found.checkpoint} has {section}.{key} = {before}, and {now} was asked for; a run keeps this "
                "setting: leave it out, or start another run with another --out"
            )
    begun_with, asked = saved.config.train.init_from, config.train.init_from
    if asked is not None and asked != begun_with and not _names(asked, begun_with):
        raise CheckpointError(
            f"{found.checkpoint} is of a run that began with {begun_with or 'fresh weights'}, and {asked} was asked "
            "for; leave --init-from out, or start another run with another --out"
        )


def _begun_with(config: RunConfig, checkpoint: str | None) -> RunConfig:
    """The same settings with the checkpoint that the run began with, as it was found then."""
    return config.model_copy(update={"train": config.train.model_copy(update={"init_from": checkpoint})})


def _names(asked: str, checkpoint: str | None) -> bool:
    """Whether a run, or a checkpoint of it, is that of a checkpoint; neither needs to be there any more."""
    if checkpoint is None:
        return False
    run, path = Path(checkpoint).parent.parent, Path(asked).resolve()
    return run in (path, path.parent.parent)


def _several(one_or_more: str | list[str]) -> list[str]:
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more


def _listed(places: str | list[str]) -> str:
    return ", ".join(_several(places))


def _shown(fingerprints: str | list[str]) -> str:
    return ", ".join(f"{fingerprint[:12]}…" for fingerprint in _several(fingerprints))


def _check_folder(run: Path, found: Found | None) -> None:
    if run.exists() and not run.is_dir():
        raise StorageError(f"{run} is a file; choose another --out")
    if found is None and run.is_dir() and not (run / PATH_OF_CONFIG).exists():
        foreign = [path for path in run.iterdir() if path.name != PATH_OF_LOCK]
        if foreign:
            raise StorageError(f"{run} is not empty and is no run of bytelm; choose another --out")


def _sole_training(run: Path) -> contextlib.AbstractContextManager[None]:
    return locked(
        run / PATH_OF_LOCK,
        lambda holder: CheckpointError(
            f"{run} is being trained by {holder}; wait until it has finished, or choose another --out"
        ),
    )


@contextlib.contextmanager
def _begin_folder(run: Path) -> Iterator[None]:
    """Make the folder of a run and hold its lock."""
    with refusals_named(run):
        run.mkdir(parents=True, exist_ok=True)
    with _sole_training(run):
        if (run / PATH_OF_CONFIG).exists():
            raise CheckpointError(f"another training has just begun in {run}; choose another --out")
        yield


def _prepare_folder(run: Path, config: RunConfig, corpora: Corpora, found: Found | None) -> tuple[str, ...]:
    text = config_text(config, corpus=corpora.place, fingerprint=corpora.fingerprint)
    write_file(run / PATH_OF_CONFIG, text.encode())
    damaged = () if found is None else found.damaged
    return tuple(f"{reason} (renamed to {set_aside(checkpoint).name})" for checkpoint, reason in damaged)


def _made_again(found: Found) -> tuple[str, ...]:
    """Kinds of records of a checkpoint's own step that do not count from there on."""
    due = found.snapshot.progress.get("safety", {}).get("validation_due", False)
    return (*RECORDS_AFTER_SAVING, "validation") if due else RECORDS_AFTER_SAVING


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
