"""``bytelm eval`` as a person and as a program meets it."""

import json
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from bytelm.checkpoint import load_model
from bytelm.cli import app
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus
from bytelm.evaluate import bits_per_byte
from bytelm.export import export_model
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


def evaluated(capsys: pytest.CaptureFixture[str], *words: str, task: str = "bpb") -> dict[str, Any]:
    assert app.run(["eval", *words, "--task", task, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["tasks"][task]


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


def test_a_shipped_model_scores_bytelm_s_own_code_and_its_results_stay_here(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_model(trained / "run", tmp_path / "models" / "pocket")
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    monkeypatch.setattr("bytelm.shipped.shipped_models", lambda: {"pocket": folder})
    monkeypatch.chdir(tmp_path)
    own = sorted(Path(str(app.__file__)).parent.glob("*.py"))
    found = evaluated(capsys, "pocket", "--limit-bytes", "2000")
    assert found["source"] == "the modules of bytelm.cli"
    assert found["scored_bytes"] == 2000 < sum(path.stat().st_size for path in own)
    assert set(found["by_type"]) == {"python"}
    assert json.loads(Path("eval/bpb-pocket.json").read_bytes())["bits_per_byte"] == found["bits_per_byte"]
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


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


def test_what_a_limit_asks_for_is_scored(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(trained / "run"), "--limit-bytes", "300"]
    assert evaluated(capsys, *words)["scored_bytes"] == 300
    (tmp_path / "file").write_bytes(bytes(range(256)) * 20)
    for task in ("bpb", "acceptance"):
        found = evaluated(capsys, *words, "--file", str(tmp_path / "file"), "--prompts", "1", task=task)
        assert found.get("teacher_forced", found)["scored_bytes"] == 300


def test_less_than_a_limit_asks_for_is_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"a few bytes")
    for task in ("bpb", "acceptance"):
        words = [str(trained / "run"), "--file", str(tmp_path / "file"), "--limit-bytes", "1k", "--task", task]
        assert app.run(["eval", *words, "--prompts", "1"]) == 0
        said = capsys.readouterr().out
        assert f"1,000 bytes were asked for, and there are 11 in {tmp_path / 'file'}: all are scored" in said


def test_what_never_ends_is_read_as_far_as_it_is_asked_for(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, str(trained / "run"), "--file", "/dev/zero", "--limit-bytes", "1k")
    assert found["scored_bytes"] == 1000
    assert found["source"] == "/dev/zero (its first 1,000 bytes)"
    for limit in ([], ["--limit-bytes", "1T"]):
        message = failed(capsys, str(trained / "run"), "--file", "/dev/zero", *limit)
        assert "has more than 64 MiB" in message
        assert "give --limit-bytes" in message


def test_a_file_of_any_size_gives_pieces_and_is_not_held(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)  # that the disk holds nothing of
    words = [str(trained / "run"), "--file", str(tmp_path / "huge")]
    assert evaluated(capsys, *words, "--limit-bytes", "500")["scored_bytes"] == 500
    assert "1,099,511,627,776 bytes" in failed(capsys, *words)


def test_a_pipe_is_read_once_for_all_tasks(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    writer = threading.Thread(target=pipe.write_bytes, args=(b"some bytes of a pipe " * 9,))
    writer.start()
    words = ["eval", str(trained / "run"), "--file", str(pipe), "--task", "acceptance,bpb", "--prompts", "1", "--json"]
    assert app.run(words) == 0
    writer.join()
    tasks = json.loads(capsys.readouterr().out)["tasks"]
    assert tasks["bpb"]["scored_bytes"] == tasks["acceptance"]["teacher_forced"]["scored_bytes"] == 189


def test_acceptance_is_measured_in_real_decoding_and_on_real_text(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluated(capsys, str(trained / "run"), "--prompts", "4", "--max-bytes", "20", task="acceptance")
    assert len(result["acceptance_by_head"]) == 3
    assert result["acceptance_by_head"][0] == 1.0
    assert result["bytes_per_step"] == pytest.approx(result["generated_bytes"] / result["steps"])
    assert result["prompts"] == 4
    corpus = Corpus.open(trained / "corpus")
    model, _ = load_model(trained / "run")
    expected = bits_per_byte(model, corpus.documents("validation"), context_bytes=24)
    forced = result["teacher_forced"]
    assert forced["survival_by_head"] == list(expected.agreement_by_head)
    assert forced["bytes_per_step"] == expected.bytes_per_step_estimate
    places = forced["by_word_place"]
    assert list(places) == ["outside", "first", "second", "third", "fourth", "fifth and later"]
    assert sum(part["bytes"] for part in places.values()) == corpus.raw_bytes("validation")


def test_several_tasks_are_one_object_and_a_file_each(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--task", "bpb,acceptance", "--prompts", "2", "--max-bytes", "5", "--limit-bytes", "200", "--samples"]
    assert app.run(["eval", str(trained / "run"), *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]
    assert set(found) == {"bpb", "acceptance"}
    for task, facts in found.items():
        kept = json.loads((trained / "run" / "eval" / f"{task}-step-00000003.json").read_bytes())
        assert kept["task"] == task
        assert {name: kept[name] for name in facts} == facts
        assert len(kept.get("samples", [])) == (2 if task == "acceptance" else 0)


def test_a_run_that_cannot_be_written_to_is_evaluated_all_the_same(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    (tmp_path / "run" / "eval").write_text("a file where a folder should be")
    assert app.run(["eval", str(tmp_path / "run"), "--limit-bytes", "200"]) == 0
    shown = capsys.readouterr()
    assert "bits per byte" in shown.out
    assert "is not kept" in shown.err


def test_bits_per_byte_are_proved_by_coding_and_decoding(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bytes").write_bytes(random.Random(1).randbytes(300) + b"the byte window head " * 5)
    result = evaluated(capsys, str(trained / "run"), "--file", str(tmp_path / "bytes"), "--compress")
    proof = result["arithmetic_coding"]
    assert proof["decoded_back"] is True
    assert proof["promised_bytes"] == pytest.approx(result["bits_per_byte"] * result["scored_bytes"] / 8)
    assert proof["payload_bytes"] == pytest.approx(proof["promised_bytes"], abs=2)


def test_types_and_compressors_stand_beside_the_bits(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.py").write_text("import os\n" * 300)
    (tmp_path / "b.txt").write_text("слово " * 300)
    (tmp_path / "c.txt").write_text("the word " * 300)
    ingest([tmp_path / name for name in ("a.py", "b.txt", "c.txt")], tmp_path / "corpus", validation_fraction=0.0)
    result = evaluated(capsys, str(trained / "run"), "--corpus", str(tmp_path / "corpus"), "--split", "train")
    sizes = {name: part["bytes"] for name, part in result["by_type"].items()}
    assert sizes == {"python": 3000, "text, cyrillic": 3300, "text, latin": 2700}
    total = sum(part["bytes"] * part["bits_per_byte"] for part in result["by_type"].values())
    assert total / result["scored_bytes"] == pytest.approx(result["bits_per_byte"])
    assert result["by_script"]["cyrillic"]["bytes"] == 3000
    assert set(result["compressors"]) == {"zstd -19", "xz -9"}
    assert all(0 < bits < 1 for bits in result["compressors"].values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "bpd"], "unknown task 'bpd'"),
        (["--file", "/does/not/exist"], "cannot read /does/not/exist"),
        (["--corpus", "/does/not/exist"], "no corpus at /does/not/exist"),
        (["--split", "test"], "no 'test' split"),
        (["--split", "train", "--file", __file__], "--split train names a part of a corpus"),
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
