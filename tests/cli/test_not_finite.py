"""Weights that are not finite are named by every command that would compute with them; no figure comes of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import bytelm
from bytelm.checkpoint import Snapshot, save_checkpoint
from bytelm.cli.app import run
from bytelm.config import RunConfig
from bytelm.engine.library import load_library
from bytelm.errors import CheckpointError, GenerationError
from bytelm.harness import Scorer
from bytelm.model import ByteLM

SMALL = ["model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16"]
CONFIG = RunConfig.build(
    "tiny", [*SMALL, "heads.count=2", "data.window_bytes=64", "model.local_window_bytes=8", "train.steps=1"]
)
SAID = "the weight layers.0.feed_forward.output.weight is not finite"


def run_of(folder: Path, value: float | None) -> Path:
    torch.manual_seed(0)
    model = ByteLM(CONFIG.model, CONFIG.heads)
    with torch.no_grad():
        if value is None:
            model.heads.norm.gain.fill_(3e38)  # finite itself, and too large to compute with
        else:
            model.get_parameter("layers.0.feed_forward.output.weight")[3, 2] = value
    nothing: dict[str, Any] = {"optimizer": {}, "random": {}, "progress": {}}
    snapshot = Snapshot(step=1, config=CONFIG, corpus="x", fingerprint="y", model=model.state_dict(), **nothing)
    save_checkpoint(folder, snapshot, keep=1)
    return folder


@pytest.fixture(params=["compiled", "torch"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who decodes."""
    if request.param == "torch":
        monkeypatch.setattr("bytelm.api.unavailable_reason", lambda: "no library was built")
    elif load_library() is None:
        pytest.skip("the engine was not built")
    return request.param


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(b"some bytes that nobody was trained on\n" * 40)
    return path


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "words",
    [
        ["generate", "RUN", "x", "--max-bytes", "3", "--json"],
        ["eval", "RUN", "--file", "TEXT", "--json"],
        ["eval", "RUN", "--file", "TEXT", "--task", "acceptance", "--json"],
        ["tune", "RUN", "--file", "TEXT", "--json"],
        ["export", "RUN", "--out", "OUT", "--json"],
    ],
    ids=["generate", "eval", "acceptance", "tune", "export"],
)
@pytest.mark.usefixtures("decoder")
def test_a_weight_that_is_not_finite_is_named_and_nothing_else_is_said(
    words: list[str], value: float, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(run_of(tmp_path, value)), "TEXT": str(text), "OUT": str(tmp_path / "out")}
    assert run([places.get(word, word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert SAID in captured.err
    assert "model.safetensors" in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("decoder")
def test_a_model_is_not_even_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=SAID):
        bytelm.load(run_of(tmp_path, math.nan))


@pytest.mark.usefixtures("decoder")
def test_logits_that_are_not_finite_give_no_byte_and_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(tmp_path, None)
    model = bytelm.load(folder)
    with pytest.raises(GenerationError, match="logits are not finite"):
        model.score("a", "bc")
    with pytest.raises(GenerationError, match="logits are not finite"):
        model.generate("a", max_bytes=3)
    assert run(["generate", str(folder), "a"]) == 2
    assert "logits are not finite" in capsys.readouterr().err


@pytest.mark.usefixtures("decoder")
def test_scores_that_are_not_finite_are_no_figure(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(tmp_path, None)
    (tmp_path / "lambada.jsonl").write_text('{"text": "the sea is blue"}\n')
    row = {"query": "What is blue?", "choices": ["the sea", "a rose"], "gold": 0}
    (tmp_path / "arc_easy.jsonl").write_text(json.dumps(row) + "\n")
    of_tasks = [
        ["eval", folder, "--task", name, "--data", tmp_path / f"{name}.jsonl"] for name in ("lambada", "arc_easy")
    ]
    on_text = [[*words, "--file", text] for words in (
        ["eval", folder], ["eval", folder, "--compress"], ["eval", folder, "--task", "acceptance"], ["tune", folder],
    )]  # fmt: skip
    for words in (*on_text, *of_tasks, ["eval", folder, "--task", "induction", "--limit", "2"]):
        code = run([*map(str, words), "--json"])
        captured = capsys.readouterr()
        assert code == 2, (words, captured.out and json.loads(captured.out))
        assert captured.out == ""
        assert "not finite" in captured.err
        assert captured.err.count("\n") == 1
        if words[0] == "eval" and ("--task" not in words or "acceptance" in words):
            assert "document 1 of those that are scored" in captured.err


@pytest.mark.usefixtures("decoder")
def test_the_harness_and_a_report_give_no_figure_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path, None)
    scorer = Scorer(bytelm.load(folder))
    for ask in (
        lambda: scorer.loglikelihood([("a", "b")]),
        lambda: scorer.loglikelihood_rolling(["ab"]),
        lambda: scorer.generate_until([("a", {})]),
    ):
        with pytest.raises(GenerationError, match="not finite"):
            ask()
    (folder / "metrics.jsonl").touch()  # samples are decoded before curves are read
    assert run(["report", str(folder)]) == 2
    assert "not finite" in capsys.readouterr().err
