import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from bytelm.checkpoint import checkpoints, load_model, load_snapshot
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus
from bytelm.decode import GenerateSettings, generate
from bytelm.engine.library import load_library
from bytelm.errors import CheckpointError, ConfigError, CorpusError, StorageError
from bytelm.evaluate import bits_per_byte
from bytelm.events import Event, Finished, Progress, Saved, Started, Validation
from bytelm.job import Job
from bytelm.loss import head_weights
from bytelm.packing import PackedBatch
from bytelm.run_log import read_log
from bytelm.schedule import learning_rate
from bytelm.step import load
from bytelm.train import Resume, train
from bytelm.utf8 import decode_text

TINY = [
    "model.d_model=16",
    "model.layers=2",
    "model.attention_heads=2",
    "model.kv_heads=1",
    "model.d_ff=16",
    "model.local_window_bytes=8",
    "heads.count=3",
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
"""What differs between two runs that are equal."""


def settings(*changes: str) -> RunConfig:
    return RunConfig.build("tiny", [*TINY, *changes])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = ["the", "byte", "window", "Größe", "世界", "return", "\x00\xff", "\r\n", "head"]
    for number in range(12):
        text = " ".join(draw.choices(words, k=draw.randrange(20, 200)))
        (folder / f"{number}.txt").write_bytes(text.encode())
    (folder / "noise.bin").write_bytes(draw.randbytes(500))
    ingest([folder], folder / "corpus", validation_fraction=0.1)
    return folder / "corpus"


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


_begun: list[None] = []
"""One entry for each step that was begun."""


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def counting(job: Job) -> list[PackedBatch]:
        _begun.append(None)
        return load(job)

    monkeypatch.setattr("bytelm.train.load", counting)


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks to stop when so many more steps were begun, however often it is called."""
    end = len(_begun) + steps
    return lambda: len(_begun) >= end


def trained(config: RunConfig, corpus: Path, run: Path, **options: Any) -> list[Event]:
    return list(train(config, corpus, run, **options))


def lasting_log(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in read_log(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run)[0].state_dict()


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_tells_what_happens_in_order_and_ends_with_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    config = settings("train.steps=10", "train.save_in_background=false", "train.keep_best=false")
    events = trained(config, corpus, tmp_path / "run")
    told = [(type(event), event.step) for event in events]
    assert told == [
        (Started, 0),
        (Progress, 3),
        (Saved, 4),
        (Validation, 5),
        (Progress, 6),
        (Saved, 8),
        (Progress, 9),
        (Progress, 10),
        (Validation, 10),
        (Saved, 10),
        (Finished, 10),
    ]
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.bytes_seen) == ("budget", 10 * 4 * 24)
    assert last.checkpoint == tmp_path / "run" / "checkpoints" / "step-00000010"
    assert len(checkpoints(tmp_path / "run")) == 2


def test_training_lowers_the_bits_of_every_head(corpus: Path, tmp_path: Path) -> None:
    config = settings("train.steps=120", "train.learning_rate=0.01", "train.log_every_steps=10")
    progress = [event for event in trained(config, corpus, tmp_path / "run") if isinstance(event, Progress)]
    first, last = progress[0].bits_per_byte_by_head, progress[-1].bits_per_byte_by_head
    assert all(
        after is not None and before is not None and after < before - 2
        for before, after in zip(first, last, strict=True)
    )


def test_the_log_has_each_record_with_numbers_alone(corpus: Path, tmp_path: Path) -> None:
    events = trained(settings("train.steps=7"), corpus, tmp_path / "run")
    records = read_log(tmp_path / "run")
    assert [(record["kind"], record["step"]) for record in records] == [
        ("step", 3),
        ("validation", 5),
        ("step", 6),
        ("step", 7),
        ("validation", 7),
    ]
    step = records[-2]
    assert step["bits_per_byte"] == step["bits_per_byte_by_head"][0]
    assert len(step["bits_per_byte_by_head"]) == 3
    progress = [event for event in events if isinstance(event, Progress)][-1]
    assert (step["loss"], step["grad_norm"], step["learning_rate"]) == (
        progress.loss,
        progress.grad_norm,
        progress.learning_rate,
    )
    assert min(step["bytes_seen"], step["elapsed_s"], step["bytes_per_second"], step["peak_memory_bytes"]) > 0


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 9])
@pytest.mark.parametrize("budget", ["train.steps=11", "train.bytes=1000"])
def test_a_run_that_was_stopped_equals_one_that_was_not_bit_for_bit(
    corpus: Path, tmp_path: Path, stop: int, budget: str
) -> None:
    config = settings(budget, "train.accumulation=2" if budget.startswith("train.steps") else "train.batch_windows=4")
    trained(config, corpus, tmp_path / "straight")
    first = trained(config, corpus, tmp_path / "stopped", should_stop=stop_after(stop))
    assert isinstance(first[-1], Finished)
    assert (first[-1].reason, first[-1].step) == ("stopped", stop)
    torch.rand(3)  # whatever happens to the generator in between
    trained(config, corpus, tmp_path / "stopped", resume="require")
    assert lasting_log(tmp_path / "stopped") == lasting_log(tmp_path / "straight")
    assert equal(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))
    straight, stopped = (load_snapshot(checkpoints(tmp_path / name)[-1]) for name in ("straight", "stopped"))
    assert equal(dict(straight.optimizer), dict(stopped.optimizer))
    assert equal(dict(straight.random), dict(stopped.random))
    assert straight.progress["loader"] == stopped.progress["loader"]


def test_a_run_that_is_stopped_at_every_step_equals_one_that_is_not(corpus: Path, tmp_path: Path) -> None:
    config = settings("train.steps=6")
    trained(config, corpus, tmp_path / "straight")
    for _ in range(7):
        trained(config, corpus, tmp_path / "stopped", resume="auto", should_stop=stop_after(1))
    assert lasting_log(tmp_path / "stopped") == lasting_log(tmp_path / "straight")
    assert equal(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))


def test_a_run_that_died_between_checkpoints_logs_each_step_once(corpus: Path, tmp_path: Path) -> None:
    config = settings("train.steps=11")
    trained(config, corpus, tmp_path / "straight")
    for event in train(config, corpus, tmp_path / "died"):
        if isinstance(event, Progress) and event.step == 9:
            break  # step 9 is logged, step 8 is saved
    assert read_log(tmp_path / "died")[-1]["step"] == 9
    trained(config, corpus, tmp_path / "died", resume="auto")
    assert lasting_log(tmp_path / "died") == lasting_log(tmp_path / "straight")
    assert equal(weights(tmp_path / "died"), weights(tmp_path / "straight"))


def test_what_killed_processes_left_half_written_is_no_obstacle_and_is_cleared_away(
    corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.toml.4194999.part").write_bytes(b"[model")
    trained(settings("train.steps=1"), corpus, run, resume="auto")
    (run / "eval").mkdir()
    for name in (".report.html.7.part", "eval/.humaneval.json.7.part", "checkpoints/.best.7.part"):
        (run / name).write_bytes(b"half")
    (run / "checkpoints" / ".step-00000002.part").mkdir()
    trained(settings("train.steps=2"), corpus, run, resume="auto")
    assert [str(path) for path in run.rglob("*.part")] == []


def test_the_newest_checkpoint_being_damaged_the_one_before_is_taken_and_told(corpus: Path, tmp_path: Path) -> None:
    config, run = settings("train.steps=11"), tmp_path / "run"
    trained(config, corpus, tmp_path / "straight")
    trained(config, corpus, run, should_stop=stop_after(9))
    os.truncate(run / "checkpoints" / "step-00000009" / "optimizer.safetensors", 100)
    started, *_ = events = trained(config, corpus, run, resume="auto")
    assert isinstance(started, Started)
    assert started.step == 8
    assert len(started.damaged) == 1
    assert "optimizer.safetensors has 100 bytes" in started.damaged[0]
    assert isinstance(events[-1], Finished)
    assert equal(weights(run), weights(tmp_path / "straight"))
    assert (run / "checkpoints" / "damaged-step-00000009").is_dir()


def test_accumulated_micro_batches_are_one_batch(corpus: Path, tmp_path: Path) -> None:
    # Four windows at a time or one window four times: the same step up to the order of summation, though windows
    # have different numbers of valid targets.
    for name, changes in {
        "one": ["train.batch_windows=4"],
        "four": ["train.batch_windows=1", "train.accumulation=4"],
    }.items():
        trained(settings("train.steps=5", "train.warmup_fraction=0", *changes), corpus, tmp_path / name)
    for one, four in zip(lasting_log(tmp_path / "one"), lasting_log(tmp_path / "four"), strict=True):
        assert one["bits_per_byte_by_head"] == pytest.approx(four["bits_per_byte_by_head"], rel=1e-4)
    left, right = weights(tmp_path / "one"), weights(tmp_path / "four")
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-4)


def test_validation_scores_the_same_held_out_bytes_as_evaluation_does(corpus: Path, tmp_path: Path) -> None:
    held_out = Corpus.open(corpus).raw_bytes("validation")
    config = settings("train.steps=2", f"train.validation_bytes={held_out}")
    events = trained(config, corpus, tmp_path / "run")
    validation = next(event for event in events if isinstance(event, Validation))
    model, _ = load_model(tmp_path / "run")
    scored = bits_per_byte(model, Corpus.open(corpus).documents("validation"), context_bytes=24)
    assert validation.scored_bytes == scored.scored_bytes == held_out
    assert validation.bits_per_byte_by_head == scored.by_head


@pytest.mark.parametrize("decoder", ["the engine", "torch"])
def test_a_validation_shows_what_the_model_writes_and_a_start_who_decodes_it(
    corpus: Path, tmp_path: Path, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "torch":
        for module in ("bytelm.train", "bytelm.engine.weights"):
            monkeypatch.setattr(f"{module}.load_library", lambda: None)
        monkeypatch.setattr("bytelm.train.unavailable_reason", lambda: "no library was built")
    elif load_library() is None:
        pytest.skip("the engine was not built")
    events = trained(settings("train.steps=2", "train.sample_bytes=20"), corpus, tmp_path / "run")
    started, validation = events[0], next(event for event in events if isinstance(event, Validation))
    assert isinstance(started, Started)
    assert started.decoder.startswith(decoder)
    assert (decoder == "torch") == started.decoder.endswith("for no library was built")
    model, config = load_model(tmp_path / "run")
    prompt = next(iter(Corpus.open(corpus).documents("validation")))[:32]
    assert decode_text(prompt, "escape").startswith(validation.prompt)
    sampled = GenerateSettings(max_bytes=20, temperature=0.7, seed=2)
    written = generate(model, prompt[: len(validation.prompt)], sampled, context_bytes=config.data.window_bytes)
    assert validation.sample == decode_text(written.data, "escape") != ""
    assert [record["sample"] for record in read_log(tmp_path / "run") if "sample" in record] == [validation.sample]


def test_every_key_of_the_log_is_described_for_users(corpus: Path, tmp_path: Path) -> None:
    trained(settings("train.steps=5"), corpus, tmp_path / "run")
    described = (Path(__file__).resolve().parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    keys = {key for record in read_log(tmp_path / "run") for key in record}
    assert {key for key in keys if f"`{key}`" not in described} == set()


def test_looking_at_a_run_changes_nothing_in_it(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(settings("train.steps=8", "train.sample_bytes=0"), corpus, tmp_path / "plain")
    monkeypatch.setattr("bytelm.train._PEAK_SHARE", 0.0)  # the peak is measured at the first logged step
    events = trained(settings("train.steps=8", "train.sample_bytes=9"), corpus, tmp_path / "seen")
    assert equal(weights(tmp_path / "plain"), weights(tmp_path / "seen"))
    assert all(event.mfu and 0 < event.mfu < 1 for event in events if isinstance(event, Progress))
    looks = {"prompt", "sample"}
    plain, seen = (
        [{key: value for key, value in record.items() if key not in looks} for record in lasting_log(tmp_path / name)]
        for name in ("plain", "seen")
    )
    assert plain == seen


def test_a_record_tells_the_operations_and_the_estimated_acceptance(corpus: Path, tmp_path: Path) -> None:
    trained(settings("train.steps=5", "train.save_every_steps=5"), corpus, tmp_path / "run")
    model, _ = load_model(tmp_path / "run")
    step, validation = read_log(tmp_path / "run")[-2:]
    assert step["flops"] == validation["flops"] == model.flops_per_byte(24, training=True) * 5 * 4 * 24
    assert step["mfu"] is None  # the run is too short for that
    assert step["memory_bytes"] <= step["peak_memory_bytes"]
    shares = validation["agreement_by_head"]
    assert shares[0] == 1.0
    assert validation["bytes_per_step_estimate"] == pytest.approx(sum(shares))
    assert validation["best_bits_per_byte"] == validation["bits_per_byte"]


def test_no_more_is_validated_than_was_asked_for(corpus: Path, tmp_path: Path) -> None:
    started, *_ = trained(settings("train.steps=1", "train.validation_bytes=100"), corpus, tmp_path / "run")
    assert isinstance(started, Started)
    assert 50 <= started.held_out_bytes <= 100


def test_a_corpus_that_holds_nothing_out_is_trained_without_validation(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"abcdefgh" * 100)
    ingest([tmp_path / "text"], tmp_path / "corpus", validation_fraction=0)
    events = trained(settings("train.steps=6"), tmp_path / "corpus", tmp_path / "run")
    assert not [event for event in events if isinstance(event, Validation)]
    assert isinstance(events[-1], Finished)


def test_the_rate_follows_the_share_of_the_budget(corpus: Path, tmp_path: Path) -> None:
    config = settings("train.steps=9", "train.log_every_steps=1", "train.warmup_fraction=0.3")
    rates = [event.learning_rate for event in trained(config, corpus, tmp_path / "run") if isinstance(event, Progress)]
    assert rates == [learning_rate(step / 9, config.train) for step in range(1, 10)]


def test_a_time_budget_counts_the_seconds_of_all_starts(corpus: Path, tmp_path: Path) -> None:
    config = settings("train.time_budget_s=1000")
    trained(config, corpus, tmp_path / "run", should_stop=stop_after(3))
    spent = load_snapshot(checkpoints(tmp_path / "run")[-1]).progress["elapsed_s"]
    shorter = settings(f"train.time_budget_s={spent / 2}")
    events = trained(shorter, corpus, tmp_path / "run", resume="auto")
    assert [type(event) for event in events] == [Started, Finished]
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].step) == ("budget", 3)
    assert events[-1].elapsed_s >= spent


def test_a_time_budget_ends_with_a_logged_validated_and_saved_step(corpus: Path, tmp_path: Path) -> None:
    events = trained(settings("train.time_budget_s=0.2"), corpus, tmp_path / "run")
    last = events[-1]
    assert isinstance(last, Finished)
    assert {type(event) for event in events if not isinstance(event, Started) and event.step == last.step} == {
        Progress,
        Validation,
        Saved,
        Finished,
    }
    assert [event.fraction for event in events if isinstance(event, Progress)][-1] == 1.0


def test_a_finished_run_can_be_given_a_larger_budget(corpus: Path, tmp_path: Path) -> None:
    trained(settings("train.steps=4"), corpus, tmp_path / "run")
    nothing = trained(settings("train.steps=4"), corpus, tmp_path / "run", resume="auto")
    assert [type(event) for event in nothing] == [Started, Finished]
    more = trained(settings("train.steps=8", "train.log_every_steps=1"), corpus, tmp_path / "run", resume="auto")
    rates = [event.learning_rate for event in more if isinstance(event, Progress)]
    assert rates == [learning_rate(step / 8, settings().train) for step in range(5, 9)]
    assert RunConfig.from_toml((tmp_path / "run" / "config.toml").read_text()).train.steps == 8


@pytest.mark.parametrize(
    "change",
    [
        "model.d_model=32",
        "model.layers=1",
        "heads.count=2",
        "heads.family=mlp",
        "data.window_bytes=32",
        "train.seed=1",
        "train.optimizer=muon",
    ],
)
def test_a_run_keeps_its_shape_and_its_order(corpus: Path, tmp_path: Path, change: str) -> None:
    trained(settings("train.steps=4"), corpus, tmp_path / "run")
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(CheckpointError, match=change.partition("=")[0]):
        trained(settings("train.steps=8", change), corpus, tmp_path / "run", resume="auto")
    assert (tmp_path / "run" / "config.toml").read_bytes() == before


def test_another_corpus_is_refused_on_resume(corpus: Path, tmp_path: Path) -> None:
    trained(settings("train.steps=4"), corpus, tmp_path / "run")
    (tmp_path / "other").write_bytes(b"another text " * 100)
    ingest([tmp_path / "other"], tmp_path / "corpus")
    with pytest.raises(CheckpointError, match=r"another corpus .* give --corpus"):
        trained(settings("train.steps=8"), tmp_path / "corpus", tmp_path / "run", resume="auto")


def test_a_moved_corpus_is_the_same_corpus(corpus: Path, tmp_path: Path) -> None:
    trained(settings("train.steps=4"), corpus, tmp_path / "run")
    shutil.copytree(corpus, tmp_path / "moved")
    events = trained(settings("train.steps=5"), tmp_path / "moved", tmp_path / "run", resume="auto")
    assert isinstance(events[-1], Finished)
    assert events[-1].step == 5


@pytest.mark.parametrize(("resume", "message"), [("never", "--resume auto"), ("require", "no checkpoint")])
def test_a_run_is_never_overwritten_and_nothing_is_resumed_from_nowhere(
    corpus: Path, tmp_path: Path, resume: Resume, message: str
) -> None:
    if resume == "never":
        trained(settings("train.steps=2"), corpus, tmp_path / "run")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=message):
        trained(settings("train.steps=2"), corpus, tmp_path / "run", resume=resume)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_folder_with_other_things_in_it_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_bytes(b"mine")
    with pytest.raises(StorageError, match="not empty and is no run"):
        trained(settings("train.steps=2"), corpus, tmp_path)
    with pytest.raises(StorageError, match="is a file"):
        trained(settings("train.steps=2"), corpus, tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_settings_without_a_budget_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.steps, train\.bytes, train\.time_budget_s"):
        trained(settings("train.steps=none"), corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "said"),
    [("nonsense", "there is no device 'nonsense'"), ("cuda:99", "device 'cuda:99' cannot be used here")],
)
def test_a_device_that_is_not_there_is_refused(corpus: Path, tmp_path: Path, device: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        trained(settings("train.steps=2", f"train.device={device}"), corpus, tmp_path / "run")


def test_a_corpus_shorter_than_a_window_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"short")
    ingest([tmp_path / "text"], tmp_path / "corpus")
    with pytest.raises(CorpusError, match="one window"):
        trained(settings("train.steps=2"), tmp_path / "corpus", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bfloat16_learns_as_float32_does(corpus: Path, tmp_path: Path) -> None:
    bits = {}
    for precision in ("float32", "bfloat16"):
        config = settings("train.steps=60", "train.learning_rate=0.01", f"train.precision={precision}")
        started, *events = trained(config, corpus, tmp_path / precision)
        assert isinstance(started, Started)
        assert started.precision == precision
        bits[precision] = next(e for e in reversed(events) if isinstance(e, Validation)).bits_per_byte_by_head[0]
    assert bits["bfloat16"] == pytest.approx(bits["float32"], abs=0.15)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "bfloat16").values())


def test_in_a_forward_curriculum_heads_begin_one_after_another(corpus: Path, tmp_path: Path) -> None:
    config = settings("train.steps=6", "heads.curriculum=forward", "heads.weight_ratio=0.5", "train.log_every_steps=1")
    events = trained(config, corpus, tmp_path / "run")
    learnt = [
        [bits is not None for bits in event.bits_per_byte_by_head] for event in events if isinstance(event, Progress)
    ]
    assert learnt == [[True, False, False]] * 2 + [[True, True, False]] * 2 + [[True, True, True]] * 2
    losses = [event for event in events if isinstance(event, Progress)]
    for event in losses:
        nats = [(bits or 0.0) * math.log(2) for bits in event.bits_per_byte_by_head]
        assert event.loss == pytest.approx(nats[0] + 0.5 * nats[1] + 0.25 * nats[2], rel=1e-4)


def test_a_first_validation_that_fails_loses_no_training(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("a validation that cannot be")

    config = settings("train.steps=6", "train.validate_every_steps=3")
    with monkeypatch.context() as patch:
        patch.setattr("bytelm.train.bits_per_byte", fails)
        with pytest.raises(RuntimeError, match="cannot be"):
            trained(config, corpus, tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003"]
    events = list(train(config, corpus, tmp_path / "run", resume="auto"))
    assert [event.step for event in events if isinstance(event, Validation)] == [3, 6]


def test_z_loss_is_part_of_the_loss_and_not_of_the_bits(corpus: Path, tmp_path: Path) -> None:
    first = [
        next(event for event in trained(settings(*changes), corpus, tmp_path / name) if isinstance(event, Progress))
        for name, changes in {
            "plain": ["train.steps=1"],
            "with": ["train.steps=1", "heads.z_loss=0.01"],
        }.items()
    ]
    assert first[1].bits_per_byte_by_head == first[0].bits_per_byte_by_head
    weights_K = head_weights(settings().heads, 0.0)
    # A fresh model spreads its probability over 320 ids: the denominator is about that.
    with_z, plain = first[1].loss, first[0].loss
    assert with_z is not None
    assert plain is not None
    assert with_z - plain == pytest.approx(sum(weights_K) * 0.01 * math.log(320) ** 2, rel=0.02)
