"""``bytelm ingest`` as a person and as a program meets it."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bytelm.cli import app
from bytelm.data.shards import Corpus

BYTELM = [sys.executable, "-m", "bytelm.cli"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"document {number}\n" * 50)
    (folder / "empty").touch()
    (folder / "link").symlink_to("empty")
    return folder


def test_it_makes_a_corpus_and_tells_people_what_is_in_it(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["ingest", str(files), "--out", str(tmp_path / "corpus")]) == 0
    shown = capsys.readouterr()
    corpus = Corpus.open(tmp_path / "corpus")
    assert shown.out.startswith("30 documents, ")
    assert "passed over: 1 empty, 1 link" in shown.out
    assert corpus.fingerprint in shown.out
    assert shown.err == ""


def test_json_is_one_object_and_nothing_else(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["ingest", str(files), "--out", str(tmp_path / "corpus"), "--level", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    corpus = Corpus.open(tmp_path / "corpus")
    assert report["corpus"] == str(tmp_path / "corpus")
    assert report["fingerprint"] == corpus.fingerprint
    assert report["documents"] == 30
    assert report["raw_bytes"] == report["train_bytes"] + report["validation_bytes"]
    assert report["validation_bytes"] == corpus.raw_bytes("validation") > 0
    assert report["shards"] == 2
    assert report["skipped"] == {"empty": 1, "link": 1, "special": 0}
    assert report["ratio"] == round(report["raw_bytes"] / report["packed_bytes"], 4)
    assert {"elapsed_s", "bytes_per_second", "packed_bytes", "split_rule"} < set(report)


def test_the_fraction_is_the_one_that_was_asked_for(files: Path, tmp_path: Path) -> None:
    assert app.run(["ingest", str(files), "--out", str(tmp_path / "corpus"), "--validation-fraction", "0"]) == 0
    assert Corpus.open(tmp_path / "corpus").splits == ("train",)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "error: cannot read 'nowhere': there is no such file or folder; check the path"),
        (["files", "--level", "99"], "error: level = 99: zstd has the levels 1 to 22; 9 is the default"),
        (["files", "--validation-fraction", "2"], "error: validation_fraction = 2.0: a share from 0 to 0.5 is needed"),
        (["files/empty"], "error: nothing to ingest: not one byte was found (1 empty)"),
    ],
)
def test_the_callers_mistakes_are_one_line_and_exit_2(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    line: str,
) -> None:
    assert files.parent == tmp_path
    monkeypatch.chdir(tmp_path)
    assert app.run(["ingest", *words, "--out", "corpus"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", line + "\n")
    assert not (tmp_path / "corpus").exists()


def test_a_corpus_that_is_there_is_only_replaced_with_overwrite(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ingest", str(files), "--out", str(tmp_path / "corpus")]
    assert app.run(words) == 0
    assert app.run(words) == 2
    assert "add --overwrite to replace it" in capsys.readouterr().err
    assert app.run([*words, "--overwrite"]) == 0


def test_names_that_would_drive_the_terminal_are_shown_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.run(["ingest", "\x1b[2Jgone", "--out", "corpus"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    Path("file").write_text("text")
    assert app.run(["ingest", "file", "--out", os.fsdecode(b"corpus\x1b\xff")]) == 0
    assert "corpus corpus\\x1b\\xff, fingerprint" in capsys.readouterr().out


def test_ctrl_c_leaves_with_130_and_nothing_behind(files: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    with endless.open("wb") as file:
        file.truncate(1 << 40)  # sparse; nobody waits for its end
    words = ["ingest", str(files), str(endless), "--out", str(tmp_path / "corpus")]
    with subprocess.Popen([*BYTELM, *words], stderr=subprocess.PIPE, text=True) as running:
        while not list(tmp_path.glob("corpus/*.part")):
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        running.communicate()
    assert running.returncode == 130
    assert not (tmp_path / "corpus").exists()


def test_a_terminal_sees_a_live_line_that_goes_again(files: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*BYTELM, "ingest", str(files), "--out", str(tmp_path / "corpus"), "--json"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        check=True,
    )
    os.close(theirs)
    assert "reading …" in os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert json.loads(done.stdout)["documents"] == 30
