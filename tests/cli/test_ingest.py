"""``bytelm ingest`` as a person and as a program meets it."""

import json
import os
import pty
import random
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
    (folder / "copy.txt").write_text("document 1\n" * 50)
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
    assert "passed over: 1 empty, 1 link, 1 duplicate (550 B)" in shown.out
    assert "kinds: text " in shown.out
    assert corpus.fingerprint in shown.out
    assert shown.err == ""


def test_one_is_no_plural(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("alone\n" * 100)
    for name in ("b", "c"):
        (tmp_path / "files" / name).symlink_to("a.txt")
    words = ["ingest", str(tmp_path / "files"), "--out", str(tmp_path / "corpus")]
    assert app.run([*words, "--dry-run"]) == 0
    assert "passed over: 2 links;" in capsys.readouterr().out
    assert app.run([*words, "--validation-fraction", "0"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 document, ")
    assert "into 1 shard\n" in shown
    assert "passed over: 2 links\n" in shown


def test_what_was_left_out_by_default_and_what_is_binary_is_told(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / ".git").mkdir()
    (files / ".git" / "HEAD").write_text("ref")
    (files / "a.pyc").write_bytes(b"code")
    (files / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (files / "bad\x1b.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03rubbish")
    words = ["ingest", str(files), "--out", str(tmp_path / "corpus")]
    assert app.run(words) == 0
    shown = capsys.readouterr().out
    assert "of all bytes 40.6% text, 0.0% code, 59.4% binary\n" in shown
    assert "weights.bin (25.60 kB, binary); leave them out with --exclude PATTERN, or all with --only text" in shown
    assert "1 empty, 1 link, 1 version-control folder, 1 byte-code file, 1 damaged" in shown
    assert "; --all reads version control, caches and byte code" in shown
    assert "left out, for something was wrong:\n  '" in shown
    assert "bad\\x1b.gz' is damaged" in shown
    assert app.run([*words, "--overwrite", "--all", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"version_control", "byte_code"}.isdisjoint(report["skipped"])
    assert report["documents"] == 33
    assert len(report["faults"]) == 1
    assert report["largest_binary"][0]["raw_bytes"] == 25_600


def test_a_field_is_honoured_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.ndjson").write_text('{"text": "one"}\n{"text": "two"}\n')
    Path("a.txt").write_text("nothing")
    words = ["--out", "corpus", "--validation-fraction", "0", "--json", "--field"]
    assert app.run(["ingest", "a.ndjson", *words, "text"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 2
    assert app.run(["ingest", "a.ndjson", "--overwrite", *words, "txt"]) == 2
    assert capsys.readouterr().err == "error: 'a.ndjson' has no field 'txt', but 'text'; name one of these\n"
    assert app.run(["ingest", "a.txt", "--overwrite", *words, "text"]) == 2
    assert "error: field = 'text' has no effect: no source is a table, such as 'a.txt'" in capsys.readouterr().err


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
    assert report["skipped"] == {
        "empty": {"documents": 1, "raw_bytes": 0},
        "link": {"documents": 1, "raw_bytes": 0},
        "duplicate": {"documents": 1, "raw_bytes": 550},
    }
    assert report["kinds"] == {"text": {"documents": 30, "raw_bytes": report["raw_bytes"]}}
    assert report["new"] == {"documents": 30, "raw_bytes": report["raw_bytes"]}
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


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_leaves_with_130_and_resume_goes_on(files: Path, tmp_path: Path, workers: str) -> None:
    chance = random.Random(5)
    for number in range(8):
        (files / f"noise{number}").write_bytes(chance.randbytes(1 << 20))
    out = tmp_path / "corpus"
    words = [*BYTELM, "ingest", str(files), "--out", str(out), "--level", "19", "--workers", workers, "--json"]
    # A group of its own: what a terminal sends on Ctrl-C reaches all of it, the worker processes too.
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        while not list(out.glob("train-*.part")):
            assert running.poll() is None
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate()
    assert running.returncode == 130
    assert said == "interrupted; --resume goes on with what is done\n"
    assert not list(out.glob("*.part"))
    done = subprocess.run([*words, "--resume"], stdout=subprocess.PIPE, check=True)
    words[words.index(str(out))] = str(tmp_path / "undisturbed")
    undisturbed = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout)["fingerprint"] == json.loads(undisturbed.stdout)["fingerprint"]


def test_ctrl_c_before_anything_is_complete_leaves_nothing_behind(files: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    with endless.open("wb") as file:
        file.truncate(1 << 40)  # sparse; nobody waits for its end
    words = ["ingest", str(endless), "--out", str(tmp_path / "corpus")]
    with subprocess.Popen([*BYTELM, *words], stderr=subprocess.PIPE, text=True) as running:
        while not (tmp_path / "corpus" / ".ingest" / "job.json").exists():
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        _, said = running.communicate()
    assert (running.returncode, said) == (130, "interrupted; nothing was left behind\n")
    assert files.exists()
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


def test_help_groups_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["ingest", "--help"]) == 0
    shown = capsys.readouterr().out
    headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "Options:", "What is written:", "What is read:", "What is kept:", "Who does it:"]
    assert shown.index("What is kept:") < shown.index("--near-duplicates") < shown.index("Who does it:")


def test_a_dry_run_lists_and_writes_nothing(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ingest", str(files), "--out", str(tmp_path / "corpus"), "--exclude", "1*.txt", "--dry-run"]
    assert app.run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("21 to read, ")
    assert lines[-1].endswith("passed over: 11 excluded, 1 link; nothing was written")
    assert f"       550 B  {files}/copy.txt" in lines
    assert f" passed over  {files}/link (link)" in lines
    assert app.run([*words, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["units"], listed["skipped"]) == (21, {"excluded": 11, "link": 1})
    assert listed["stored_bytes"] == sum(item.get("stored_bytes", 0) for item in listed["listed"])
    assert {"name": f"{files}/link", "skipped": "link"} in listed["listed"]
    assert not (tmp_path / "corpus").exists()


def test_flags_reach_what_they_are_for(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "code.py").write_text("print('x')\n" * 100)
    (files / "noise.bin").write_bytes(random.Random(1).randbytes(3000) + b"\0")
    (files / "large.txt").write_text("large\n" * 1000)
    out = tmp_path / "corpus"
    words = ["--max-bytes", "4k", "--min-bytes", "580", "--max-bits-per-byte", "7.9", "--only", "text"]
    words += ["--include", "*.txt", "--include", "*.bin", "--include", "*.py", "--keep-duplicates"]
    assert app.run(["ingest", str(files), "--out", str(out), *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    skipped = {reason: count["documents"] for reason, count in report["skipped"].items()}
    assert skipped == {"excluded": 1, "link": 1, "too_small": 11, "too_large": 1, "other_kind": 1}
    assert report["documents"] == 21
    asked = Corpus.open(out).ingestions[0].settings
    assert asked["filters"] == {"min_bytes": 580, "max_bytes": 4000, "max_bits_per_byte": 7.9, "only": ["text"]}
    assert asked["read"]["include"] == ["*.txt", "*.bin", "*.py"]


def test_appending_tells_what_is_new_and_resuming_what_is_finished(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "corpus")
    assert app.run(["ingest", str(files), "--out", out]) == 0
    assert app.run(["ingest", str(files), "--out", out, "--resume"]) == 0
    assert "nothing left to do: this ingestion is finished" in capsys.readouterr().out
    (files / "more.txt").write_text("more\n" * 40)
    assert app.run(["ingest", str(files), "--out", out, "--append"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("31 documents, ")
    assert "(1 new, 200 B)" in shown
    assert app.run(["ingest", str(files), "--out", out, "--append"]) == 2
    assert "nothing to append: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "slurm"], "--engine slurm: there are local and ray"),
        (["--address", "host:1"], "--address host:1 takes no effect without --engine ray"),
        (["--on-error", "ignore"], "--on-error ignore: there are named, stop and skip"),
        (["--only", "klingon"], "only = 'klingon': no such kind or group; "),
        (["--max-bytes", "many"], "'many' is no size"),
        (["--workers", "0"], "workers = 0: at least 1 is needed"),
        (["--resume"], "nothing to resume: "),
        (["--append"], "no corpus at "),
    ],
)
def test_flags_that_make_no_sense_are_one_line(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert app.run(["ingest", str(files), "--out", str(tmp_path / "corpus"), *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {said}")
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "corpus").exists()


def test_standard_input_is_read_for_a_dash(tmp_path: Path) -> None:
    words = [*BYTELM, "ingest", "-", "--out", str(tmp_path / "corpus"), "--json", "--validation-fraction", "0"]
    done = subprocess.run(words, input=b"piped\n" * 100, stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout)["raw_bytes"] == 600
    assert list(Corpus.open(tmp_path / "corpus").documents("train")) == [b"piped\n" * 100]
