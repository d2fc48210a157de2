"""What a run will take: exact where it can be, from real steps where it cannot, and nothing is written."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bytelm import machine
from bytelm.checkpoint import checkpoints, load_model
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.errors import CheckpointError, ConfigError, CorpusError
from bytelm.estimate import Estimate, estimate
from bytelm.events import Finished, Validation
from bytelm.job import Job
from bytelm.memory import needed_memory, trace_step
from bytelm.packing import PackedBatch
from bytelm.step import Learnt, learn
from bytelm.train import train

CPU = torch.device("cpu")
TINY = [
    "model.d_model=16",
    "model.layers=2",
    "model.attention_heads=2",
    "model.kv_heads=1",
    "model.d_ff=16",
    "model.local_window_bytes=8",
    "heads.count=3",
    "data.window_bytes=24",
    "train.batch_windows=4",
    "train.precision=float32",
    "train.threads=1",
    "train.validation_bytes=200",
]


def settings(*changes: str) -> RunConfig:
    return RunConfig.build("tiny", [*TINY, *changes])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for number in range(8):
        (folder / f"{number}.txt").write_bytes(draw.randbytes(600))
    ingest([folder], folder / "corpus", validation_fraction=0.1)
    return folder / "corpus"


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytelm.estimate._LEAST_S", 0.0)


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_parameters_and_disk_are_those_of_the_run(corpus: Path, tmp_path: Path, kind: str) -> None:
    config = settings("train.steps=4", f"train.optimizer={kind}", "train.keep_checkpoints=3")
    told = estimate(config, corpus, tmp_path / "run")
    list(train(config, corpus, tmp_path / "run"))
    model, _ = load_model(tmp_path / "run")
    assert told.parameters == model.parameter_counts()
    assert told.flops_per_byte == model.flops_per_byte(24, training=True)
    (checkpoint,) = checkpoints(tmp_path / "run")
    tensors = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    texts = sum(path.stat().st_size for path in checkpoint.iterdir()) - tensors
    assert abs(told.checkpoint_bytes - tensors - texts) < 1000
    assert told.checkpoint_bytes > tensors
    assert told.disk_bytes == 5 * told.checkpoint_bytes  # three, the best, and the one that is being written
    assert told.step_bytes == 4 * 24


def test_nothing_is_written(corpus: Path, tmp_path: Path) -> None:
    before = everything(corpus)
    told = estimate(settings("train.steps=4"), corpus, tmp_path / "runs" / "a")
    assert told.speed is not None
    assert list(tmp_path.iterdir()) == []
    assert everything(corpus) == before


def test_real_steps_give_speed_memory_and_utilisation(corpus: Path, tmp_path: Path) -> None:
    speed = estimate(settings("train.steps=1000"), corpus, tmp_path / "run").speed
    assert speed is not None
    assert speed.steps == 3
    assert speed.bytes_per_second == pytest.approx(4 * 24 / speed.step_s)
    assert speed.peak_memory_bytes > 0
    assert 0 < speed.mfu < 1
    assert speed.validation_s > 0


@pytest.mark.parametrize(
    ("budget", "steps", "validations"),
    [
        ("train.steps=1000", 1000, 5),
        ("train.steps=1001", 1001, 6),
        ("train.bytes=9600", 100, 1),
        ("train.bytes=9601", 101, 1),
        ("train.steps=30 train.spread_validations=8", 30, 8),
        ("train.steps=5 train.spread_validations=8", 5, 5),
        ("train.steps=1000 train.spread_validations=4", 1000, 8),
    ],
)
def test_the_time_is_that_of_all_steps_and_validations(
    corpus: Path, tmp_path: Path, budget: str, steps: int, validations: int
) -> None:
    speed = estimate(settings(*budget.split(), "train.validate_every_steps=200"), corpus, tmp_path / "run").speed
    assert speed is not None
    assert speed.steps_left == steps
    assert speed.time_left_s == pytest.approx(steps * speed.step_s + validations * speed.validation_s)
    # And the run does take as many.
    if steps <= 101:
        events = list(train(settings(*budget.split(), "train.validate_every_steps=200"), corpus, tmp_path / "run"))
        assert isinstance(events[-1], Finished)
        assert sum(isinstance(event, Validation) for event in events) == validations
        assert events[-1].step == steps


def test_of_a_step_of_many_micro_batches_some_are_timed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(job: Job, micro_batches: list[PackedBatch], *more: Any) -> Learnt:
        seen.append(len(micro_batches))
        return learn(job, micro_batches, *more)

    monkeypatch.setattr("bytelm.estimate.learn", counted)
    told = estimate(settings("train.bytes=960000", "train.accumulation=100"), corpus, tmp_path / "run")
    assert set(seen) == {4}
    assert told.step_bytes == 100 * 4 * 24
    assert told.speed is not None
    assert told.speed.steps_left == 100
    assert told.speed.bytes_per_second == pytest.approx(told.step_bytes / told.speed.step_s)


def test_a_time_budget_is_the_time_and_the_steps_are_what_fits(corpus: Path, tmp_path: Path) -> None:
    told = estimate(settings("train.time_budget_s=100", "train.validate_every_steps=200"), corpus, tmp_path / "run")
    speed = told.speed
    assert speed is not None
    assert speed.time_left_s == pytest.approx(100, abs=5)
    assert speed.steps_left == math.ceil(speed.time_left_s / (speed.step_s + speed.validation_s / 200))


def test_a_run_that_goes_on_is_told_what_is_left_of_it(corpus: Path, tmp_path: Path) -> None:
    list(train(settings("train.steps=4"), corpus, tmp_path / "run"))
    before = everything(tmp_path)
    longer = settings("train.steps=10")
    speed = estimate(longer, corpus, tmp_path / "run", resume="auto").speed
    assert speed is not None
    assert speed.steps_left == 6
    assert everything(tmp_path) == before
    with pytest.raises(CheckpointError, match="already holds a run"):
        estimate(longer, corpus, tmp_path / "run")


def test_what_a_run_refuses_is_refused_here(corpus: Path, tmp_path: Path) -> None:
    no_budget = settings().model_copy(update={"train": settings().train.model_copy(update={"steps": None})})
    with pytest.raises(ConfigError, match="no budget"):
        estimate(no_budget, corpus, tmp_path / "run")
    with pytest.raises(CorpusError, match="does not exist"):
        estimate(settings("train.steps=4"), tmp_path / "nothing", tmp_path / "run")


def told_with(monkeypatch: pytest.MonkeyPatch, corpus: Path, run: Path, config: RunConfig, available: int) -> Estimate:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(total=available, available=available))
    return estimate(config, corpus, run)


def test_a_step_that_does_not_fit_is_not_tried_and_the_settings_that_fit_are_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("train.steps=4", "train.batch_windows=12", "train.accumulation=2", "model.d_model=64")
    whole, half = (
        needed_memory(trace_step(config.with_changes([f"train.batch_windows={n}"]), CPU, bfloat16=False).memory, CPU)
        for n in (12, 6)
    )
    told = told_with(monkeypatch, corpus, tmp_path / "run", config, (whole + half) // 2)
    assert told.speed is None
    assert told.obstacle is not None
    # Of the 24 windows of a step 8 fit at a time (9, 10 and 11 would, but do not divide them).
    assert "train.batch_windows=8 and train.accumulation=3" in told.obstacle
    told = told_with(monkeypatch, corpus, tmp_path / "run", config, 300_000_000)
    assert told.speed is None
    assert told.obstacle is not None
    assert "even one window needs" in told.obstacle
    assert told.parameters["total"] > 0


def test_what_was_advised_fits(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("train.steps=1", "train.batch_windows=8", "train.accumulation=3", "model.d_model=64")
    needed = needed_memory(trace_step(config, CPU, bfloat16=False).memory, CPU)
    told = told_with(monkeypatch, corpus, tmp_path / "run", config, needed)
    assert told.obstacle is None
    assert told.speed is not None
    told = told_with(monkeypatch, corpus, tmp_path / "run", config, needed - 1)
    assert told.obstacle is not None
