"""Quickstart: the shipped sample through every stage, and on from where it was interrupted."""

import json
import subprocess
import sys
from pathlib import Path

from bytelm.config import RunConfig
from bytelm.quickstart import PROMPTS, Compared, CorpusReady, Reported, quickstart, unpack_sample
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


def test_an_interrupted_quickstart_goes_on_to_the_report(tmp_path: Path) -> None:
    config = RunConfig.build("tiny", [*SMALL, "train.steps=6"])
    asked = iter([False, False, True])
    first = list(quickstart(tmp_path, config, max_bytes=16, should_stop=lambda: next(asked)))
    assert isinstance(first[-1], Finished)
    assert (first[-1].reason, first[-1].step) == ("stopped", 2)

    second = list(quickstart(tmp_path, config, max_bytes=16))
    ready, started, reported = second[0], second[1], second[-1]
    assert isinstance(ready, CorpusReady)
    assert ready.reused
    assert isinstance(started, Started)
    assert started.step == 2
    assert isinstance(reported, Reported)
    assert reported.page.read_bytes().startswith(b"<!doctype html>")
    compared = [event.comparison for event in second if isinstance(event, Compared)]
    assert [comparison.prompt for comparison in compared] == list(PROMPTS)
    assert all(comparison.equal for comparison in compared)


def test_the_command_prints_the_page_and_both_outputs(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bytelm.cli", "quickstart", "--out", str(tmp_path), "--steps", "3"]
    words += ["--max-bytes", "16", *(f"--set={change}" for change in SMALL)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/run/report.html\n"
    assert "equal byte for byte" in done.stderr
    assert done.stderr.count("plain: ") == done.stderr.count("speculative: ") == len(PROMPTS)

    done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["equal"] is True
    assert result["generated_bytes"] == 16 * len(PROMPTS)
    assert result["bytes_per_step"] >= 1
    assert len(result["bits_per_byte_by_head"]) == 3
    assert Path(result["report"]).exists()
