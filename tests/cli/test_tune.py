"""``bytelm tune`` writes the plan that ``bytelm generate`` follows, and says how far its prediction was off."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from bytelm.api import load
from bytelm.cli.tune import tune
from bytelm.errors import SourceError
from bytelm.tune import PATH_OF_PLAN


def command(*words: str | Path) -> int:
    app = typer.Typer()
    app.command()(tune)
    return app(args=[str(word) for word in words], standalone_mode=False)


@pytest.fixture
def texts(tmp_path: Path) -> list[str | Path]:
    (tmp_path / "one").write_bytes(b"again and again " * 40)
    (tmp_path / "two").write_bytes(bytes(range(256)) * 4)
    return [
        "--file",
        tmp_path / "one",
        "--file",
        tmp_path / "two",
        "--prompts",
        "2",
        "--max-bytes",
        "8",
        "--threads",
        "1",
    ]


def test_the_tables_tell_costs_predictions_and_what_became_of_each_source(
    random_run: Path,
    tmp_path: Path,
    texts: list[str | Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    copied = tmp_path / "run"
    shutil.copytree(random_run, copied)
    command(copied, *texts)
    captured = capfd.readouterr()
    assert str(copied / PATH_OF_PLAN) in captured.out
    told = captured.err
    for title in ("milliseconds of a step", "decoding held-out text with the plan", "drafts that were right"):
        assert title in told
    assert re.search(r"\n two +[\d.]+ +[\d,]+ +[\d,]+ +[\d,]+ +[+-]\d+%", told)
    torch.set_num_threads(1)
    assert load(copied).plan() is not None


def test_json_is_one_object_with_what_was_predicted_and_achieved(
    random_run: Path, tmp_path: Path, texts: list[str | Path], capfdbinary: Any
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(random_run, copied)
    command(copied, *texts, "--json")
    captured = capfdbinary.readouterr()
    facts = json.loads(captured.out)
    assert [check["kind"] for check in facts["checks"]] == ["one", "two"]
    for check in facts["checks"]:
        assert check["predicted_bytes_per_second"] > 0
        assert all(0 <= right <= total for total, right in check["verified_and_right"].values())
    assert captured.err == b""


def test_a_text_that_is_not_there_is_named(random_run: Path) -> None:
    with pytest.raises(SourceError, match="/nowhere: No such file"):
        command(random_run, "--file", "/nowhere")
