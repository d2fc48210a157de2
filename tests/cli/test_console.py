"""Lines for people: what a terminal would obey is shown, and lines break between words at any width."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from bytelm.cli import app

NASTY = "a\x1b[31m red\nsecond line\t.txt"
ESCAPED = r"a\x1b[31m red\nsecond line\t.txt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file whose name holds an escape sequence, a new line and a tab."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / NASTY).write_text("To be, or not to be. " * 40)
    (tmp_path / "files" / f"{NASTY}.gz").write_bytes(b"\x1f\x8b\x08\x00 cut off")
    (tmp_path / "files" / f"{NASTY}.bin").write_bytes(bytes(range(256)) * 8)
    return tmp_path / "files"


def in_terminal(columns: int, *words: str) -> list[str]:
    """The lines of a command, whose output and errors go to a terminal of some columns."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "bytelm.cli", *words],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb", "COLUMNS": str(columns)},
    )
    os.close(theirs)
    read = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux says so when the last process has closed its end
            break
        if not part:
            break
        read += part
    os.close(ours)
    done.wait()
    return read.decode().replace("\r\n", "\n").split("\n")


def test_names_of_files_are_shown_and_not_obeyed_in_every_listing(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, page = str(tmp_path / "corpus"), tmp_path / "page.html"
    assert app.run(["ingest", str(folder), "--out", out, "--dry-run"]) == 0
    listed = capfd.readouterr().out
    assert listed.count(ESCAPED) == 3
    assert app.run(["ingest", str(folder), "--out", out, "--on-error", "skip"]) == 0
    said = capfd.readouterr()
    assert f"{ESCAPED}.bin (2.05 kB, binary)" in said.out
    assert f"{ESCAPED}.gz" in said.out
    assert app.run(["inspect", out, "--samples", "3", "--html", str(page)]) == 0
    inspected = capfd.readouterr()
    assert ESCAPED in inspected.out + inspected.err
    assert "\x1b[31m" not in page.read_text()
    for text in (listed, said.out, said.err, inspected.out, inspected.err):
        assert "\x1b[31m" not in text
        assert "red\nsecond" not in text


@pytest.mark.parametrize("columns", [80, 40])
def test_lines_break_between_words_on_a_terminal(folder: Path, tmp_path: Path, columns: int) -> None:
    words = ("ingest", str(folder), "--on-error", "skip", "--out")
    done = subprocess.run(
        [sys.executable, "-m", "bytelm.cli", *words, str(tmp_path / "whole")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert max(map(len, done.stdout.splitlines())) > columns  # no terminal: nothing is broken
    lines = in_terminal(columns, *words, str(tmp_path / "folded"))
    allowed = {word for line in done.stdout.replace("whole", "folded").splitlines() for word in line.split()}
    assert all(len(line) <= columns or len(line.split()) == 1 for line in lines)
    summary = [line for line in lines if line.startswith(("train ", "kinds:", "of all bytes", "passed over"))]
    assert summary
    assert {word for line in summary for word in line.split()} <= allowed


def test_an_error_breaks_between_words_and_a_command_stays_whole() -> None:
    lines = in_terminal(40, "train", "--corpus", "nowhere", "--out", "run", "--preset", "no-such-preset-at-all")
    assert lines[0].startswith("error: ")
    assert max(map(len, lines)) <= 40
    (command,) = [line for line in in_terminal(40, "help", "completion") if "eval" in line][:1]
    assert "bytelm completion" in command
