"""Every failure leaves through one door: one line, the right exit code, nothing on stdout."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from bytelm.cli import console, early
from bytelm.cli.app import COMMANDS as NAMES
from bytelm.cli.app import make_app, run
from bytelm.cli.generate_view import SafeText
from bytelm.tasks import TASKS

COMMANDS = [*NAMES]


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


@pytest.mark.parametrize("place", range(4))
def test_debug_shows_the_traceback_wherever_it_stands(place: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "no-such-run", "text"]
    assert run([*words[:place], "--debug", *words[place:]]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert run(["generate", "no-such-run", "--", "--debug"]) == 2  # a prompt
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--json", "completion", "bash"], ["completion", "--json", "bash"]])
def test_json_may_stand_anywhere(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["shell"] == "bash"


def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help"], ["help", "train"]):
        assert run(words) == 0
        by_word = capsys.readouterr().out
        assert run([*words[1:], "--help"]) == 0
        assert capsys.readouterr().out == by_word
    assert run(["help", "trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


WRONG = [
    ("trian --steps 3", "there is no command 'trian'; did you mean train? (bytelm --help lists them)"),
    ("nano generate", "'nano' is a model, and the command comes first: bytelm generate nano (bytelm --help"),
    ("train --presett tiny", "there is no option --presett; did you mean --preset? (bytelm train --help tells"),
    ("train --out x --preset tniy", "unknown preset 'tniy'; did you mean 'tiny'?"),
    ("quickstart --set heads.cuont=2", "unknown setting 'heads.cuont'; did you mean 'heads.count'?"),
    ("train --steps many", "--steps 'many' is no whole number (bytelm train --help tells how it is used)"),
    ("train --resume atuo", "--resume 'atuo' is unknown; did you mean 'auto'? (bytelm train --help"),
    ("train --out", "option '--out' requires an argument (bytelm train --help tells how it is used)"),
    ("generate", "RUN is missing (bytelm generate --help tells how it is used)"),
    ("generate nano one two", "too many words: 'two'; a text with spaces stands in quotes (bytelm generate --help"),
    ("generate nano x --draft adaptiv", "--draft 'adaptiv' is unknown; did you mean 'adaptive'?"),
    ("generate nano x --threads 0", "--threads '0' is too small; at least 1 (bytelm generate --help"),
    ("generate nano x --temperature hot", "--temperature 'hot' is no number (bytelm generate --help"),
    ("generate nano x --max-bytes 1x", "--max-bytes: '1x' is no size; write it like 50M, 1.5G, 64KiB or 300"),
    ("generate nan x", "nan does not exist; did you mean 'nano'?"),
    ("generate text nano", "'text' is no model, but 'nano' is: the model comes first: bytelm generate nano text"),
    ("eval nano --task acceptanc", "unknown task 'acceptanc'; did you mean 'acceptance'?"),
    ("eval runs/frist", "runs/frist does not exist; did you mean 'runs/first'?"),
    ("report runs/first runs/secnd", "runs/secnd does not exist; did you mean 'runs/second'?"),
    ("train --out x --corpus c --init-from nanoo", "nanoo does not exist; did you mean 'nano'?"),
    ("ingest . --out x --only pyhton", "only = 'pyhton': no such kind or group; did you mean 'python'?"),
    ("probe inductoin --out x", "NAME 'inductoin' is unknown; did you mean 'induction'? (bytelm probe --help"),
]


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_the_nearest_name_is_told_and_the_help_is_that_of_the_command(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert run(line.split()) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"error: {said}")
    assert (output.err.count("\n"), output.out) == (1, "")


def test_a_typo_imports_nothing_large(tmp_path: Path) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "second").mkdir(parents=True)
    code = (
        "import sys; from bytelm.cli.app import run\n"
        "for line in sys.argv[1:]:\n    assert run(line.split()) == 2, line\n"
        "    assert not {'torch', 'numpy', 'pyarrow', 'datasets', 'matplotlib'} & set(sys.modules), line"
    )
    lines = [line for line, _ in WRONG if not line.startswith(("ingest", "quickstart"))]  # ingest's kinds are numpy's
    words = [sys.executable, "-B", "-c", code, *lines]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train --corpus nowhere --out run --steps 1", "no corpus at nowhere: it does not exist"),
        ("train --corpus runs:0 --out run --steps 1", "weight 0: none may be below 0"),
        ("train --corpus runs:nan --out run --steps 1", "weights nan: each is a number"),
        ("train --corpus runs --out run --bytes 1Q", "'1Q' is no size"),
        ("train --corpus runs --out run --time-budget 5x", "'5x' is no duration"),
        ("eval nano --file nowhere", "cannot read nowhere"),
        ("eval nano --task humaneval --data nowhere", "cannot read nowhere"),
        ("eval nano --corpus nowhere", "no corpus at nowhere"),
        ("eval nano --limit-bytes few", "'few' is no size"),
        ("eval nano --device cdua", "there is no device 'cdua'; did you mean 'cuda'?"),
        ("generate nano text --device gpu", "there is no device 'gpu'"),
        ("tune nano --file nowhere", "cannot read nowhere"),
        ("compare --corpus runs --out out --budget bytes:1K --arms byte:k=1:k=2", "the arm 'byte:k=1:k=2' names"),
        ("compare --corpus runs --out out --budget hours:1 --arms byte:k=1", "'hours:1' is no budget"),
        ("report nano", "nano has no metrics.jsonl"),
        ("quickstart --corpus nowhere", "cannot read nowhere"),
    ],
)
def test_a_wrong_value_is_said_before_torch_is_imported(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    code = (
        "import sys; from bytelm.cli.app import run\nassert run(sys.argv[1:]) == 2\nassert 'torch' not in sys.modules"
    )
    ended = subprocess.run(
        [sys.executable, "-B", "-c", code, *line.split()], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stderr.startswith(f"error: {said}")


def test_the_tasks_that_are_known_early_are_all_there_are() -> None:
    assert list(early.TASKS) == list(TASKS)


def test_every_option_that_counts_bytes_takes_sizes() -> None:
    group: Any = typer.main.get_command(make_app())
    context = group.make_context("bytelm", ["doctor"], resilient_parsing=True)
    found = {}
    for name, command in group.commands.items():
        for parameter in command.get_params(context):
            for option in parameter.opts:
                if "bytes" in option and "bits" not in option:
                    found[name, option] = parameter.metavar
    assert len(found) >= 10
    assert {metavar for metavar in found.values() if metavar != "SIZE"} == set()
    parameter = next(one for one in group.commands["generate"].get_params(context) if "--max-bytes" in one.opts)
    for written, meant in (("1k", 1000), ("2KiB", 2048), ("17", 17), ("0", 0)):
        assert parameter.process_value(context, written) == meant


def test_a_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert run(["completion", shell]) == 0
        assert "_BYTELM_COMPLETE" in capsys.readouterr().out
    monkeypatch.setenv("_BYTELM_COMPLETE", "complete_bash")
    for line, answer in (("bytelm ev", "eval"), ("bytelm eval nano --limit-b", "--limit-bytes")):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        assert run([]) == 0
        assert answer in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    "command", [[], ["train", "--help"], ["--version"], ["completion", "bash"], ["inspect", "nano"]]
)
def test_an_output_that_takes_nothing_is_one_line_and_exit_1(command: list[str]) -> None:
    words = [sys.executable, "-B", "-m", "bytelm", *command]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    line = "error: cannot write standard output: No space left on device; send it to another place\n"
    assert (ended.returncode, ended.stderr) == (1, line)


def test_a_closed_output_is_one_line_and_exit_1() -> None:
    words = ["sh", "-c", 'exec "$0" -B -m bytelm --version >&-', sys.executable]
    ended = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        "error: standard output is closed; send it to a file, or to /dev/null\n",
    )


def test_a_reader_that_has_enough_is_no_fault() -> None:
    words = ["sh", "-c", '"$0" -B -m bytelm train --help; echo $? >&2', sys.executable]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert ended.stderr == "0\n"


def test_an_output_without_utf8_shows_what_it_can() -> None:
    code = (
        "from bytelm.cli import __main__ as program, console\n"
        "program.run = lambda: console.result('2.1 × the speed') or 0\n"
        "program.main()"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, check=True, env=env)
    assert ended.stdout == b"2.1 \\xd7 the speed\n"


@pytest.mark.parametrize(
    ("name", "value", "ascii_alone"),
    [("LANG", "C", True), ("LC_ALL", "POSIX", True), ("LANG", "de_DE.UTF-8", False), ("LANG", "", False)],
)
def test_marks_are_ascii_where_the_locale_is(
    name: str, value: str, ascii_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LC_ALL", "LANG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")  # what Python sets where it finds C
    monkeypatch.setenv(name, value)
    assert console.is_ascii_alone() is ascii_alone
    assert SafeText(marks=True).legend.isascii() is ascii_alone


def test_a_name_in_a_listing_is_one_line() -> None:
    assert console.one_line(Path("a\nb\tc\x1b[2J\u202e")) == "a\\nb\\tc\\x1b[2J\\u202e"


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
