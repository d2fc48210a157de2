"""``bytelm train --dry-run`` as a person and as a program meets it."""

import json
import random
from pathlib import Path

import pytest

from bytelm import machine
from bytelm.cli import app
from bytelm.data.ingest import ingest

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
    )
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    (folder / "text").write_text(" ".join(draw.choices(["the", "byte", "window", "head"], k=1500)))
    ingest([folder / "text"], folder / "corpus")
    return folder / "corpus"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytelm.estimate._LEAST_S", 0.0)


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--dry-run", "--corpus", str(corpus), "--out", str(out), "--steps", "500", *TINY, *more]


def test_it_tells_what_a_run_takes_and_leaves_nothing(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(command(corpus, tmp_path / "run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines if line[0] != " "] == [
        "parameters",
        "operations",
        "memory",
        "disk",
        "speed",
        "time",
    ]
    assert "for 500 steps" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_json_holds_all_figures(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(command(corpus, tmp_path / "run", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dry_run"] is True
    assert told["parameters"]["total"] == sum(told["parameters"].values()) - told["parameters"]["total"]
    assert told["memory_bytes"] == sum(told["memory"].values())
    assert told["speed"]["steps_left"] == 500
    assert told["obstacle"] is None


def test_what_does_not_fit_is_said_with_what_would(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(total=10, available=10))
    assert app.run(command(corpus, tmp_path / "run")) == 0
    assert "not measured: a step needs about" in capsys.readouterr().out


def test_a_mistake_is_one_line_here_too(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(command(corpus, tmp_path / "run", "--resume", "require")) == 2
    assert capsys.readouterr().err.count("\n") == 1
