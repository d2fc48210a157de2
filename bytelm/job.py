"""What a running training holds, and how it comes about: from nothing, or from the newest sound checkpoint of a run.

Opening a job checks all that can be refused (settings, corpus, device, whether a checkpoint belongs to them) before
it touches the run's folder. From then on a fresh job and a restored one are alike. A lock keeps a second training off
the folder for as long as the job is open.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bytelm.attention import BackendChoice, choose_backend
from bytelm.averaging import WeightAverage
from bytelm.bpe import read_vocabulary, saved_form
from bytelm.checkpoint import Snapshot, checkpoints
from bytelm.compiling import choose_compile, compile_layers, eagerly
from bytelm.config import PATH_OF_CONFIG, RunConfig, TrainConfig
from bytelm.corpora import Corpora, Given, open_corpora
from bytelm.data.batches import BatchLoader
from bytelm.device import choose_device, multiplies_bfloat16
from bytelm.distributed import SharedModel, choose_parallel, own_device
from bytelm.fine_tuning import begin_with, check_source, freeze, read_source
from bytelm.memory import out_of_memory_named, refuse_too_large
from bytelm.model import ByteLM
from bytelm.optim import Optimizer, load_optimizer_tensors, make_optimizer, optimizer_tensors
from bytelm.ranks import ALONE, Ranks, Share
from bytelm.run_folder import (
    Resume,
    begin_folder,
    begun_with_checkpoint,
    check_folder,
    check_same_run,
    checkpoint_to_resume,
    find_together,
    made_again,
    prepare_folder,
    sole_training,
)
from bytelm.run_log import RunLog
from bytelm.saver import Saver
from bytelm.schedule import budget_spent
from bytelm.split_tensors import part_of, whole
from bytelm.state import Clock, Meter, Safety, State
from bytelm.vocab import Vocab
from bytelm.vocabularies import learn_vocabulary, with_vocabulary

PrecisionUsed = Literal["float32", "bfloat16"]


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
    compiled: bool
    """Whether its layers are compiled in training."""
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

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Inside, the model holds the weights that are evaluated, and nothing is compiled."""
        average = contextlib.nullcontext() if self.average is None else self.average.in_place()
        with average, eagerly() if self.compiled else contextlib.nullcontext():
            yield

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
            vocabulary=saved_form(self.model.vocabulary),
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
    vocabulary: Vocab | None = None,
    held_out: list[bytes] | None = None,
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
        vocabulary: See ``train``.
        held_out: See ``train``.
        ranks: The processes that open it together. The first one alone writes in the folder, and all of them read a
            checkpoint there.
        dry: Refuse what must be refused, but touch nothing: what the job logs is lost, and it must not be saved.

    Raises:
        ConfigError, CorpusError, CheckpointError, StorageError, TrainingError: See ``train``.
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
            stack.enter_context(sole_training(run))
    found = find_together(ranks, lambda: checkpoint_to_resume(run, resume))
    with ranks.agreed():
        corpora = open_corpora(corpus, config)
        source = None
        if found is not None:
            vocabulary = read_vocabulary(
                found.snapshot.config.model.vocabulary, found.snapshot.vocabulary, found.checkpoint
            )
            config = with_vocabulary(config, vocabulary)
            check_same_run(found, config, corpora)
            config = begun_with_checkpoint(config, found.snapshot.config.train.init_from)
        elif settings.init_from is not None:
            source = read_source(Path(settings.init_from))
            check_source(source, config)
            vocabulary = source.vocabulary
            config = begun_with_checkpoint(config, str(source.checkpoint))
        settings = config.train
        if ranks.is_first:
            check_folder(run, found)
        vocabulary = vocabulary or learn_vocabulary(config, corpora)
        config = with_vocabulary(config, vocabulary)
        device = own_device(choose_device(settings.device), ranks)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        precision = choose_precision(settings, device)
        if not dry:
            refuse_too_large(config, device, bfloat16=precision == "bfloat16", ranks=ranks)
        attention = choose_backend(
            settings.attention_backend,
            device,
            dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
            channels=config.model.head_channels,
        )
        with out_of_memory_named(config, device, bfloat16=precision == "bfloat16", ranks=ranks):
            model = ByteLM(config.model, config.heads, attention_backend=attention.backend, vocabulary=vocabulary)
        if source is not None:
            begin_with(model, source)
        freeze(model, settings.frozen)
        compiled = choose_compile(settings.compile, device)
        if compiled:
            compile_layers(model)
        loader = stack.enter_context(
            corpora.loader(config, batch_windows=share.batch_windows, rank=ranks.rank, ranks=ranks.count)
        )
        held_out = corpora.held_out(config) if held_out is None else held_out
        step = 0 if found is None else found.snapshot.step
        damaged: tuple[str, ...] = ()
        if writes:
            if not begun:
                stack.enter_context(begin_folder(run))
            damaged = prepare_folder(run, config, corpora, found)
            log = RunLog.start(run) if found is None else RunLog.go_on(run, step, again=made_again(found))
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
        compiled=compiled,
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


def choose_precision(train: TrainConfig, device: torch.device) -> PrecisionUsed:
    """What ``train.precision = "auto"`` means: bfloat16 products where the device multiplies bfloat16 itself.

    Weights, their updates, norms and the loss are float32 in both.

    Args:
        train: Its ``precision`` decides, unless it is ``auto``.
        device: On a CPU, AVX-512 BF16 or AMX; on CUDA, what the driver reports.
    """
    if train.precision != "auto":
        return train.precision
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


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
