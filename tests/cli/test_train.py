"""``bytelm train`` as a person and as a program meets it."""

import importlib.util
import io
import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from bytelm.checkpoint import checkpoints, load_model, load_snapshot
from bytelm.cli import app
from bytelm.cli.dashboard import TrainingView
from bytelm.cli.quantities import duration, parse_duration, parse_size, size
from bytelm.cli.train import validated_often
from bytelm.config import RunConfig, describe_settings
from bytelm.data.ingest import ingest
from bytelm.errors import ConfigError
from bytelm.events import Finished, Progress, Refused, Replaced, RolledBack, Saved, Skipped, Started, Validation
from bytelm.run_log import read_log
from bytelm.train import train

BYTELM = [sys.executable, "-m", "bytelm.cli"]
TINY = [
    f"--set={change}"
    for change in (
        "model.d_model=16",
        "model.layers=1",
        "model.attention_heads=2",
        "model.kv_heads=1",
        "model.d_ff=16",
        "model.local_window_bytes=8",
        "heads.count=2",
        "data.window_bytes=24",
        "train.batch_windows=2",
        "train.precision=float32",
        "train.threads=1",
        "train.log_every_steps=2",
        "train.validate_every_steps=4",
        "train.save_every_steps=4",
    )
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    (folder / "text").write_text(" ".join(draw.choices(["the", "byte", "window", "head"], k=1500)))
    ingest([folder / "text"], folder / "corpus")
    return folder / "corpus"


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--corpus", str(corpus), "--out", str(out), *TINY, *more]


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that fails."""
    assert app.run(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_it_trains_and_prints_the_checkpoint(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(command(corpus, tmp_path / "run", "--steps", "6")) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path}/run/checkpoints/step-00000006\n"
    assert "parameters, cpu, float32" in shown.err
    assert "6 steps, 288 B in" in shown.err
    load_model(Path(shown.out.strip()))


def test_json_is_one_object_with_what_was_reached(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(command(corpus, tmp_path / "run", "--steps", "6", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    last = read_log(tmp_path / "run")[-1]
    assert (result["step"], result["bytes_seen"], result["finished"]) == (6, 6 * 48, "budget")
    assert result["bits_per_byte"] == result["bits_per_byte_by_head"][0] == last["bits_per_byte"]
    assert result["validation_step"] == 6
    assert len(result["bits_per_byte_by_head"]) == len(result["train_bits_per_byte_by_head"]) == 2
    assert result["bytes_per_second"] == pytest.approx(result["bytes_seen"] / result["elapsed_s"], rel=0.01)
    assert result["checkpoint"] == str(checkpoints(tmp_path / "run")[-1])
    assert result["parameters"] > 1000


@pytest.mark.parametrize(
    ("budget", "name", "value"),
    [
        (["--steps", "3"], "steps", 3),
        (["--bytes", "1.2K"], "bytes", 1200),
        (["--time-budget", "0.4s"], "time_budget_s", 0.4),
    ],
)
def test_each_budget_ends_a_run(corpus: Path, tmp_path: Path, budget: list[str], name: str, value: float) -> None:
    assert app.run(command(corpus, tmp_path / "run", *budget)) == 0
    assert getattr(RunConfig.from_toml((tmp_path / "run" / "config.toml").read_text()).train, name) == value


def test_a_resumed_run_remembers_its_corpus_and_settings(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert app.run(command(corpus, run, "--steps", "4")) == 0
    assert app.run(["train", "--out", str(run), "--resume", "auto", "--steps", "7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["step"] == 7
    assert result["resumed_from"].endswith("step-00000004")
    straight = tmp_path / "straight"
    assert app.run(command(corpus, straight, "--steps", "7")) == 0
    settings, other = (RunConfig.from_toml((folder / "config.toml").read_text()) for folder in (run, straight))
    assert settings == other


def test_several_corpora_are_given_with_weights_and_remembered(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more").write_bytes(b"some more text " * 200)
    ingest([tmp_path / "more"], tmp_path / "second")
    run = tmp_path / "run"
    words = ["train", "--corpus", f"{corpus}:0.75", "--corpus", f"{tmp_path / 'second'}:0.25", "--out", str(run), *TINY]
    assert app.run([*words, "--steps", "4"]) == 0
    assert app.run(["train", "--out", str(run), "--resume", "auto", "--steps", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 8
    assert load_snapshot(checkpoints(run)[-1]).progress["loader"]["positions"] == [12, 4]
    assert "give --corpus or --file" in failed(["eval", str(run), "--task", "bpb"], capsys)


def test_the_command_that_started_a_run_goes_on_with_it(corpus: Path, tmp_path: Path) -> None:
    words = command(corpus, tmp_path / "run", "--preset", "tiny", "--steps", "5", "--resume", "auto")
    assert app.run(words) == 0
    assert app.run(words) == 0
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000004", "step-00000005"]


def test_a_spent_budget_says_how_to_get_more(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(corpus, tmp_path / "run", "--steps", "5", "--resume", "auto")
    assert app.run(words) == 0
    assert app.run(words) == 0
    assert "--resume auto --steps 10" in capsys.readouterr().err.splitlines()[-1]


def test_heads_are_added_to_a_trained_model(corpus: Path, tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "a run"
    assert app.run(command(corpus, source, "--steps", "4", "--set=heads.count=1")) == 0
    words = ["train", "--corpus", str(corpus), "--out", str(run), "--init-from", str(source), "--heads-only"]
    words += ["--set=heads.count=3", "--steps=5", "--resume=auto"]
    assert app.run(words) == 0
    config = RunConfig.from_toml((run / "config.toml").read_text())
    assert (config.heads.count, config.model.d_model, config.train.frozen) == (3, 16, "language_model")
    assert config.train.init_from == str(checkpoints(source)[-1].resolve())
    before, after = (load_model(place)[0] for place in (source, run))
    assert after.embedding.equal(before.embedding)
    shutil.rmtree(source)
    assert app.run(["train", "--out", str(run), "--resume=auto", "--steps=7"]) == 0
    assert checkpoints(run)[-1].name == "step-00000007"


def test_the_same_command_goes_on_with_a_run_that_began_with_another(corpus: Path, tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    assert app.run(command(corpus, source, "--steps", "4")) == 0
    words = ["train", "--corpus", str(corpus), "--out", str(run), "--init-from", str(source), "--resume=auto"]
    assert app.run([*words, "--steps=2"]) == 0
    assert app.run([*words, "--steps=4"]) == 0
    assert checkpoints(run)[-1].name == "step-00000004"


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_events_for_tensorboard_are_written_where_that_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    assert app.run(command(corpus, tmp_path / "run", "--steps", "4", "--tensorboard")) == 0
    assert app.run(["train", "--out", str(tmp_path / "run"), "--resume=auto", "--steps=6", "--tensorboard"]) == 0
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2


def test_a_missing_tensorboard_is_told_before_anything_is_made(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert "bytelm[tensorboard]" in failed(command(corpus, tmp_path / "run", "--steps=2", "--tensorboard"), capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--heads-only"], "give it with --init-from RUN"),
        (["--init-from", "/does/not/exist"], "does not exist"),
        (["--preset", "tinny"], "did you mean 'tiny'?"),
        (["--set", "train.learning_rat=1"], "did you mean 'train.learning_rate'?"),
        (["--set", "model.d_model=30", "--set", "model.attention_heads=4"], "not divisible"),
        (["--steps", "5", "--bytes", "50M"], "one budget decides"),
        (["--steps", "0"], "train.steps"),
        (["--bytes", "many"], "write it like 50M"),
        (["--time-budget", "soon"], "write it like 90s"),
        (["--resume", "always"], "resume"),
        (["--resume", "require"], "no checkpoint"),
        (["--corpus", "/does/not/exist"], "does not exist"),
        (["--set", "data.window_bytes=100000"], "lower data.window_bytes"),
        (["--set", "train.device=nonsense"], "nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert message in failed(command(corpus, tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out" in failed(["train"], capsys)
    assert "--corpus" in failed(["train", "--out", str(tmp_path / "run")], capsys)


def test_a_run_is_not_overwritten(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(corpus, tmp_path / "run", "--steps", "2")
    assert app.run(words) == 0
    capsys.readouterr()
    assert "go on with it: --resume auto" in failed(words, capsys)


def test_all_settings_are_listed_with_what_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["train", "--settings"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and description in listed for name, _, description in describe_settings())
    assert app.run(["train", "--settings", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["settings"]) == len(describe_settings())


def start(words: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([*BYTELM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for_a_step(run: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size:
            return
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_tells_the_command_that_goes_on(
    corpus: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "a run"  # the command must be quoted
    process = start(command(corpus, run, "--steps", "1000000", "--json"))
    wait_for_a_step(run, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130, err
    result = json.loads(out)
    assert result["finished"] == "stopped"
    assert result["checkpoint"] == str(checkpoints(run)[-1])
    load_model(run)
    told = err.strip().splitlines()[-1].partition("go on with: bytelm ")[2]
    more = ["--steps", str(result["step"] + 1)]
    assert app.run([*shlex.split(told), *more]) == 0
    assert checkpoints(run)[-1].name == f"step-{result['step'] + 1:08d}"


def log_of(run: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in read_log(run)]


def test_a_signal_in_the_middle_of_a_validation_does_not_wait_for_its_end(tmp_path: Path) -> None:
    draw = random.Random(0)
    (tmp_path / "text").write_text(" ".join(draw.choices(["the", "byte", "window", "head"], k=120_000)))
    ingest([tmp_path / "text"], tmp_path / "corpus", validation_fraction=0.5)
    run = tmp_path / "run"
    # Half a million windows: minutes.
    words = ["--set=train.validation_bytes=10000000", "--set=train.log_every_steps=1", "--set=data.window_bytes=8"]
    words = command(tmp_path / "corpus", run, *words, "--set=train.validate_every_steps=1", "--steps", "2")
    process = start(words)
    wait_for_a_step(run, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert log_of(run) == [("step", 1)]
    assert load_snapshot(checkpoints(run)[-1]).progress["safety"]["validation_due"]


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(command(corpus, run, "--steps", "1000000", "--set=train.save_every_steps=3"))
    while not list((run / "checkpoints").glob(".*.part")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    step = load_snapshot(checkpoints(run)[-1]).step
    assert not list((run / "checkpoints").glob(".*.part"))
    assert app.run(["train", "--out", str(run), "--resume", "auto", "--steps", str(step + 1)]) == 0


def test_a_second_signal_leaves_at_once_with_what_was_saved(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # One step of this takes longer than any test should wait for.
    words = ["--set=train.accumulation=1000000", "--steps", "10"]
    process = start(command(corpus, run, *words))
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "once more to leave at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert checkpoints(run) == []


def test_on_a_terminal_it_draws_and_leaves_the_terminal_as_it_was(corpus: Path, tmp_path: Path) -> None:
    shown, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [*BYTELM, *command(corpus, tmp_path / "run", "--steps", "60")],
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
        )
        os.close(terminal)
        drawn = b""
        while True:
            try:
                drawn += os.read(shown, 65536)
            except OSError:  # the other end has closed
                break
        assert process.wait() == 0
    finally:
        os.close(shown)
    text = drawn.decode()
    assert "bits per byte" in text
    assert "learning rate" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") >= 1  # the cursor is hidden, then shown


class _Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_figures_that_are_unknown_are_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    clock = _Clock()
    view = TrainingView(clock=clock)
    clock.now_s = 100.0
    view.show(
        Progress(
            step=5,
            fraction=0.5,
            bytes_seen=1,
            flops=1.0,
            elapsed_s=1.0,
            bits_per_byte_by_head=(None, None),
            loss=None,
            grad_norm=None,
            learning_rate=1.0,
            bytes_per_second=1.0,
            mfu=None,
            memory_bytes=None,
            peak_memory_bytes=1,
            skipped_steps=5,
            replaced_windows=0,
        )
    )
    assert "– (–) bits per byte" in (line := capsys.readouterr().err)
    assert "gradient norm –" in line


def test_without_a_terminal_lines_come_seconds_apart_whatever_the_pace(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = _Clock()
    config = RunConfig.build("tiny", [word.removeprefix("--set=") for word in TINY]).with_changes(["train.steps=60"])
    quiet = config.with_changes(["train.validate_every_steps=1000"])
    with TrainingView(clock=clock) as view:
        for event in train(quiet, corpus, tmp_path / "run"):
            clock.now_s += 0.3 if isinstance(event, Progress) else 0.0
            view.show(event)
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("step") and "learning rate" in line]
    assert len(told) == 2  # of 30 in 9 seconds
    assert [line for line in lines if line.startswith("step") and line.endswith(" to go")]  # whole, however long


@pytest.mark.parametrize("heads", [1, 8, 32])
@pytest.mark.parametrize(
    ("width", "height"), [(40, 18), (40, 40), (60, 24), (80, 24), (93, 30), (94, 30), (120, 50), (200, 60)]
)
def test_the_dashboard_fits_the_terminal(width: int, height: int, heads: int) -> None:
    drawn = io.StringIO()
    people = Console(file=drawn, force_terminal=True, width=width, height=height, color_system=None, markup=False)
    view = TrainingView(people, _Clock())
    view.show(
        Started(
            run=Path("runs/" + "long " * 50),
            parameters=1000,
            device="cpu",
            precision="float32",
            attention="torch",
            attention_reason="a reason of many words " * 9,
            compiled=False,
            best_bits_per_byte=1.5,
            held_out_bytes=10,
            step=0,
            resumed_from=None,
            damaged=(),
        )
    )
    view.show(
        Progress(
            step=1_234_567,
            fraction=0.987,
            bytes_seen=987_654_321_000,
            flops=1e21,
            elapsed_s=1e6,
            bits_per_byte_by_head=(1.25,) * heads,
            loss=123.456,
            grad_norm=1234.5,
            learning_rate=1e-4,
            bytes_per_second=123_456_789.0,
            mfu=0.5,
            memory_bytes=139_000_000_000,
            peak_memory_bytes=139_000_000_000,
            skipped_steps=1000,
            replaced_windows=1000,
        )
    )
    view.show(
        Validation(
            step=1_234_000,
            bytes_seen=1,
            flops=1.0,
            elapsed_s=1.0,
            bits_per_byte_by_head=(1.25,) * heads,
            best_bits_per_byte=1.2,
            agreement_by_head=(1.0,) * heads,
            bytes_per_step_estimate=float(heads),
            scored_bytes=10,
            context_bytes=8,
            stride=4,
            prompt="\n\t\r世界",
            sample="\x1b[31m世界\n\u202e" * 200,
        )
    )
    drawn.truncate(0)
    drawn.seek(0)
    people.print(view.dashboard())
    lines = drawn.getvalue().splitlines()
    assert len(lines) < height
    assert {cell_len(line) for line in lines} == {min(width, 120)}
    assert "\x1b" not in drawn.getvalue()
    assert "\u202e" not in drawn.getvalue()
    assert "training" in drawn.getvalue()  # no column is squeezed out
    shown = " ".join(line.strip("│ ") for line in lines)
    assert all(re.search(rf"\b{head}(:| +━*─* +)1\.250", shown) for head in range(heads))  # none is left out


def test_the_dashboard_shows_every_head_and_the_newest_figures() -> None:
    clock = _Clock()
    people = Console(file=io.StringIO(), force_terminal=True, width=100, height=40, record=True, markup=False)
    view = TrainingView(people, clock)
    view.show(
        Started(
            run=Path("runs/\x1b[2Ja"),
            parameters=1000,
            device="cpu",
            precision="float32",
            attention="torch",
            attention_reason="blocks of a window",
            compiled=True,
            best_bits_per_byte=None,
            held_out_bytes=10,
            step=0,
            resumed_from=None,
            damaged=("checkpoint x is damaged",),
        )
    )
    view.show(
        Progress(
            step=50,
            fraction=0.25,
            bytes_seen=2_500_000,
            flops=1e12,
            elapsed_s=60.0,
            bits_per_byte_by_head=(2.125, 3.5, None),
            loss=5.0,
            grad_norm=0.75,
            learning_rate=2e-3,
            bytes_per_second=40_000.0,
            mfu=0.375,
            memory_bytes=400_000_000,
            peak_memory_bytes=500_000_000,
            skipped_steps=0,
            replaced_windows=0,
        )
    )
    view.show(
        Validation(
            step=50,
            bytes_seen=1,
            flops=1.0,
            elapsed_s=1.0,
            bits_per_byte_by_head=(2.25, 3.75, 4.0),
            best_bits_per_byte=2.125,
            agreement_by_head=(1.0, 0.5, 0.25),
            bytes_per_step_estimate=1.75,
            scored_bytes=10,
            context_bytes=8,
            stride=4,
            prompt="def ",
            sample="f(x):\x1b[2J\n  y",
        )
    )
    view.show(Saved(step=50, checkpoint=Path("c")))
    view.show(Refused(step=51, reason="cannot write c: no space is left on the disk"))
    view.show(Skipped(step=52, what="gradient", in_a_row=1))
    view.show(Replaced(step=53, reason="shard s: frame 7 is damaged"))
    view.show(
        RolledBack(step=50, from_step=61, checkpoint=Path("c"), learning_rate_ratio=0.5, damaged=("d is damaged",))
    )
    clock.now_s = 75.0
    people.print(view.dashboard())
    view.show(Finished(reason="budget", step=200, bytes_seen=10_000_000, elapsed_s=240.0, checkpoint=Path("c")))
    text = people.export_text()
    for expected in (
        "WARNING: checkpoint x is damaged",
        "WARNING: shard s: frame 7 is damaged; other windows stand in for it",
        "WARNING: step 51: cannot write c: no space is left on the disk; training goes on",
        "WARNING: step 52 was skipped: its gradient is not finite",
        "WARNING: d is damaged",
        "up to step 61; the run goes back to c and on at 0.5",
        "25.0 %",
        "step 50",
        "2.50 MB",
        "3m 00s to go",
        "2.125",
        "3.750",
        "2.00e-03",
        "40.00 kB/s",
        "0.75",
        "step 50, 1m 15s ago",
        "200 steps, 10.00 MB in 4m 00s",
        "attention by torch (blocks of a window)",
        "torch: blocks of a window",
        "37.5 % MFU",
        "400.00 MB, 500.00 MB at most",
        "2.125 now, 2.125 mean",
        "1.75 bytes a step, estimated",
        "50%",
        "25%",
        r"def f(x):\x1b[2J⏎  y",
    ):
        assert expected in text, expected
    assert "\x1b[2J" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("50M", 50_000_000), ("1.5G", 1_500_000_000), ("64K", 64_000), ("64KiB", 65_536), ("1MiB", 1 << 20), ("7", 7),
     ("2kB", 2000), ("3 MB", 3_000_000), ("12B", 12)],
)  # fmt: skip
def test_sizes_are_read_as_they_are_written(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "M", "-5", "5X", "0", "1e6", "5 i", "5iB", "1,5G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172_800), ("90", 90), ("0.5s", 0.5)]
)
def test_durations_are_read_as_they_are_written(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "m", "0", "0s", "5x", "30m1h", "-5s", "1.5h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no duration"):
        parse_duration(text)


def test_sizes_and_durations_are_short_to_read() -> None:
    assert [size(value) for value in (0, 999, 1000, 1_500_000, 2e12)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "1.50 MB",
        "2.00 TB",
    ]
    assert [duration(value) for value in (0.4, 59.6, 3600, 90_000)] == ["0s", "1m 00s", "1h 00m", "1d 01h"]


@pytest.mark.parametrize(
    ("budget", "least", "most"),
    [
        (["--steps", "80"], 8, 8),
        (["--steps", "3"], 3, 3),
        (["--bytes", "3840"], 8, 8),
        (["--time-budget", "4s"], 1, 8),
        (["--steps", "80", "--set", "train.validate_every_steps=40"], 2, 2),
        (["--steps", "80", "--set", "train.spread_validations=4"], 4, 4),
    ],
)
def test_a_run_is_validated_often_enough_to_draw_a_curve(
    budget: list[str], least: int, most: int, corpus: Path, tmp_path: Path
) -> None:
    others = [word for word in TINY if "validate_every" not in word]
    assert app.run(["train", "--corpus", str(corpus), "--out", str(tmp_path / "run"), *others, *budget]) == 0
    validated = [record["step"] for record in read_log(tmp_path / "run") if record["kind"] == "validation"]
    assert least <= len(validated) <= most
    assert len(set(validated)) == len(validated)


def test_short_budgets_of_time_score_less_each_time() -> None:
    def scored(*changes: str) -> int:
        return validated_often(RunConfig.build("tiny", list(changes)), list(changes)).train.validation_bytes

    assert scored("train.time_budget_s=300") == 15_000
    assert scored("train.time_budget_s=1") == 4096
    assert scored("train.time_budget_s=36000") == scored("train.steps=9") == 81_920
    assert scored("train.time_budget_s=300", "train.validation_bytes=70000") == 70_000
