"""Quickstart: the shipped sample through every stage, and on from where it was interrupted."""

import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from bytelm.cli.quickstart import _table
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.errors import BytelmError, ConfigError
from bytelm.export import export_model
from bytelm.generation import Generation
from bytelm.quickstart import (
    PROMPTS,
    SHIPPED,
    SHIPPED_PROMPTS,
    Compared,
    CorpusReady,
    Loaded,
    NotShipped,
    Reported,
    Spoke,
    quickstart,
    unpack_sample,
)
from bytelm.report import SideBySide
from bytelm.shipped import shipped_models
from bytelm.train import Finished, Started

SMALL = [
    "data.window_bytes=64",
    "model.local_window_bytes=32",
    "model.d_model=16",
    "model.layers=1",
    "model.d_ff=16",
    "heads.count=3",
    "train.validation_bytes=1000",
    "train.threads=1",
]


def test_the_sample_ships_whole(tmp_path: Path) -> None:
    unpack_sample(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 37
    assert sum(path.stat().st_size for path in files) == 1_739_760
    for path in files:
        path.read_text(encoding="utf-8")


@pytest.fixture
def own_files(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_bytes(b"\xff file %d of mine, once more and once more. " % number * 30)
    return folder


def test_without_a_shipped_model_it_goes_on_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytelm.quickstart.shipped_models", dict)
    events = list(quickstart(tmp_path, RunConfig.build("tiny", [*SMALL, "train.steps=1"]), max_bytes=8))
    assert events[0] == NotShipped(name="nano")
    assert isinstance(events[-1], Reported)


def test_a_shipped_model_speaks_first_and_own_files_take_the_place_of_the_sample(
    tmp_path: Path, own_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytelm.quickstart.shipped_models", dict)
    config = RunConfig.build("tiny", [*SMALL, "train.steps=2"])
    first = list(quickstart(tmp_path / "a", config, source=own_files, max_bytes=8))
    compared = [event.comparison for event in first if isinstance(event, Compared)]
    assert 1 <= len(compared) <= len(PROMPTS)
    written = [path.read_bytes() for path in own_files.iterdir()]
    assert all(any(comparison.prompt in content for content in written) for comparison in compared)
    assert all(comparison.equal for comparison in compared)
    with pytest.raises(ConfigError, match=r"was begun with .*own, not with the sample; choose another --out"):
        list(quickstart(tmp_path / "a", config, max_bytes=8))

    shipped = export_model(tmp_path / "a" / "run", tmp_path / "models" / "nano")
    monkeypatch.setattr("bytelm.quickstart.shipped_models", lambda: {SHIPPED: shipped})
    corpus = tmp_path / "corpus"
    ingest([own_files], corpus)
    second = list(quickstart(tmp_path / "b", config, source=corpus, max_bytes=8))
    spoken = [event.comparison for event in second if isinstance(event, Spoke)]
    assert [comparison.prompt for comparison in spoken] == list(SHIPPED_PROMPTS)
    assert all(comparison.equal and len(comparison.plain.data) == 8 for comparison in spoken)
    ready = next(event for event in second if isinstance(event, CorpusReady))
    assert isinstance(ready, CorpusReady)
    assert (ready.corpus, ready.reused) == (corpus, True)
    assert not (tmp_path / "b" / "corpus").exists()


def test_a_path_that_is_mistyped_leaves_nothing_that_stands_in_the_way(tmp_path: Path, own_files: Path) -> None:
    config = RunConfig.build("tiny", [*SMALL, "train.steps=1"])
    with pytest.raises(BytelmError, match="no such file or folder"):
        list(quickstart(tmp_path / "a", config, source=tmp_path / "owm", max_bytes=8))
    assert isinstance(list(quickstart(tmp_path / "a", config, source=own_files, max_bytes=8))[-1], Reported)


def test_an_interrupted_quickstart_goes_on_to_the_report(tmp_path: Path) -> None:
    config = RunConfig.build("tiny", [*SMALL, "train.steps=6"])
    asked = iter([False, False, True])
    first = list(quickstart(tmp_path, config, max_bytes=16, should_stop=lambda: next(asked)))
    assert isinstance(first[-1], Finished)
    assert (first[-1].reason, first[-1].step) == ("stopped", 2)

    second = [
        event
        for event in quickstart(tmp_path, config, max_bytes=16)
        if not isinstance(event, Spoke | NotShipped | Loaded)
    ]
    ready, started, reported = second[0], second[1], second[-1]
    assert isinstance(ready, CorpusReady)
    assert ready.reused
    assert isinstance(started, Started)
    assert started.step == 2
    assert isinstance(reported, Reported)
    page = reported.page.read_text()
    assert page.startswith("<!doctype html>")
    assert f"<h1>Training of {tmp_path.name}/run</h1>" in page
    assert "prefers-color-scheme: dark" in page
    assert "Sampled at temperature 0.8" in page
    compared = [event.comparison for event in second if isinstance(event, Compared)]
    assert [comparison.prompt for comparison in compared] == list(PROMPTS)
    assert all(comparison.equal for comparison in compared)


def test_the_command_prints_the_page_and_both_outputs(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bytelm.cli", "quickstart", "--out", str(tmp_path), "--steps", "3"]
    words += ["--max-bytes", "16", *(f"--set={change}" for change in SMALL)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/run/report.html\n"
    assert "equal byte for byte" in done.stderr
    speeches = len(PROMPTS) + (len(SHIPPED_PROMPTS) if SHIPPED in shipped_models() else 0)
    assert done.stderr.count("by heads, ") == done.stderr.count("the same bytes as plain decoding") == speeches
    assert done.stderr.endswith(f'bytelm generate {tmp_path}/run "The " --show-drafts\n')

    done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["equal"] is True
    assert result["generated_bytes"] == 16 * len(PROMPTS)
    assert result["bytes_per_step"] >= 1
    assert result["temperature"] == 0.8
    gained = result["gained_by_heads"] + result["gained_by_lookup"]
    assert result["bytes_per_step"] == pytest.approx(1 + gained, abs=0.1)  # a last draft may reach beyond the end
    assert len(result["bits_per_byte_by_head"]) == 3
    assert Path(result["report"]).exists()


@pytest.mark.parametrize("columns", [40, 80])
def test_what_was_gained_fits_the_terminal_and_says_what_loops(columns: int) -> None:
    def written(data: bytes, sources: list[int], steps: int) -> Generation:
        return Generation(
            data=data,
            sources=tuple(sources),
            steps=steps,
            elapsed_s=0.01,
            finish_reason="max_bytes",
            proposed_by_head=(0,) * 3,
            accepted_by_head=(0,) * 3,
        )

    text = b"round and round it goes " * 12
    one = SideBySide(
        prompt="First Citizen:\nWe are \x1b[2J世界".encode() * 3,
        plain=written(text, [0] * len(text), len(text)),
        speculative=written(text, [0, 1, 2, -1] * (len(text) // 4), len(text) // 4),
        temperature=0.8,
    )
    assert one.gained == (2.0, 1.0)
    drawn = io.StringIO()
    Console(file=drawn, width=columns, force_terminal=True, color_system=None).print(_table((one, one), columns))
    lines = drawn.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= columns
    assert all(word in drawn.getvalue() for word in ("4.00", "2.00", "1.00", "loop", "First Citizen:\\n"))
    assert "\x1b" not in drawn.getvalue()


def test_the_command_goes_on_from_a_model_with_own_files(tmp_path: Path, own_files: Path) -> None:
    words = [sys.executable, "-m", "bytelm.cli", "quickstart", "--corpus", str(own_files), "--max-bytes", "8", "--json"]
    settings = [f"--set={change}" for change in SMALL]
    for out, more in (("a", settings), ("b", ["--init-from", str(tmp_path / "a" / "run"), "--set=train.threads=1"])):
        done = subprocess.run(
            [*words, "--out", str(tmp_path / out), "--steps", "3", *more], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)["step"] == 3
    settings = tomllib.loads((tmp_path / "b" / "run" / "config.toml").read_text())
    assert settings["model"]["d_model"] == 16
    rates = [
        tomllib.loads((tmp_path / out / "run" / "config.toml").read_text())["train"]["learning_rate"] for out in "ab"
    ]
    assert rates[1] == rates[0] / 4
