"""Every failure leaves through one door: one line, the right exit code, nothing on stdout."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bytelm.cli import console
from bytelm.cli.app import run

COMMANDS = ["quickstart", "ingest", "train", "generate", "eval", "compare", "ablate", "probe", "report", "doctor"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["--nothing"],
        ["train", "--steps", "many"],
        ["train", "--out", "run", "--set", "model.dmodel=3"],
        ["generate", "no-such-run", "text"],
        ["generate"],
        ["eval", "no-such-run"],
        ["report", "no-such-run"],
        ["ingest", "no-such-file", "--out", "corpus"],
        ["ingest"],
        ["quickstart", "--time-budget", "soon"],
        ["quickstart", "--set", "heads.count=99"],
    ],
)
def test_a_callers_mistake_is_one_line_and_exit_2(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--debug", "generate", "no-such-run", "text"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_error_message_never_reaches_the_terminal_as_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "\x1b[2Jgone", "text"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_ctrl_c_while_ingesting_says_so_and_exits_130(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    os.truncate(source, 1 << 40)  # a hole: no disk, and hours of reading
    process = subprocess.Popen(
        [sys.executable, "-m", "bytelm.cli", "ingest", str(source), "--out", str(tmp_path / "corpus")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (tmp_path / "corpus" / ".ingest" / "job.json").exists():
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "corpus").exists()


def test_json_is_one_object_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_bytes(b"a note on bytes\n" * 100)
    assert run(["ingest", str(tmp_path / "notes"), "--out", str(tmp_path / "corpus"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["raw_bytes"] == 1600


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert console.shown("a\tb\nc") == "a\tb\nc"
    assert console.shown("\x1b[31m\r\x00\x7f\x9b") == "\\x1b[31m\\x0d\\x00\\x7f\\x9b"
    assert console.shown("\u202e\u2066") == "\\u202e\\u2066"
    assert console.shown("ÄЖ字😀") == "ÄЖ字😀"
