"""What a run survives: numbers that are not finite, a full disk, a stop at any moment, a second trainer, a kill."""

import dataclasses
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from bytelm import machine
from bytelm import saver as saver_module
from bytelm import step as step_module
from bytelm import train as train_module
from bytelm.averaging import decay_at
from bytelm.checkpoint import best_checkpoint, checkpoints, load_model, load_snapshot, save_checkpoint
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus
from bytelm.errors import CheckpointError, StorageError, TrainingError
from bytelm.evaluate import bits_per_byte
from bytelm.events import Event, Finished, Progress, Refused, RolledBack, Saved, Skipped, Started, Validation
from bytelm.job import Job
from bytelm.run_log import read_log
from bytelm.saver import Saver
from bytelm.schedule import learning_rate
from bytelm.step import Learnt
from bytelm.train import train

TINY = [
    "model.d_model=16",
    "model.layers=1",
    "model.attention_heads=2",
    "model.kv_heads=1",
    "model.d_ff=16",
    "model.local_window_bytes=8",
    "heads.count=2",
    "data.window_bytes=24",
    "train.optimizer=adamw",
    "train.batch_windows=4",
    "train.precision=float32",
    "train.threads=1",
    "train.log_every_steps=3",
    "train.validate_every_steps=5",
    "train.validation_bytes=200",
    "train.sample_bytes=4",
    "train.save_every_steps=4",
]
TIMES = {"elapsed_s", "bytes_per_second", "mfu", "memory_bytes", "peak_memory_bytes"}
Plan = Callable[[Job], Literal["loss", "gradient"] | None]


def settings(*changes: str) -> RunConfig:
    return RunConfig.build("tiny", [*TINY, *changes])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    (folder / "text").write_text(" ".join(draw.choices(["the", "byte", "window", "Größe", "head"], k=1500)))
    ingest([folder / "text"], folder / "corpus", validation_fraction=0.1)
    return folder / "corpus"


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(config: RunConfig, corpus: Path, run: Path, **options: Any) -> list[Event]:
    return list(train(config, corpus, run, **options))


def only(events: list[Event], kind: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def lasting_log(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in read_log(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run)[0].state_dict()


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], None]:
    """Makes the loss or the gradient of those steps infinite for which a plan says so."""
    learn, loss = step_module._learn, step_module.multi_byte_loss

    def poisoned_loss(*arguments: Any, **options: Any) -> Any:
        output = loss(*arguments, **options)
        return dataclasses.replace(output, loss=output.loss * torch.nan)

    def by(plan: Plan) -> None:
        def poisoned(job: Job, *arguments: Any) -> Learnt:
            kind = plan(job)
            weight = next(job.model.heads.parameters())
            hook = weight.register_hook(lambda gradient: gradient * torch.inf) if kind == "gradient" else None
            monkeypatch.setattr(step_module, "multi_byte_loss", poisoned_loss if kind == "loss" else loss)
            try:
                return learn(job, *arguments)
            finally:
                if hook is not None:
                    hook.remove()

        monkeypatch.setattr(step_module, "_learn", poisoned)

    return by


# Numbers that are not finite


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_no_weight_and_is_counted(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: Callable[[Plan], None], kind: Any
) -> None:
    changed: list[bool] = []
    poison(lambda job: kind if job.state.step + 1 in (3, 4, 7) else None)
    poisoned = step_module._learn

    def watched(job: Job, *arguments: Any) -> Learnt:
        before = [*(weight.detach().clone() for weight in job.model.parameters())]
        state = [
            value.clone() for part in job.optimizer.parts for kept in part.state.values() for value in kept.values()
        ]
        learnt = poisoned(job, *arguments)
        after = [value for part in job.optimizer.parts for kept in part.state.values() for value in kept.values()]
        same = all(map(torch.equal, before, job.model.parameters())) and all(map(torch.equal, state, after))
        changed.append(not same)
        return learnt

    monkeypatch.setattr(step_module, "_learn", watched)
    events = trained(settings("train.steps=9", "train.log_every_steps=1"), corpus, tmp_path / "run")
    assert changed == [True, True, False, False, True, True, False, True, True]
    assert [(event.step, event.what, event.in_a_row) for event in only(events, Skipped)] == [
        (3, kind, 1),
        (4, kind, 2),
        (7, kind, 1),
    ]
    progress = only(events, Progress)
    assert [event.skipped_steps for event in progress] == [0, 0, 1, 2, 2, 2, 3, 3, 3]
    assert [event.loss is None for event in progress] == [step in (3, 4, 7) for step in range(1, 10)]
    assert [record["skipped_steps"] for record in read_log(tmp_path / "run") if record["kind"] == "step"][-1] == 3
    assert isinstance(events[-1], Finished)


def test_after_many_such_steps_in_a_row_the_run_goes_back_and_on_at_half_the_rate(
    corpus: Path, tmp_path: Path, poison: Callable[[Plan], None]
) -> None:
    run = tmp_path / "run"
    poison(lambda job: "loss" if job.state.step >= 5 and job.state.safety.learning_rate_ratio == 1 else None)
    config = settings("train.steps=12", "train.most_skipped_steps=3", "train.log_every_steps=1")
    events = trained(config, corpus, run)
    (back,) = only(events, RolledBack)
    # Steps 6, 7 and 8 were skipped. The best validation was saved at step 5, before them.
    assert (back.from_step, back.step, back.learning_rate_ratio, back.damaged) == (8, 5, 0.5, ())
    assert back.checkpoint == run / "checkpoints" / "step-00000005"
    assert isinstance(events[-1], Finished)
    assert events[-1].step == 12
    records = read_log(run)
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, 13))
    schedule = [learning_rate(step / 12, config.train) for step in range(1, 13)]
    assert [record["learning_rate"] for record in steps] == [*schedule[:5], *(rate / 2 for rate in schedule[5:])]
    (told,) = (record for record in records if record["kind"] == "rollback")
    assert (told["step"], told["from_step"], told["checkpoint"]) == (5, 8, "step-00000005")


def test_a_run_that_went_back_equals_one_that_had_half_the_rate_from_there(
    corpus: Path, tmp_path: Path, poison: Callable[[Plan], None]
) -> None:
    config = settings("train.steps=9", "train.most_skipped_steps=2", "train.keep_best=false")
    poison(lambda job: "gradient" if job.state.step >= 6 and job.state.safety.learning_rate_ratio == 1 else None)
    trained(config, corpus, tmp_path / "back")
    poison(lambda _: None)
    stopped = iter([False] * 4 + [True] * 9)
    trained(config, corpus, tmp_path / "by hand", should_stop=lambda: next(stopped))
    snapshot = load_snapshot(checkpoints(tmp_path / "by hand")[-1])
    safety = {**snapshot.progress["safety"], "learning_rate_ratio": 0.5}
    halved = dataclasses.replace(snapshot, progress={**snapshot.progress, "safety": safety})
    save_checkpoint(tmp_path / "by hand", halved, keep=2)
    trained(config, corpus, tmp_path / "by hand", resume="auto")
    assert equal(weights(tmp_path / "back"), weights(tmp_path / "by hand"))


def test_without_a_checkpoint_the_run_goes_back_to_its_beginning(
    corpus: Path, tmp_path: Path, poison: Callable[[Plan], None]
) -> None:
    config = settings("train.steps=6", "train.most_skipped_steps=2", "train.learning_rate=0.004")
    poison(lambda job: "loss" if job.state.step >= 1 and job.state.safety.learning_rate_ratio == 1 else None)
    events = trained(config, corpus, tmp_path / "back")
    (back,) = only(events, RolledBack)
    assert (back.step, back.checkpoint) == (0, None)
    poison(lambda _: None)
    trained(config.with_changes(["train.learning_rate=0.002"]), corpus, tmp_path / "half")
    assert equal(weights(tmp_path / "back"), weights(tmp_path / "half"))


def test_when_going_back_does_not_help_the_run_stops_with_the_reason(
    corpus: Path, tmp_path: Path, poison: Callable[[Plan], None]
) -> None:
    run = tmp_path / "run"
    poison(lambda job: "loss" if job.state.step >= 6 else None)
    config = settings("train.steps=20", "train.most_skipped_steps=2", "train.most_rollbacks=2")
    events: list[Event] = []
    with pytest.raises(TrainingError, match=r"step 8: the loss .* 2th step in a row.* 2 times.* lower train\.learn"):
        events.extend(train(config, corpus, run))
    poison(lambda _: None)
    assert checkpoints(run)[-1].name == "step-00000005"
    assert isinstance(trained(config, corpus, run, resume="auto")[-1], Finished)


def test_a_poisoned_run_that_died_equals_one_that_did_not(
    corpus: Path, tmp_path: Path, poison: Callable[[Plan], None]
) -> None:
    poison(lambda job: "loss" if job.state.step >= 6 and job.state.safety.rollbacks < 2 else None)
    config = settings("train.steps=12", "train.most_skipped_steps=3")
    straight = trained(config, corpus, tmp_path / "straight")
    assert len(only(straight, RolledBack)) == 2
    moments: list[Callable[[Event], bool]] = [
        lambda event: isinstance(event, Skipped) and event.step == 8,
        lambda event: isinstance(event, RolledBack),
        lambda event: isinstance(event, RolledBack) and event.learning_rate_ratio == 0.25,
        lambda event: isinstance(event, Progress) and event.step == 9,
    ]
    for number, moment in enumerate(moments):
        run = tmp_path / str(number)
        for event in train(config, corpus, run):
            if moment(event):
                break
        trained(config, corpus, run, resume="auto")
        assert lasting_log(run) == lasting_log(tmp_path / "straight")
        assert equal(weights(run), weights(tmp_path / "straight"))


def test_a_run_goes_back_behind_a_checkpoint_that_was_saved_when_nothing_was_finite(
    corpus: Path, tmp_path: Path, poison: Callable[[Plan], None]
) -> None:
    run = tmp_path / "run"
    begun: list[int] = []

    def plan(job: Job) -> Literal["loss"] | None:
        begun.append(job.state.step + 1)
        return "loss" if job.state.step >= 5 and job.state.safety.rollbacks == 0 else None

    poison(plan)
    config = settings("train.steps=12", "train.most_skipped_steps=5", "train.keep_best=false")
    for stop in (7, 8):  # a stop saves whatever there is; the steps that are due to be saved are not
        trained(config, corpus, run, resume="auto", should_stop=lambda stop=stop: stop in begun)
    assert [path.name for path in checkpoints(run)] == ["step-00000007", "step-00000008"]
    events = trained(config.with_changes(["train.keep_checkpoints=3"]), corpus, run, resume="auto")
    assert only(events, RolledBack)[0].step == 8  # none else is left
    assert only(trained(config, corpus, tmp_path / "other"), RolledBack)[0].step == 4


def test_a_checkpoint_that_is_damaged_is_passed_over_when_the_run_goes_back(
    corpus: Path, tmp_path: Path, poison: Callable[[Plan], None]
) -> None:
    run = tmp_path / "run"

    def plan(job: Job) -> Literal["loss"] | None:
        if job.state.step == 6 and job.state.safety.rollbacks == 0:
            list(train_module.saved(job, wait=True))
            (run / "checkpoints" / "step-00000005" / "model.safetensors").write_bytes(b"")
        return "loss" if job.state.step >= 6 and job.state.safety.rollbacks == 0 else None

    poison(plan)
    events = trained(settings("train.steps=10", "train.most_skipped_steps=2"), corpus, run)
    (back,) = only(events, RolledBack)
    assert back.step == 4
    assert "model.safetensors has 0 bytes" in back.damaged[0]
    assert isinstance(events[-1], Finished)


def test_a_validation_that_is_not_finite_is_unknown_and_never_the_best(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowed(*arguments: Any, **options: Any) -> Any:
        scored = bits_per_byte(*arguments, **options)
        return dataclasses.replace(scored, by_head=(float("inf"), float("nan")))

    monkeypatch.setattr(train_module, "bits_per_byte", overflowed)
    events = trained(settings("train.steps=5"), corpus, tmp_path / "run")
    assert [event.bits_per_byte_by_head for event in only(events, Validation)] == [(None, None)]
    assert best_checkpoint(tmp_path / "run") is None


# Memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: …")]
)
def test_the_end_of_memory_says_which_settings_fit(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(step_module, "multi_byte_loss", full)
    with pytest.raises(TrainingError, match=r"memory is used up on cpu: a step needs .* train\.batch_windows=2 and"):
        trained(settings("train.steps=5"), corpus, tmp_path / "run")


@pytest.mark.parametrize("available", [2_000, 400_000_000])
def test_a_step_that_surely_does_not_fit_is_refused_before_anything_is_made(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int
) -> None:
    """A CPU has no allocator that refuses: the kernel would kill the process in its first step, or another one."""
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(total=1 << 40, available=available))
    fits = (
        "even one window needs" if available < 10_000 else r"with train\.batch_windows=\d+ and train\.accumulation=\d+"
    )
    config = settings("train.steps=5", "train.batch_windows=1000000")
    with pytest.raises(TrainingError, match=rf"too little memory on cpu: a step needs about [\d.]+ GB, .* {fits}"):
        trained(config, corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rows", [4_000_000, 60_000_000])
def test_tables_that_do_not_fit_are_refused_and_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(total=1 << 33, available=1 << 33))
    config = settings("train.steps=5", "model.ngram_sizes=[2,3,4]", f"model.ngram_rows={rows}")
    with pytest.raises(
        TrainingError, match=r"too little memory on cpu: .* lower model\.ngram_rows or model\.ngram_width"
    ):
        trained(config, corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_error_of_torch_is_not_taken_for_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step_module, "multi_byte_loss", wrong)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trained(settings("train.steps=5"), corpus, tmp_path / "run")


# A full disk


@pytest.fixture
def file_limit() -> Iterator[Callable[[int | None], None]]:
    """Refuses larger files, as a full disk would; None lifts it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes of saving come at the step that is saved, not whenever the disk is done."""
    outcomes = Saver.outcomes
    monkeypatch.setattr(Saver, "outcomes", lambda saver, wait=False: outcomes(saver, wait=True))  # noqa: ARG005


@pytest.mark.usefixtures("told_at_once")
@pytest.mark.parametrize("background", ["true", "false"])
def test_on_a_full_disk_training_goes_on_and_the_warning_repeats(
    corpus: Path, tmp_path: Path, file_limit: Callable[[int | None], None], background: str
) -> None:
    run = tmp_path / "run"
    config = settings("train.steps=18", "train.keep_best=false", f"train.save_in_background={background}")
    trained(config, corpus, tmp_path / "straight")
    events = []
    for event in train(config, corpus, run):
        events.append(event)
        if isinstance(event, Saved) and event.step == 4:
            file_limit(20_000)  # not one checkpoint more
        if isinstance(event, Refused) and "step-00000012" in event.reason:
            assert [path.name for path in checkpoints(run)] == ["step-00000004"]
            load_model(run)
            file_limit(None)
    refused = [event.reason for event in only(events, Refused)]
    assert len(refused) == 2
    assert "step-00000008" in refused[0]
    assert isinstance(events[-1], Finished)
    assert lasting_log(run) == lasting_log(tmp_path / "straight")
    assert equal(weights(run), weights(tmp_path / "straight"))


def test_a_log_that_a_full_disk_refuses_is_written_later_and_no_checkpoint_gets_ahead_of_it(
    corpus: Path, tmp_path: Path, file_limit: Callable[[int | None], None]
) -> None:
    run = tmp_path / "run"
    config = settings("train.steps=18", "train.keep_best=false", "train.save_in_background=false")
    trained(config, corpus, tmp_path / "straight")
    events = []
    for event in train(config, corpus, run):
        events.append(event)
        if isinstance(event, Saved) and event.step == 4:
            file_limit((run / "metrics.jsonl").stat().st_size + 20)  # a part of a record
        if isinstance(event, Progress) and event.step == 15:
            assert [path.name for path in checkpoints(run)] == ["step-00000004"]
            assert all(record["step"] <= 6 for record in read_log(run))
            file_limit(None)
    refused = only(events, Refused)
    assert len(refused) > 3
    assert all("metrics.jsonl" in event.reason for event in refused)
    assert isinstance(events[-1], Finished)
    assert lasting_log(run) == lasting_log(tmp_path / "straight")
    assert equal(weights(run), weights(tmp_path / "straight"))


@pytest.mark.usefixtures("told_at_once")
def test_a_last_checkpoint_that_the_disk_refuses_is_an_error_and_the_run_goes_on_later(
    corpus: Path, tmp_path: Path, file_limit: Callable[[int | None], None]
) -> None:
    run, config = tmp_path / "run", settings("train.steps=10", "train.keep_best=false")
    trained(config, corpus, tmp_path / "straight")
    with pytest.raises(StorageError, match="step-00000010"):
        for event in train(config, corpus, run):
            if isinstance(event, Saved):
                file_limit(20_000)
    file_limit(None)
    assert [path.name for path in checkpoints(run)] == ["step-00000004"]
    trained(config, corpus, run, resume="auto")
    assert equal(weights(run), weights(tmp_path / "straight"))
    assert lasting_log(run) == lasting_log(tmp_path / "straight")


# A second trainer


def test_a_second_training_in_the_same_folder_is_refused_and_the_first_is_not_disturbed(
    corpus: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", settings("train.steps=10")
    trained(config, corpus, tmp_path / "straight")
    first = train(config, corpus, run)
    assert isinstance(next(first), Started)
    for resume in ("auto", "never", "require"):
        with pytest.raises(CheckpointError, match=r"is being trained by process \d+ on"):
            trained(config, corpus, run, resume=resume)
    list(first)
    assert equal(weights(run), weights(tmp_path / "straight"))
    assert not (run / ".train.lock").exists()
    assert isinstance(trained(settings("train.steps=12"), corpus, run, resume="auto")[-1], Finished)


def test_a_lock_that_a_killed_run_left_keeps_nobody_out(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".train.lock").write_text("process 1 on another\n")
    assert isinstance(trained(settings("train.steps=2"), corpus, run)[-1], Finished)


# An average of the weights


def test_the_average_is_what_is_validated_and_loaded_and_the_training_goes_on_with_its_own_weights(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = Corpus.open(corpus).raw_bytes("validation")
    changes = ["train.steps=10", f"train.validation_bytes={total}"]
    expected: dict[str, torch.Tensor] = {}
    learn = step_module._learn

    def followed(job: Job, *arguments: Any) -> Learnt:
        if not expected:
            expected.update({name: weight.detach().clone() for name, weight in job.model.named_parameters()})
        learnt = learn(job, *arguments)
        step = job.state.step + 1
        for name, weight in job.model.named_parameters():
            expected[name].lerp_(weight.detach(), 1 - decay_at(step, 0.9))
        return learnt

    trained(settings(*changes), corpus, tmp_path / "plain")
    monkeypatch.setattr(step_module, "_learn", followed)
    events = trained(settings(*changes, "train.ema_decay=0.9"), corpus, tmp_path / "averaged")
    loaded = weights(tmp_path / "averaged")
    for name, average in expected.items():
        torch.testing.assert_close(loaded[name], average)
    snapshot = load_snapshot(checkpoints(tmp_path / "averaged")[-1])
    assert equal(dict(snapshot.model), weights(tmp_path / "plain"))
    model, _ = load_model(tmp_path / "averaged")
    scored = bits_per_byte(model, Corpus.open(corpus).documents("validation"), context_bytes=24)
    assert only(events, Validation)[-1].bits_per_byte_by_head == scored.by_head


@pytest.mark.parametrize("changes", [["train.ema_decay=0.9"], ["train.optimizer=muon", "train.schedule=wsd"]])
def test_a_run_with_an_average_or_with_muon_continues_bit_for_bit(
    corpus: Path, tmp_path: Path, changes: list[str]
) -> None:
    config = settings("train.steps=8", *changes)
    trained(config, corpus, tmp_path / "straight")
    for stop in (3, 2):
        asked = iter([False] * stop)
        trained(config, corpus, tmp_path / "stopped", resume="auto", should_stop=lambda asked=asked: next(asked, True))
    trained(config, corpus, tmp_path / "stopped", resume="auto")
    for part in ("model", "average", "optimizer"):
        straight, stopped = (
            dict(getattr(load_snapshot(checkpoints(tmp_path / name)[-1]), part)) for name in ("straight", "stopped")
        )
        assert equal(straight, stopped)
    assert lasting_log(tmp_path / "straight") == lasting_log(tmp_path / "stopped")


def test_an_average_can_begin_in_the_middle_of_a_run_and_end_there(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(settings("train.steps=4"), corpus, run)
    begun = weights(run)
    list(trained(settings("train.steps=4", "train.ema_decay=0.9"), corpus, run, resume="auto"))
    trained(settings("train.steps=5", "train.ema_decay=0.9"), corpus, run, resume="auto")
    snapshot = load_snapshot(checkpoints(run)[-1])
    for name, average in snapshot.average.items():
        torch.testing.assert_close(average, begun[name].lerp(snapshot.model[name], 1 - decay_at(5, 0.9)))
    trained(settings("train.steps=6"), corpus, run, resume="auto")
    assert not load_snapshot(checkpoints(run)[-1]).average


# The best checkpoint


def test_the_best_validation_is_saved_and_kept(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = iter([3.0, 2.0, 2.5, 2.0, 4.0])

    def scored(*arguments: Any, **options: Any) -> Any:
        return dataclasses.replace(bits_per_byte(*arguments, **options), by_head=(next(bits), None))

    monkeypatch.setattr(train_module, "bits_per_byte", scored)
    run = tmp_path / "run"
    config = settings("train.steps=25", "train.keep_checkpoints=1", "train.save_every_steps=8")
    events = trained(config, corpus, run)
    # Before the first validation, too, so that whatever goes wrong in it loses nothing.
    assert [event.step for event in only(events, Saved)] == [5, 5, 8, 10, 16, 24, 25]
    assert [path.name for path in checkpoints(run)] == ["step-00000010", "step-00000025"]
    assert best_checkpoint(run) == run / "checkpoints" / "step-00000010"
    assert equal(
        load_model(run / "checkpoints" / "best")[0].state_dict(), weights(run / "checkpoints" / "step-00000010")
    )
    assert load_snapshot(checkpoints(run)[-1]).progress["safety"]["best_bits_per_byte"] == 2.0


# A stop at any moment


def test_a_validation_gives_way_to_a_stop_and_is_made_up_for(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("train.steps=12")
    trained(config, corpus, tmp_path / "straight")
    asked: list[None] = []
    batches = 0

    def scored(*arguments: Any, before_batch: Callable[[], None], **options: Any) -> Any:
        def asking() -> None:
            nonlocal batches
            batches += 1
            asked.append(None)
            before_batch()

        return bits_per_byte(*arguments, before_batch=asking, **options)

    monkeypatch.setattr(train_module, "bits_per_byte", scored)
    run = tmp_path / "stopped"
    for _ in range(3):  # it is due again and again
        asked.clear()
        events = trained(config, corpus, run, resume="auto", should_stop=lambda: bool(asked))
        assert isinstance(events[-1], Finished)
        assert (events[-1].reason, events[-1].step) == ("stopped", 5)
        assert only(events, Validation) == []
    assert batches == 3  # each time it gave way before the first one
    monkeypatch.undo()
    trained(config, corpus, run, resume="auto")
    assert lasting_log(run) == lasting_log(tmp_path / "straight")
    assert equal(weights(run), weights(tmp_path / "straight"))


def test_a_stop_while_a_checkpoint_is_written_waits_for_it_and_saves(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, opened = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Path:
        entered.set()
        opened.wait()
        return save_checkpoint(*arguments, **options)

    monkeypatch.setattr(saver_module, "save_checkpoint", slow)
    run = tmp_path / "run"

    def should_stop() -> bool:
        if entered.is_set():  # step 4 is being written: ask for a stop, and let it be written
            opened.set()
            return True
        return False

    events = trained(settings("train.steps=100"), corpus, run, should_stop=should_stop)
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reason == "stopped"
    assert checkpoints(run)[0].name == "step-00000004"
    assert last.checkpoint == checkpoints(run)[-1]
    assert load_snapshot(last.checkpoint).step == last.step


# A kill

COMMAND = [sys.executable, "-m", "bytelm.cli", "train"]


def kill_and_resume(corpus: Path, tmp_path: Path, kills: int, steps: int) -> None:
    """Kill a run many times, half of them while it saves, and compare it with one that was left alone."""
    draw = random.Random(0)
    changes = [*TINY, "train.save_every_steps=7", "train.validate_every_steps=16", "train.accumulation=2"]
    config = RunConfig.build("tiny", [*changes, f"train.steps={steps}"])
    run = tmp_path / "killed"
    words = [*COMMAND, "--corpus", str(corpus), "--out", str(run), "--resume", "auto", "--steps", str(steps)]
    words += [f"--set={change}" for change in changes]
    while_saving = 0
    for number in range(kills):
        before = len(read_log(run)) if (run / "metrics.jsonl").exists() else 0
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        more = draw.randrange(1, 12)
        while process.poll() is None:
            if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= before + more:
                break
        if number % 2:
            while process.poll() is None and not list((run / "checkpoints").glob(".*.part")):
                pass
            while_saving += 1
        for _ in range(draw.randrange(0, 20_000)):
            pass  # a moment, a little longer or shorter each time
        process.kill()
        process.wait()
    trained(config, corpus, run, resume="auto")
    trained(config, corpus, tmp_path / "straight")
    assert while_saving == kills // 2
    assert lasting_log(run) == lasting_log(tmp_path / "straight")
    straight, killed = (load_snapshot(checkpoints(folder)[-1]) for folder in (tmp_path / "straight", run))
    for part in ("model", "optimizer", "random"):
        assert equal(dict(getattr(straight, part)), dict(getattr(killed, part)))
    assert straight.progress["loader"] == killed.progress["loader"]
    left = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    assert left == []


def test_a_run_that_is_killed_again_and_again_equals_one_that_is_not(corpus: Path, tmp_path: Path) -> None:
    kill_and_resume(corpus, tmp_path, kills=2, steps=150)


@pytest.mark.slow
def test_a_run_that_is_killed_thirty_times_equals_one_that_is_not(corpus: Path, tmp_path: Path) -> None:
    kill_and_resume(corpus, tmp_path, kills=30, steps=2500)
