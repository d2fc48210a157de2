"""Two processes that train one model together do what one does, and end together."""

import contextlib
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from bytelm.checkpoint import checkpoints, load_model, load_snapshot
from bytelm.config import RunConfig, TrainConfig
from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus
from bytelm.decode import GenerateSettings, generate
from bytelm.distributed import choose_parallel, own_device
from bytelm.errors import ConfigError, TrainingError
from bytelm.evaluate import bits_per_byte
from bytelm.heads import FAMILIES
from bytelm.loss import multi_byte_loss
from bytelm.memory import advice, needed_memory, trace_step
from bytelm.model import ByteLM
from bytelm.packing import plain_batch
from bytelm.ranks import ALONE, Ranks, Share, joined, lost_ranks_named
from bytelm.run_log import read_log
from bytelm.train import train

PROGRAM = Path(__file__).parent / "programs" / "two_ranks.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
SHAPE = [
    "model.d_model=16",
    "model.layers=2",
    "model.attention_heads=2",
    "model.kv_heads=1",
    "model.d_ff=16",
    "model.local_window_bytes=8",
    "heads.count=3",
    "data.window_bytes=24",
    "train.optimizer=adamw",
]
TINY = [
    *SHAPE,
    "train.batch_windows=4",
    "train.precision=float32",
    "train.threads=1",
    "train.steps=9",
    "train.learning_rate=0.002",
    "train.log_every_steps=3",
    "train.validate_every_steps=5",
    "train.validation_bytes=100000",
    "train.save_every_steps=4",
]
SHARING = ("ddp", "fsdp")
SOURCE = "the run that others begin with"
RUNS = {
    "ddp": [],
    "ddp-accumulated": ["train.accumulation=3", "train.batch_windows=2"],
    "ddp-curriculum": ["heads.family=transformer", "heads.curriculum=forward"],
    "ddp-curriculum-naive": ["heads.family=mlp", "heads.curriculum=reverse", "heads.backward=naive"],
    "ddp-everything": ["train.optimizer=muon", "train.schedule=wsd", "train.ema_decay=0.9", "heads.z_loss=0.01"],
    "fsdp": [],
    "fsdp-accumulated": ["train.accumulation=3", "train.batch_windows=2", "train.save_in_background=false"],
    "fsdp-curriculum": ["heads.family=causal", "heads.curriculum=forward", "train.accumulation=2"],
    "fsdp-everything": ["train.schedule=wsd", "train.ema_decay=0.9", "heads.z_loss=0.01", "data.packing=document"],
    "ddp-frozen": ["train.frozen=language_model", f"train.init_from={SOURCE}"],
    "fsdp-frozen": ["train.frozen=trunk", f"train.init_from={SOURCE}", "heads.family=mlp"],
}
"""Changes of a run, by a name that begins with how two processes share it."""
GRADIENTS = {
    f"{sharing}-{family}-{backward}": [*SHAPE, f"train.parallel={sharing}", f"heads.family={family}", *more]
    for sharing in SHARING
    for family, backward in [
        *((family, "auto") for family in FAMILIES),
        ("mlp", "naive"),
        ("transformer", "checkpoint"),
    ]
    for more in [[f"heads.backward={backward}"]]
}
STOPS: list[tuple[int, dict[str, int]]] = [(2, {"stop": 3}), (1, {"stop": 3}), (2, {})]
"""Processes of each start of a run, and the steps after which it is stopped."""
POISONS = ("loss", "gradient")
FULL = ["train.keep_best=false", "train.save_in_background=false"]
TIMES = {"elapsed_s", "bytes_per_second", "mfu", "memory_bytes", "peak_memory_bytes"}


def settings(*changes: str) -> RunConfig:
    return RunConfig.build("tiny", [*TINY, *changes])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of one test run share."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two-ranks"
    place.mkdir(exist_ok=True)
    return place


@contextlib.contextmanager
def one_at_a_time(place: Path) -> Iterator[None]:
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def corpus(place: Path) -> Path:
    with one_at_a_time(place):
        if not (place / "corpus" / "index.json").exists():
            folder, draw = place / "sources", random.Random(0)
            folder.mkdir()
            for number in range(10):
                words = draw.choices(["the", "byte", "window", "Größe", "head"], k=draw.randrange(20, 200))
                (folder / f"{number}.txt").write_text(" ".join(words))
            ingest([folder], place / "corpus", validation_fraction=0.2)
    return place / "corpus"


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    """Two micro-batches of four windows."""
    return torch.randint(0, 256, (2, 4, 27), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def found(corpus: Path, windows: torch.Tensor, place: Path) -> Path:
    """What two processes have done, in a folder; they are started once for all tests."""
    with one_at_a_time(place):
        if not (place / "done").exists():
            start_two(corpus, windows, place)
            (place / "done").touch()
    return place


def start_two(corpus: Path, windows: torch.Tensor, place: Path) -> None:
    trainings: list[dict[str, Any]] = []
    for name, changes in RUNS.items():
        parallel = f"train.parallel={name.partition('-')[0]}"
        trainings.append({"run": name, "changes": [*TINY, *changes, parallel], "ranks": 2})
    for sharing in SHARING:
        for ranks, stop in STOPS:
            changes = [*TINY, "train.ema_decay=0.9", f"train.parallel={sharing}"]
            trainings.append({"run": f"{sharing}-taken-up", "changes": changes, "ranks": ranks, **stop})
        for kind in POISONS:
            for ranks in (2, 1):
                changes = [*TINY, "train.most_skipped_steps=2", f"train.parallel={sharing}"]
                run = f"{sharing}-{kind}-{ranks}"
                trainings.append({"run": run, "changes": changes, "ranks": ranks, "poison": kind})
        changes = [*TINY, *FULL, f"train.parallel={sharing}"]
        trainings.append({"run": f"{sharing}-full", "changes": changes, "ranks": 2, "full": True})
    for one in trainings:
        one["changes"] = beginning(place, one["changes"])
        one |= {"corpus": str(corpus), "run": str(place / one["run"])}
    plan = {"gradients": GRADIENTS, "windows": windows.tolist(), "trainings": trainings}
    (place / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [*TORCHRUN, str(PROGRAM), str(place / "plan.json"), str(place)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def beginning(place: Path, changes: list[str]) -> list[str]:
    """Settings of a run that may begin with another one."""
    return [change.replace(SOURCE, str(place / "ddp")) for change in changes]


def assert_same_run(one: Path, other: Path, but: Collection[str] = ()) -> None:
    """The same events with nearly the same numbers, and nearly the same weights."""
    left, right = (
        [
            {key: value for key, value in record.items() if key not in {*TIMES, *but, "sample"}}
            for record in read_log(run)
        ]
        for run in (one, other)
    )
    assert [(record["kind"], record["step"]) for record in left] == [(entry["kind"], entry["step"]) for entry in right]
    for record, entry in zip(left, right, strict=True):
        assert record.keys() == entry.keys()
        for key, value in record.items():
            expected = [entry[key]] if not isinstance(entry[key], list) else entry[key]
            for number, other_number in zip(value if isinstance(value, list) else [value], expected, strict=True):
                near = other_number if isinstance(other_number, str | None) else pytest.approx(other_number, rel=1e-3)
                assert number == near, (key, record["step"])
    snapshots = [load_snapshot(checkpoints(run)[-1]) for run in (one, other)]
    for part in ("model", "average", "optimizer"):
        tensors, expected = (dict(getattr(snapshot, part)) for snapshot in snapshots)
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                tensor, expected[name], rtol=5e-3, atol=2e-4, msg=lambda told, n=name: f"{n} {told}"
            )
    assert snapshots[0].progress["loader"] == snapshots[1].progress["loader"]
    assert snapshots[0].progress["bytes_seen"] == snapshots[1].progress["bytes_seen"]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_does(found: Path, corpus: Path, tmp_path: Path, name: str) -> None:
    for _ in train(settings(*beginning(found, RUNS[name])), corpus, tmp_path / "alone"):
        pass
    assert_same_run(found / name, tmp_path / "alone")


@pytest.mark.parametrize("sharing", SHARING)
def test_a_run_goes_on_with_two_processes_then_one_then_two(
    found: Path, corpus: Path, tmp_path: Path, sharing: str
) -> None:
    for _ in train(settings("train.ema_decay=0.9"), corpus, tmp_path / "alone"):
        pass
    assert_same_run(found / f"{sharing}-taken-up", tmp_path / "alone")


@pytest.mark.parametrize("name", ["ddp-curriculum", "fsdp-curriculum", "fsdp-everything"])
def test_what_two_processes_saved_is_loaded_evaluated_and_decoded_by_one(found: Path, corpus: Path, name: str) -> None:
    model, config = load_model(found / name)
    held_out = list(Corpus.open(corpus).documents("validation"))
    scored = bits_per_byte(model, held_out, context_bytes=24)
    told = [record for record in read_log(found / name) if record["kind"] == "validation"][-1]
    assert scored.scored_bytes == told["scored_bytes"]
    assert scored.by_head == pytest.approx(told["bits_per_byte_by_head"], rel=1e-5)
    assert len(generate(model, b"the ", GenerateSettings(max_bytes=8), context_bytes=24).data) == 8
    assert config.train.parallel == name.partition("-")[0]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_two_processes_are_summed_once_a_step_and_equal_those_of_one(
    found: Path, windows: torch.Tensor, name: str
) -> None:
    config = RunConfig.build("tiny", GRADIENTS[name])
    torch.manual_seed(0)
    model = ByteLM(config.model, config.heads)
    count = config.heads.count
    batches = [plain_batch(windows_BW, count) for windows_BW in windows]
    counts_K = torch.stack([batch.valid_BTK.sum((0, 1)) for batch in batches]).sum(0)
    for batch in batches:
        multi_byte_loss(model, batch, backward="naive", counts_K=counts_K).loss.backward()
    with safe_open(found / f"{name}.safetensors", "pt") as file:
        assert file.metadata()["unexchanged"] == "True"
        assert sorted(file.keys()) == sorted(name for name, _ in model.named_parameters())
        for weight_name, weight in model.named_parameters():
            torch.testing.assert_close(file.get_tensor(weight_name), weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", POISONS)
@pytest.mark.parametrize("sharing", SHARING)
def test_what_is_not_finite_on_one_process_is_skipped_by_all_and_they_go_back_together(
    found: Path, sharing: str, kind: str
) -> None:
    records = read_log(found / f"{sharing}-{kind}-2")
    (back,) = (record for record in records if record["kind"] == "rollback")
    assert (back["from_step"], back["step"]) == (7, 5)
    assert json.loads((found / f"{sharing}-{kind}-2" / "told.json").read_text()).count("Skipped") == 2
    assert_same_run(found / f"{sharing}-{kind}-2", found / f"{sharing}-{kind}-1")


@pytest.mark.parametrize("sharing", SHARING)
def test_a_disk_that_is_full_for_a_while_stops_neither_process(
    found: Path, corpus: Path, tmp_path: Path, sharing: str
) -> None:
    assert json.loads((found / f"{sharing}-full" / "told.json").read_text()).count("Refused") == 1
    assert [path.name for path in checkpoints(found / f"{sharing}-full")] == ["step-00000004", "step-00000009"]
    for _ in train(settings(*FULL), corpus, tmp_path / "alone"):
        pass
    assert_same_run(found / f"{sharing}-full", tmp_path / "alone")


def test_what_one_process_finds_all_know(found: Path) -> None:
    first, second = (json.loads((found / f"agreements-{rank}.json").read_text()) for rank in range(2))
    assert first["sums"] == second["sums"] == [3.0, 1.0]
    assert first["any"] == second["any"] == [True, False]
    assert first["first"] == second["first"] == "rank 0"
    assert first["all"] == second["all"] == [0, 10]
    # The one that found it says so.
    assert first["error"] == ["CorpusError", "found by rank 1", True]
    assert second["error"] == ["CorpusError", "found by rank 1", False]


@pytest.mark.parametrize(
    ("batch_windows", "accumulation", "ranks", "share"),
    [
        (8, 3, 1, (8, 3)),
        (4, 1, 2, (2, 1)),
        (8, 4, 4, (8, 1)),
        (8, 3, 2, (6, 2)),
        (1, 1536, 8, (1, 192)),
        (5, 2, 2, (5, 1)),
        (4, 7, 2, (2, 7)),
    ],
)
def test_a_step_has_as_many_windows_whatever_the_processes(
    batch_windows: int, accumulation: int, ranks: int, share: tuple[int, int]
) -> None:
    found = Share.of_step(TrainConfig(batch_windows=batch_windows, accumulation=accumulation), ranks)
    assert (found.batch_windows, found.micro_batches) == share
    assert share[0] * share[1] * ranks == batch_windows * accumulation


def test_a_step_that_cannot_be_shared_out_equally_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"6 windows of a step .*2 .*3.* 4 processes; choose a multiple of 4"):
        Share.of_step(TrainConfig(batch_windows=2, accumulation=3), 4)


@pytest.mark.parametrize("parallel", SHARING)
def test_too_little_memory_names_settings_that_give_each_process_less_of_the_same_step(parallel: str) -> None:
    cpu, two = torch.device("cpu"), Ranks(count=2)
    config = settings(
        "train.batch_windows=8", "train.accumulation=2", "data.window_bytes=512", f"train.parallel={parallel}"
    )
    needed = []
    for windows in (2, 4):
        memory = trace_step(config.with_changes([f"train.batch_windows={windows}"]), cpu, bfloat16=False).memory
        needed.append(needed_memory(memory.split(2) if parallel == "fsdp" else memory, cpu))
    available = (3 * needed[0] + needed[1]) // 4
    told = advice(config, cpu, bfloat16=False, available=available, ranks=two)
    named = re.search(r"with (train\.batch_windows=\d+) and (train\.accumulation=\d+) the same step fits", told)
    assert named is not None, told
    changed = config.with_changes(list(named.groups())).train
    assert changed.batch_windows * changed.accumulation == 16
    assert Share.of_step(changed, 2).batch_windows == 2


def test_how_a_model_is_shared() -> None:
    two = Ranks(count=2)
    assert choose_parallel(settings(), ALONE) == choose_parallel(settings("train.parallel=fsdp"), ALONE) == "none"
    assert choose_parallel(settings(), two) == "ddp"
    assert choose_parallel(settings("train.parallel=fsdp"), two) == "fsdp"
    with pytest.raises(ConfigError, match=r"muon works on whole matrices.* train\.parallel = ddp"):
        choose_parallel(settings("train.parallel=fsdp", "train.optimizer=muon"), two)
    assert choose_parallel(settings("train.parallel=ddp", "train.optimizer=muon"), two) == "ddp"
    with pytest.raises(ConfigError, match=r"language_model keeps some rows.* train\.parallel = ddp"):
        frozen = ["train.frozen=language_model", "train.init_from=somewhere"]
        choose_parallel(settings("train.parallel=fsdp", *frozen), two)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu, chosen = torch.device("cuda"), torch.device("cpu"), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert own_device(cuda, ALONE) == cuda
    assert own_device(cpu, Ranks(rank=1, count=2, local_rank=1)) == cpu
    assert own_device(cuda, Ranks(rank=5, count=8, local_rank=1)) == torch.device("cuda:1") == chosen[0]
    with pytest.raises(ConfigError, match="process 3 of this machine finds no GPU of its own: there are 2"):
        own_device(cuda, Ranks(rank=2, count=3, local_rank=2))
    with pytest.raises(ConfigError, match=r"2 processes one GPU; set train\.device = cuda"):
        own_device(torch.device("cuda:0"), Ranks(count=2))


def test_a_process_that_nobody_else_was_started_with_is_alone() -> None:
    with joined({}) as ranks:
        assert ranks == ALONE
    with joined({"WORLD_SIZE": "1", "RANK": "0"}) as ranks:
        assert ranks == ALONE
    with (
        pytest.raises(ConfigError, match=r"LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set; .* torchrun"),
        joined({"WORLD_SIZE": "2", "RANK": "0"}),
    ):
        pass


def test_only_the_end_of_another_process_is_taken_for_it() -> None:
    two = Ranks(count=2)
    with pytest.raises(TrainingError, match="another of the 2 processes"), lost_ranks_named(two):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234")
    for ranks, message in ((two, "mat1 and mat2 shapes"), (ALONE, "Connection closed by peer")):
        with pytest.raises(RuntimeError, match=message), lost_ranks_named(ranks):
            raise RuntimeError(message)


# The command


def started(
    corpus: Path, run: Path, *more: str, budget: tuple[str, str] = ("--steps", "100000")
) -> subprocess.Popen[str]:
    words = [*TORCHRUN, "-m", "bytelm.cli", "train", "--corpus", str(corpus), "--out", str(run)]
    words += [f"--set={change}" for change in TINY if "steps=9" not in change]
    return subprocess.Popen(
        [*words, *budget, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_steps(process: subprocess.Popen[str], run: Path, records: int = 4) -> list[int]:
    """Let a run log some records; return its two processes, rank 0 first."""
    log = run / "metrics.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") >= records):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def said(stderr: str) -> list[str]:
    """What bytelm and not torchrun has said of an error."""
    return [line for line in stderr.splitlines() if line.startswith("error:")]


def assert_goes_on(corpus: Path, run: Path, straight: Path) -> None:
    """One process takes a run up where two were stopped, and it becomes what it would have become."""
    steps = load_snapshot(checkpoints(run)[-1]).step + 4
    config = settings(f"train.steps={steps}", "train.warmup_fraction=0", "train.final_learning_rate_ratio=1")
    for place in (run, straight):
        for _ in train(config, corpus, place, resume="auto"):
            pass
    assert_same_run(run, straight, but={"fraction"})


FLAT = ("--set=train.warmup_fraction=0", "--set=train.final_learning_rate_ratio=1")
"""The rate then depends on no budget."""


def test_sigterm_ends_all_processes_after_the_same_step_and_saves(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(corpus, run, *FLAT)
    wait_for_steps(process, run)
    process.terminate()
    stdout, stderr = process.communicate()
    assert said(stderr) == []
    last = checkpoints(run)[-1]
    assert stdout == f"{last}\n"
    assert f"stopped at step {load_snapshot(last).step}, saved; go on with: torchrun --nproc-per-node 2" in stderr
    assert not (run / ".train.lock").exists()
    assert_goes_on(corpus, run, tmp_path / "straight")


def test_a_process_that_dies_ends_the_other_one_with_one_line(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(corpus, run, *FLAT)
    children = wait_for_steps(process, run)
    os.kill(children[1], signal.SIGKILL)
    _, stderr = process.communicate()
    assert len(said(stderr)) == 1, stderr
    (line,) = said(stderr)
    assert "another of the 2 processes of this training has ended" in line
    assert_goes_on(corpus, run, tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all(corpus: Path, tmp_path: Path, number: int, rank: int) -> None:
    run = tmp_path / "run"
    process = started(corpus, run, *FLAT, f"--set=train.parallel={SHARING[rank]}")
    os.kill(wait_for_steps(process, run)[rank], number)
    stdout, stderr = process.communicate()
    assert said(stderr) == []
    assert stdout == f"{checkpoints(run)[-1]}\n"
    assert_goes_on(corpus, run, tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set=train.batch_windows=3"], "3 windows of a step"),
        (["--set=train.parallel=fsdp", "--set=train.optimizer=muon"], "muon works on whole matrices"),
        (["--set=train.learning_rat=1"], "did you mean 'train.learning_rate'"),
        (["--corpus", "/does/not/exist"], "does not exist"),
        (["--dry-run"], "start it without torchrun"),
    ],
)
def test_a_mistake_is_one_line_of_all_processes_together(
    corpus: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    process = started(corpus, tmp_path / "run", *more)
    _, stderr = process.communicate()
    (line,) = said(stderr)
    assert message in line
    assert process.returncode != 0
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_time_is_that_of_the_first_process(corpus: Path, tmp_path: Path) -> None:
    process = started(corpus, tmp_path / "run", "--set=train.parallel=fsdp", budget=("--time-budget", "1s"))
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert read_log(tmp_path / "run")[-1]["elapsed_s"] >= 1
