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
    assert "2 runs" in (tmp_path / "both.html").read_text()


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
