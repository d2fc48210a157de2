"""``bytelm tune`` writes the plan that ``bytelm generate`` follows, and says how far its prediction was off."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from bytelm.api import load
from bytelm.cli.tune import _texts, tune
from bytelm.engine.library import load_library, unavailable_reason
from bytelm.errors import GenerationError, SourceError
from bytelm.plans import PATH_OF_PLAN


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
    told = re.sub(r" *\n *", " ", captured.err)
    assert str(load(copied, threads=1).decoded_by) in captured.err
    for title in ("milliseconds of a step", "decoding held-out text with the plan", "drafts that were right"):
        assert title in told
    assert re.search(r"\n two +[\d.]+ +[\d,]+ +[\d,]+ +[\d,]+ +[+-]\d+%", captured.err)
    assert not re.search("…", captured.err)  # no table is wider than a terminal
    model = load(copied, threads=1)
    assert model.plan() is not None
    assert model.refused == ""


@pytest.mark.skipif(load_library() is None, reason=unavailable_reason())
def test_the_plan_is_of_the_precision_and_the_threads_that_were_measured(
    random_run: Path, tmp_path: Path, texts: list[str | Path], capfdbinary: Any
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(random_run, copied)
    command(copied, *texts[:-1], "2", "--precision", "int8", "--json")
    engine = json.loads(capfdbinary.readouterr().out)["engine"]
    library = load_library()
    assert library is not None
    assert engine == {"name": "compiled", "isa": library.isa, "precision": "int8", "threads": 2, "reason": ""}
    measured, other = load(copied, precision="int8", threads=2), load(copied, threads=1)
    assert measured.plan() is not None
    assert measured.refused == ""
    other.plan()
    assert "other decoder, threads" in other.refused


@pytest.mark.skipif(load_library() is None, reason=unavailable_reason())
def test_tuning_the_engine_without_fitting_needs_no_torch(random_run: Path, tmp_path: Path) -> None:
    copied, text = tmp_path / "run", tmp_path / "text"
    shutil.copytree(random_run, copied)
    text.write_bytes(b"again and again " * 40)
    words = ["tune", copied, "--file", text, "--no-fit", "--prompts", "2", "--max-bytes", "8", "--threads", "1"]
    program = f"""
import sys
from bytelm.cli.app import run
sys.exit(run({[str(word) for word in words]!r}) or "torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (copied / PATH_OF_PLAN).is_file()


def test_where_torch_decodes_torch_is_measured(
    random_run: Path,
    tmp_path: Path,
    texts: list[str | Path],
    capfdbinary: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bytelm.api.unavailable_reason", lambda: "no library was built")
    copied, threads = tmp_path / "run", torch.get_num_threads()
    shutil.copytree(random_run, copied)
    try:
        command(copied, *texts, "--json")
    finally:
        torch.set_num_threads(threads)
    assert json.loads(capfdbinary.readouterr().out)["engine"]["name"] == "torch"
    assert json.loads((copied / PATH_OF_PLAN).read_bytes())["key"]["decoder"].startswith("torch ")


def test_a_text_that_is_too_short_is_refused(random_run: Path, tmp_path: Path) -> None:
    for data in (b"", b"short"):
        (tmp_path / "text").write_bytes(data)
        with pytest.raises(GenerationError, match="too few held-out bytes"):
            command(random_run, "--no-fit", "--file", tmp_path / "text")


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
        assert check["achieved_over_predicted"] > 0
        assert all(0 <= right <= total for total, right in check["verified_and_right"].values())
    assert captured.err == b""


def test_a_text_that_is_not_there_is_named(random_run: Path) -> None:
    with pytest.raises(SourceError, match="/nowhere: No such file"):
        command(random_run, "--file", "/nowhere")


def test_a_text_that_never_ends_is_refused(random_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytelm.cli.tune._TEXT_BYTES", 1000)
    with pytest.raises(SourceError, match="/dev/zero has more bytes, and 1,000 are the most; give a part"):
        command(random_run, "--file", "/dev/zero")


def test_texts_of_one_name_are_two(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "text", tmp_path / "b" / "text", tmp_path / "b" / "other"]
    for number, place in enumerate(places):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(bytes([number]))
    names = [str(places[0]), str(places[1]), "other"]
    assert _texts(places) == {name: bytes([number]) for number, name in enumerate(names)}
