"""``bytelm eval`` as a person and as a program meets it."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from bytelm.checkpoint import load_model
from bytelm.cli import app
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus
from bytelm.evaluate import bits_per_byte
from bytelm.train import train

SETTINGS = [
    "model.d_model=16",
    "model.layers=1",
    "model.attention_heads=2",
    "model.kv_heads=1",
    "model.d_ff=16",
    "model.local_window_bytes=8",
    "heads.count=3",
    "data.window_bytes=24",
    "train.batch_windows=2",
    "train.threads=1",
    "train.steps=3",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``corpus/`` and ``run/``."""
    folder = tmp_path_factory.mktemp("trained")
    draw = random.Random(0)
    (folder / "text").write_text(" ".join(draw.choices(["the", "byte", "window", "head"], k=1500)))
    ingest([folder / "text"], folder / "corpus")
    config = RunConfig.build("tiny", SETTINGS)
    for _ in train(config, folder / "corpus", folder / "run"):
        pass
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert app.run(["eval", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert app.run(["eval", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_the_run_s_own_held_out_bytes_are_scored_by_default(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(capsys, str(trained / "run"))
    corpus = Corpus.open(trained / "corpus")
    model, _ = load_model(trained / "run")
    expected = bits_per_byte(model, corpus.documents("validation"), context_bytes=24)
    assert result["scored_bytes"] == corpus.raw_bytes("validation") == expected.scored_bytes
    assert result["bits_per_byte_by_head"] == pytest.approx(expected.by_head)
    assert result["bits_per_byte"] == result["bits_per_byte_by_head"][0]
    assert result["rule"] == expected.rule
    assert (result["context_bytes"], result["stride"]) == (24, 12)
    assert "bytes_per_step" not in result


def test_a_file_of_any_bytes_is_scored_whole(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = b"\x00\r\n\xff\xfe" * 41 + bytes(range(256))
    (tmp_path / "file").write_bytes(content)
    result = evaluated(
        capsys, str(trained / "run"), "--file", str(tmp_path / "file"), "--context", "10", "--stride", "3"
    )
    assert (result["scored_bytes"], result["documents"]) == (len(content), 1)
    assert (result["context_bytes"], result["stride"]) == (10, 3)


def test_another_corpus_and_another_split_can_be_scored(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_bytes(b"other " * 2000)
    ingest([tmp_path / "text"], tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    result = evaluated(capsys, str(trained / "run"), "--corpus", str(tmp_path / "corpus"), "--split", "train")
    assert result["scored_bytes"] == corpus.raw_bytes("train")


def test_a_limit_scores_no_more_than_it_says(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(capsys, str(trained / "run"), "--split", "train", "--limit-bytes", "1KiB")
    assert 500 < result["scored_bytes"] <= 1024


def test_acceptance_is_measured_in_real_decoding(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(capsys, str(trained / "run"), "--task", "bpb,acceptance", "--prompts", "4")
    assert len(result["acceptance_by_head"]) == 3
    assert result["acceptance_by_head"][0] == 1.0
    assert result["bytes_per_step"] == pytest.approx(result["generated_bytes"] / result["steps"])
    assert result["prompts"] == 4
    alone = evaluated(capsys, str(trained / "run"), "--task", "acceptance", "--prompts", "2")
    assert "bits_per_byte" not in alone


def test_people_are_told_the_figure_and_the_rule(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["eval", str(trained / "run"), "--task", "bpb,acceptance", "--prompts", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("bits per byte ")
    assert "windows of 24 ids that advance by 12" in shown
    assert "bytes per step " in shown


def test_a_checkpoint_can_be_evaluated_by_itself(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = trained / "run" / "checkpoints" / "step-00000003"
    assert evaluated(capsys, str(checkpoint))["checkpoint"] == str(checkpoint)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "bpd"], "unknown task 'bpd'"),
        (["--file", "/does/not/exist"], "cannot read /does/not/exist"),
        (["--corpus", "/does/not/exist"], "no corpus at /does/not/exist"),
        (["--split", "test"], "no 'test' split"),
        (["--stride", "100"], "choose 1 … 24"),
        (["--limit-bytes", "few"], "is no size"),
        (["--device", "nonsense"], "nonsense"),
        (["--file", "a", "--corpus", "b"], "leave one out"),
    ],
)
def test_a_mistake_is_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in failed(capsys, str(trained / "run"), *words)


def test_what_is_no_run_or_damaged_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "does not exist" in failed(capsys, str(tmp_path / "nowhere"))
    shutil.copytree(trained / "run", tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step-00000003" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors" in failed(capsys, str(tmp_path / "run"))


def test_an_empty_file_has_nothing_to_score(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    assert "no byte to score" in failed(capsys, str(trained / "run"), "--file", str(tmp_path / "empty"))


def test_a_corpus_that_has_gone_or_changed_is_not_scored_in_silence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "text").write_bytes(b"some text " * 500)
    ingest([folder / "text"], folder / "corpus")
    for _ in train(RunConfig.build("tiny", SETTINGS), folder / "corpus", tmp_path / "run"):
        pass
    shutil.rmtree(folder / "corpus")
    assert "give --corpus or --file" in failed(capsys, str(tmp_path / "run"))
    shutil.copytree(trained / "corpus", folder / "corpus")
    assert "another corpus now" in failed(capsys, str(tmp_path / "run"))
