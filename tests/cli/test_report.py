"""``bytelm report`` as a person and as a program meets it."""

import json
import shutil
from pathlib import Path

import pytest

from bytelm.cli import app
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").write_text("every byte counts, and every head drafts. " * 200)
    ingest([folder / "text"], folder / "corpus")
    changes = ["data.window_bytes=32", "model.local_window_bytes=16", "model.d_model=16", "model.layers=1"]
    changes += ["model.d_ff=16", "heads.count=3", "train.steps=4", "train.threads=1"]
    for _ in train(RunConfig.build("tiny", changes), folder / "corpus", folder / "run"):
        pass
    return folder / "run"


def test_one_run_is_decoded_and_reported_in_its_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["report", str(run), "--max-bytes=12", "--prompt=every", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["report"], result["equal"]) == (str(run / "report.html"), True)
    assert "Decoding" in (run / "report.html").read_text()


def test_several_runs_are_overlaid_where_it_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "other")
    assert app.run(["report", str(run), str(tmp_path / "other"), "--out", str(tmp_path / "both.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/both.html\n"
    page = (tmp_path / "both.html").read_text()
    assert "2 runs" in page
    assert "different corpora" not in page
    assert "<td>512 bytes</td>" in page  # 4 steps of 4 windows of 32, not 0.0 MB


def test_runs_of_different_corpora_are_said_to_be_of_different_data(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("other text, and other figures. " * 200)
    ingest([tmp_path / "text"], tmp_path / "corpus")
    config = RunConfig.from_toml((run / "config.toml").read_text()).with_changes(["train.sample_bytes=0"])
    for _ in train(config, tmp_path / "corpus", tmp_path / "other"):
        pass
    words = ["report", str(run), str(tmp_path / "other"), "--out", str(tmp_path / "both.html")]
    assert app.run(words) == 0
    said = capsys.readouterr().err
    assert said.startswith("These runs were trained on different corpora")
    assert str(tmp_path / "corpus") in said
    page = (tmp_path / "both.html").read_text()
    assert "Their bits per byte are of different held-out data and cannot be compared" in page
    assert "<code>corpus</code>" in page  # among the settings that differ
    assert app.run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == [said.strip()]
    (tmp_path / "other" / "config.toml").unlink()
    assert app.run(words) == 0
    assert "The corpus of other is not known" in capsys.readouterr().err


def test_a_log_that_holds_next_to_nothing_is_drawn(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for kind in ("step", "validation"):
        record = {"kind": kind, "step": 3, "bits_per_byte_by_head": [4.0, None]}
        (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        for more in ([], [str(run)]):
            out = str(tmp_path / "page.html")
            assert (
                app.run(["report", str(tmp_path / "run"), *more, "--out", out, *([] if more else ["--max-bytes=0"])])
                == 0
            )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 10_000, "levels"),
        ('{"kind": "step", "step": "3"}', 'step: "3" is no whole number'),
        ('{"kind": "step", "step": 3, "bytes_seen": NaN}', "NaN is not finite"),
        ('{"kind": "step", "step": 3, "elapsed_s": 1e999}', "1e999 is not finite"),
        ('{"kind": "step", "step": 3, "bits_per_byte_by_head": 5}', "bits_per_byte_by_head: 5 is no list"),
        ('{"kind": "validation", "step": 3, "bits_per_byte_by_head": [1, "2"]}', 'bits_per_byte_by_head[1]: "2"'),
        ('{"kind": "validation", "step": 3, "sample": 7}', "sample: 7 is no text"),
        ('{"kind": "step", "step": 3, "step": 4}', "step: it is there twice"),
        ("x" * 5000, "line 1 is no record of a run"),
    ],
)
def test_a_line_of_the_log_that_is_none_is_one_line(
    run: Path, tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text(line + "\n")
    assert app.run(["report", str(tmp_path / "run"), "--max-bytes=0"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said
    assert "metrics.jsonl line 1" in said
    assert "remove that line" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--prompt=a"], "report of one run"), (["--max-bytes=5"], "report of one run"), (["nowhere"], "folder of a run")],
)
def test_a_mistake_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert app.run(["report", str(run), str(run), *words, "--out", str(tmp_path / "page.html")]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert not (tmp_path / "page.html").exists()
