"""``bytelm generate`` shows exactly what was generated, safely, and says how it ended."""

import base64
import codecs
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console

import bytelm.decode
from bytelm.api import load
from bytelm.cli.command import Command
from bytelm.cli.generate import generate
from bytelm.cli.generate_view import SafeText, Terminal
from bytelm.decode import DecodePlan
from bytelm.drafting import Calibration, StepCost
from bytelm.engine.library import load_library
from bytelm.errors import ConfigError, GenerationError
from bytelm.plans import write_plan


@pytest.fixture(scope="module")
def run(random_run: Path) -> Path:
    """A run with random weights."""
    return random_run


def command(*words: str | Path) -> int:
    app = typer.Typer()
    app.command()(generate)
    return app(args=[str(word) for word in words], standalone_mode=False)


def process(*words: str | Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "bytelm.cli", "generate", *map(str, words)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_raw_output_is_the_generated_bytes_and_nothing_else(run: Path, capfdbinary: Any) -> None:
    expected = load(run).generate("def ", max_bytes=50).data
    assert command(run, "def ", "--max-bytes", "50", "--raw") == 0
    captured = capfdbinary.readouterr()
    assert captured.out == expected
    assert captured.err.startswith(b"50 bytes in ")
    assert b"ended by max_bytes" in captured.err


def test_text_on_a_pipe_is_the_generation_with_unsafe_bytes_escaped(run: Path, capfdbinary: Any) -> None:
    command(run, "x", "--max-bytes", "120", "--temperature", "1", "--seed", "5", "--threads", "1")
    out = capfdbinary.readouterr().out
    data = load(run).generate("x", max_bytes=120, temperature=1.0, seed=5).data
    assert {byte for byte in data if byte < 32 or byte == 127}, "the sample holds no control character: choose another"
    assert not {byte for byte in out if (byte < 32 and byte not in b"\n\t") or byte == 127}
    escaped = "".join(
        f"\\x{ord(letter):02x}" if (ord(letter) < 32 and letter not in "\n\t") or 127 <= ord(letter) < 160 else letter
        for letter in data.decode("utf-8", "backslashreplace")
    )
    assert out.decode() == escaped


def test_json_is_one_object_with_what_was_asked_for(run: Path, capfdbinary: Any) -> None:
    words = (run, "né", "--max-bytes", "40", "--temperature", "0.8", "--seed", "7", "--json")
    assert command(*words) == 0
    captured = capfdbinary.readouterr()
    answer = json.loads(captured.out)
    assert captured.out.count(b"\n") == 1
    expected = load(run).generate("né", max_bytes=40, temperature=0.8, seed=7)
    assert base64.b64decode(answer.pop("bytes_base64")) == expected.data
    assert answer.pop("text") == expected.text
    assert answer.pop("elapsed_s") > 0
    assert answer.pop("bytes_per_second") > 0
    assert answer == {
        "generated_bytes": 40,
        "prompt_bytes": 3,
        "finish_reason": "max_bytes",
        "steps": expected.steps,
        "bytes_per_step": 40 / expected.steps,
        "acceptance_by_head": list(expected.acceptance_by_head),
        "proposed_by_lookup": expected.proposed_by_lookup,
        "accepted_by_lookup": expected.accepted_by_lookup,
        "draft": "adaptive",
        "exact": "bits" if load_library() else "rounding",
        "engine": dataclasses.asdict(load(run).decoded_by),
        "temperature": 0.8,
        "seed": 7,
    }
    command(*words, "--draft", "none")
    plain = json.loads(capfdbinary.readouterr().out)
    assert base64.b64decode(plain["bytes_base64"]) == expected.data
    assert (plain["draft"], plain["steps"], plain["bytes_per_step"]) == ("none", 40, 1.0)


def test_json_names_the_head_of_each_byte_if_asked(run: Path, capfdbinary: Any) -> None:
    command(run, "", "--max-bytes", "20", "--json", "--show-drafts")
    assert json.loads(capfdbinary.readouterr().out)["sources"] == list(load(run).generate("", max_bytes=20).sources)


def test_nothing_asked_for_is_answered_with_nothing(run: Path, capfdbinary: Any) -> None:
    command(run, "--max-bytes", "0", "--json")
    answer = json.loads(capfdbinary.readouterr().out)
    assert (answer["text"], answer["steps"], answer["bytes_per_second"]) == ("", 0, 0.0)


def test_stop_strings_and_every_sampling_option_reach_the_decoder(run: Path, capfdbinary: Any) -> None:
    options = ["--temperature", "1.2", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01", "--seed", "3"]
    settings: dict[str, Any] = {"temperature": 1.2, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    model = load(run)
    whole = model.generate("go", max_bytes=60, **settings).data
    typed = next(whole[i : i + 1] for i in range(20, 60) if 32 < whole[i] < 127)
    command(run, "go", "--max-bytes", "60", *options, "--stop", "not said", "--stop", typed.decode(), "--raw")
    assert capfdbinary.readouterr().out == whole[: whole.index(typed)]
    command(run, "go", "--max-bytes", "9", "--exact", "auto", "--raw")
    assert len(capfdbinary.readouterr().out) == 9


def test_a_prompt_comes_from_a_file_with_any_bytes(run: Path, tmp_path: Path, capfdbinary: Any) -> None:
    prompt = b"\xff\x00\xfe raw \x80"
    (tmp_path / "prompt").write_bytes(prompt)
    command(run, "--prompt-file", tmp_path / "prompt", "--max-bytes", "12", "--raw")
    assert capfdbinary.readouterr().out == load(run).generate(prompt, max_bytes=12).data


def test_a_prompt_beyond_the_context_is_said_to_be_cut(run: Path, capfdbinary: Any) -> None:
    command(run, "p" * 63, "--max-bytes", "1")
    assert b"the context" not in capfdbinary.readouterr().err
    command(run, "p" * 64, "--max-bytes", "1")
    assert b"the prompt has 64 bytes and the context 64: its last 32 bytes are read" in capfdbinary.readouterr().err


def test_a_context_that_fills_up_is_said_to_have_been_forgotten(run: Path, capfdbinary: Any) -> None:
    command(run, "p" * 40, "--max-bytes", "24")
    assert b"forgotten" not in capfdbinary.readouterr().err
    command(run, "p" * 40, "--max-bytes", "25")
    assert b"the context of 64 bytes filled up: its last half was read afresh" in capfdbinary.readouterr().err


def test_a_plan_that_is_not_of_this_model_is_said_not_to_be_used(run: Path, capfdbinary: Any) -> None:
    (run / "decode.json").write_text('{"format": 2, "key": {}, "costs": [], "calibration": {}}')
    try:
        command(run, "p", "--max-bytes", "1")
    finally:
        (run / "decode.json").unlink()
    assert b"is not used; run bytelm tune again" in capfdbinary.readouterr().err


def test_prompts_of_a_file_are_continued_as_each_alone(run: Path, tmp_path: Path, capfdbinary: Any) -> None:
    ascii_strings = [chr(byte) for byte in range(128)]
    lines = [
        {"prompt": "né", "id": "first"},
        {"prompt_base64": base64.b64encode(b"\xff\x00").decode(), "max_bytes": 3, "temperature": 1.0, "seed": 4},
        {"prompt": "", "max_bytes": 0},
        {"prompt": "x" * 70, "utf8": True},
        {"prompt": "né", "stop": ascii_strings, "temperature": 1.0},
        {"prompt": "né", "stop": "é", "temperature": 1.0, "max_bytes": 2},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n\n")
    assert command(run, "--batch-file", path, "--max-bytes", "20", "--slots", "2", "--logprobs") == 0
    answers = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    model = load(run)
    expected = [
        model.generate("né", max_bytes=20, logprobs=True),
        model.generate(b"\xff\x00", max_bytes=3, temperature=1.0, seed=4, sequence=1, logprobs=True),
        model.generate("", max_bytes=0),
        model.generate("x" * 70, max_bytes=20, utf8=True, sequence=3, logprobs=True),
        model.generate("né", max_bytes=20, stop=ascii_strings, temperature=1.0, sequence=4, logprobs=True),
        model.generate("né", max_bytes=2, stop="é", temperature=1.0, sequence=5, logprobs=True),
    ]
    assert [base64.b64decode(answer["bytes_base64"]) for answer in answers] == [one.data for one in expected]
    assert [answer["logprobs"] for answer in answers] == [list(one.logprobs) for one in expected]
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3, 4, 5]
    assert answers[4]["finish_reason"] == "stop"
    assert answers[0]["id"] == "first"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"prompt": "a", "prompt_base64": ""}',
        '{"prompt": "a", "k": 1}',
        '{"prompt": null}',
        '{"prompt": "\\ud800"}',
        '{"prompt_base64": "?"}',
        '{"prompt": "a", "max_bytes": 5.5}',
        '{"prompt": "a", "max_bytes": "5"}',
        '{"prompt": "a", "utf8": "no"}',
        '{"prompt": "a", "top_p": 7, "temperature": 1}',
        '{"prompt": "a", "stop": 5}',
        '{"prompt": "a", "stop": [""]}',
        '{"prompt": "a", "stop": ["b", 5]}',
        '{"prompt": "a", "stop": "\\ud800"}',
        '{"prompt": "a", "id": NaN}',
        '{"prompt": "a", "id": 1e999}',
        '{"prompt": "a", "id": "\\ud800"}',
        '{"prompt": "a", "id": ' + "[" * 40 + "]" * 40 + "}",
        "[" * 100_000,
        '{"prompt": "a", "seed": ' + "9" * 5000 + "}",
        '{"prompt": "a", "prompt": "b"}',
        '{"prompt": "a", "temperature": NaN}',
        '{"prompt": "a", "seed": -1}',
        '{"prompt": "\xff"}',
    ],
)
def test_a_line_that_is_no_prompt_is_named_before_anything_is_generated(
    run: Path, tmp_path: Path, line: str, capfdbinary: Any
) -> None:
    (tmp_path / "prompts").write_bytes(b'\n{"prompt": "good", "max_bytes": 1}\n' + line.encode("latin-1"))
    with pytest.raises(GenerationError, match="line 3 of"):
        command(run, "--batch-file", tmp_path / "prompts", "--slots", "1")
    assert capfdbinary.readouterr().out == b""


def test_values_that_are_huge_or_null_are_continued_like_others(run: Path, tmp_path: Path, capfdbinary: Any) -> None:
    lines = [
        {"prompt": "a", "max_bytes": 10**15, "stop": [chr(byte) for byte in range(128)]},
        {"prompt": "a" * 5000, "max_bytes": 1, "id": {"a": [None, True]}},
        {"prompt": "a", "max_bytes": 2, "top_k": 10**15, "temperature": 1e30, "seed": 2**63 - 1, "stop": None},
    ]
    (tmp_path / "prompts").write_bytes(codecs.BOM_UTF8 + "\r\n".join(map(json.dumps, lines)).encode())
    assert command(run, "--batch-file", tmp_path / "prompts", "--max-bytes", "3") == 0
    answers = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [answer["finish_reason"] for answer in answers] == ["stop", "max_bytes", "max_bytes"]
    assert answers[1]["id"] == lines[1]["id"]


@pytest.mark.parametrize(
    ("limit", "message"),
    [("_LINE_BYTES", "line 1 has more than 30"), ("_FILE_BYTES", "together"), ("_MOST_PROMPTS", "more than 2")],
)
def test_a_batch_is_read_within_limits(
    run: Path, tmp_path: Path, limit: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"bytelm.cli.generate_many.{limit}", 2 if limit == "_MOST_PROMPTS" else 30)
    text = "x" * (30 if limit == "_LINE_BYTES" else 1)
    (tmp_path / "prompts").write_text(f'{{"prompt": "{text}"}}\n' * 3)
    with pytest.raises(GenerationError, match=message):
        command(run, "--batch-file", tmp_path / "prompts")


def test_prompts_that_never_end_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("generate._PROMPT_BYTES", "generate_many._LINE_BYTES"):
        monkeypatch.setattr(f"bytelm.cli.{name}", 5000)
    with pytest.raises(GenerationError, match="the prompt /dev/zero has more bytes, and 5,000 are the most"):
        command(run, "--prompt-file", "/dev/zero")
    with pytest.raises(GenerationError, match="line 1 has more than 5,000 bytes"):
        command(run, "--batch-file", "/dev/zero")


def test_what_is_finished_is_written_where_the_others_are_ended(
    run: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"prompt": "a", "max_bytes": 40}, {"prompt": "b", "max_bytes": 2}, {"prompt": "c", "max_bytes": 3}]
    (tmp_path / "prompts").write_text("\n".join(map(json.dumps, lines)))
    decode = bytelm.decode.decode_batch
    for ending, code in ((KeyboardInterrupt(), 130), (GenerationError("no memory"), None)):

        def ended(*words: Any, ending: BaseException = ending, **options: Any) -> Any:
            short = 2
            for index, step in decode(*words, **options):
                yield index, step
                short -= step.finish_reason is not None
                if not short:
                    raise ending

        monkeypatch.setattr("bytelm.decode.decode_batch", ended)
        words = (run, "--batch-file", tmp_path / "prompts", "--slots", "3")
        if code is None:
            with pytest.raises(GenerationError, match="no memory"):
                command(*words)
        else:
            assert command(*words) == code
        captured = capfdbinary.readouterr()
        assert [json.loads(line)["index"] for line in captured.out.splitlines()] == [1, 2]
        assert (b"2 of 3 prompts are finished" in captured.err) == (code is not None)


@pytest.mark.parametrize("prompt", [(), ("-",), ("--prompt-file", "-")])
def test_what_is_piped_in_is_the_prompt(
    run: Path, tmp_path: Path, prompt: tuple[str, ...], capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "piped").write_bytes(b"\xff piped")
    with (tmp_path / "piped").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        command(run, *prompt, "--max-bytes", "12", "--raw")
    assert capfdbinary.readouterr().out == load(run).generate(b"\xff piped", max_bytes=12).data


def test_a_pipe_with_nothing_in_it_yet_is_waited_for_and_that_is_said(
    run: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()

    def say(line: str) -> None:
        if not said:
            os.write(write, b"late")
            os.close(write)
        said.append(line)

    said: list[str] = []
    monkeypatch.setattr("bytelm.cli.console.say", say)
    with os.fdopen(read) as file:
        monkeypatch.setattr("sys.stdin", file)
        command(run, "--max-bytes", "12", "--raw")
    assert said[:1] == ["reading the prompt from stdin, for none was given; '' is the empty one"]
    assert capfdbinary.readouterr().out == load(run).generate(b"late", max_bytes=12).data


def test_a_prompt_that_was_given_is_the_prompt_whatever_is_piped_in(
    run: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "piped").write_bytes(b"piped")
    with (tmp_path / "piped").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        command(run, "p", "--max-bytes", "12", "--raw")
        command(run, "", "--max-bytes", "12", "--raw")
    model = load(run)
    assert capfdbinary.readouterr().out == b"".join(model.generate(one, max_bytes=12).data for one in ("p", ""))


def test_prompts_are_asked_for_until_an_empty_line(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n\nthree\n"))
    assert command(run, "--interactive", "--max-bytes", "5", "--utf8") == 0
    captured = capfd.readouterr()
    assert captured.err.count("bytes/s]") == 2


def test_statistics_name_every_source(run: Path, capfdbinary: Any) -> None:
    command(run, "p", "--max-bytes", "9", "--stats")
    err = capfdbinary.readouterr().err.decode()
    assert all(f"head {head} " in err for head in (1, 2, 3))
    assert "lookup" in err
    assert f"\ndecoded by {load(run).decoded_by}\n" in err
    assert err.endswith(f"plan: guesses; bytelm tune {run} measures this machine\n")


def test_statistics_tell_what_of_the_plan_was_measured_here(run: Path, tmp_path: Path, capfdbinary: Any) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    torch.set_num_threads(1)
    plan = DecodePlan(((10, StepCost((1, 4), (1.0, 1.0), 0.1)),), Calibration({"head 0 3": (3.0, 4.0)}))
    place = write_plan(copied, plan, load(copied, threads=1).decoder)
    value = json.loads(place.read_bytes())
    for device, told in (
        (value["key"]["device"], "as measured on such a machine"),
        ("another", "what steps cost guessed"),
    ):
        place.write_text(json.dumps(value | {"key": value["key"] | {"device": device}}))
        command(copied, "p", "--max-bytes", "3", "--stats", "--threads", "1")
        assert f"{told}; bytelm tune" in capfdbinary.readouterr().err.decode()


def test_a_prompt_in_hexadecimal_digits(run: Path, capfdbinary: Any) -> None:
    command(run, "--prompt-hex", "ff 00 FE", "--max-bytes", "12", "--raw")
    assert capfdbinary.readouterr().out == load(run).generate(b"\xff\x00\xfe", max_bytes=12).data


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["p", "--max-bytes", "-1"], "max_bytes = -1"),
        (["p", "--top-k", "5"], "top_k has no effect"),
        (["p", "--stop", ""], "stop string is empty"),
        (["p", "--prompt-file", "there"], "cannot be given together"),
        (["--prompt-file", "/nowhere/at/all"], "No such file or directory"),
        (["p", "--raw", "--json"], "leave out --json"),
        (["--prompt-hex", "f"], "not hexadecimal"),
        (["p", "--interactive"], "cannot be given together"),
        (["p", "--prompt-hex", ""], "cannot be given together"),
        (["--batch-file", "f", "--json"], "output of its own"),
        (["--interactive", "--stats"], "output of its own"),
        (["p", "--logprobs"], "in JSON alone"),
        (["p", "--raw", "--show-drafts"], "leave out --show-drafts"),
        (["p", "--show-drafts", "--draft", "none"], "nothing to show"),
    ],
)
def test_options_that_contradict_each_other_or_cannot_be_are_refused(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        command(run, *words)


def test_a_device_that_is_not_there_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="device"):
        command(run, "p", "--device", "warp")


def test_a_machine_without_the_engine_decodes_through_torch_and_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    expected = load(run).generate("same", max_bytes=30).data
    monkeypatch.setattr("bytelm.api.unavailable_reason", lambda: "no library was built")
    command(run, "same", "--max-bytes", "30", "--json")
    answer = json.loads(capfdbinary.readouterr().out)
    threads = torch.get_num_threads()
    facts = {"name": "torch", "isa": None, "precision": "float32", "threads": threads, "reason": "no library was built"}
    assert (answer["engine"], answer["exact"]) == (facts, "rounding")
    assert base64.b64decode(answer["bytes_base64"]) == expected
    command(run, "same", "--max-bytes", "3", "--stats")
    assert ", for no library was built\nplan: " in capfdbinary.readouterr().err.decode()
    with pytest.raises(GenerationError, match="exact = 'bits' is the promise of the engine"):
        command(run, "same", "--exact", "bits")
    with pytest.raises(ConfigError, match="int8 needs the engine, and torch decodes here: no library was built"):
        command(run, "same", "--precision", "int8")


@pytest.mark.skipif(load_library() is None, reason="the engine was not built")
def test_the_engine_decodes_in_the_kind_and_with_the_threads_that_were_asked_for(run: Path, capfdbinary: Any) -> None:
    for precision in ("float32", "bfloat16", "int8"):
        command(run, "x", "--max-bytes", "9", "--json", "--precision", precision, "--threads", "2", "--exact", "bits")
        answer = json.loads(capfdbinary.readouterr().out)
        facts = answer["engine"]
        assert (facts["name"], facts["precision"], facts["threads"], facts["reason"]) == ("compiled", precision, 2, "")
        assert facts["isa"]
        assert answer["exact"] == "bits"


@pytest.mark.skipif(load_library() is None, reason="the engine was not built")
def test_a_generation_on_a_cpu_loads_nothing_that_it_does_not_need(run: Path) -> None:
    code = f"""
import sys
from bytelm.cli.app import run
code = run(["generate", {str(run)!r}, "x", "--max-bytes", "9", "--seed", "3", "--stop", "zz", "--device", "cpu"])
print(code, *({{"torch", "pydantic", "rich", "tomli_w", "safetensors.torch"}} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1].endswith("0"), found.stdout


def test_values_that_are_plainly_right_are_what_typer_makes_of_them() -> None:
    app = typer.Typer()
    app.command("quick", cls=Command)(generate)
    app.command("checked")(generate)
    group: Any = typer.main.get_command(app)
    words = ["run", "né", "--max-bytes", "7", "--temperature", "0.5", "--top-k", "3", "--stop", "a", "--stop", "b"]
    words += ["--draft", "heads", "--prompt-file", "x y", "--threads", "2", "--top-p", "1", "--seed", "-5", "--utf8"]
    for given in (words, ["run"], [*words, "--temperature", "1e-3"], [*words, "--max-bytes", "0"]):
        quick, checked = (
            group.commands[name].make_context(name, list(given), parent=None).params for name in ("quick", "checked")
        )
        assert quick == checked
        assert {name: type(value) for name, value in quick.items()} == {k: type(v) for k, v in checked.items()}
    for wrong in (
        ["--top-k", "x"],
        ["--slots", "0"],
        ["--draft", "tree"],
        ["--temperature", "warm"],
        ["--threads"],
    ):
        messages = []
        for name in ("quick", "checked"):
            with pytest.raises(typer.TyperException) as caught:
                group.commands[name].make_context(name, ["run", *wrong], parent=None)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_marks_without_colours_tell_each_draft_apart(capfdbinary: Any) -> None:
    view = SafeText(marks=True)
    view.show(b"abc", (1, 2, 0))
    view.show(b"de", (1, 0))
    view.show(b"f", (0,))
    view.show("€".encode(), (1, 2, 0))  # whole with the trunk's byte
    view.show(b"g\xe2\x82", (1, 2, 0))  # ends inside a character
    view.show(b"\xac\x1b", (1, 2))
    view.show(b"hijklm", (-1, -1, 3, -2, -1, 0))
    view.show(b"n", (-1,))
    view.finish()
    assert capfdbinary.readouterr().out.decode() == "‹ab›c‹d›ef€‹g›‹€\\x1b›«hi»‹j›k«l»m«n»"


def test_a_terminal_shows_the_prompt_dimmed_and_obeys_nothing_that_was_generated() -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system="truecolor", width=20, no_color=False)
    view = Terminal(terminal, b"say \x1b[2J\xff", None)
    view.show(b"[bold]" + b"w" * 30, (0,) * 36)
    view.show(b"\x1b]0;title\x07", (0,) * 10)
    view.finish()
    assert screen.getvalue() == "\x1b[2msay \\x1b[2J\\xff\x1b[0m[bold]" + "w" * 30 + "\\x1b]0;title\\x07\n"


def test_a_terminal_colours_bytes_by_the_head_that_drafted_them() -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system="truecolor", no_color=False)
    view = Terminal(terminal, b"", 3)
    view.show(b"ab\xc3", (1, 2, 0))
    view.show(b"\xa9\n", (1, 0))
    view.finish()
    pieces = screen.getvalue().split("\x1b[0m")
    colours = [piece.rpartition("m")[0] for piece in pieces]
    assert [piece.rpartition("m")[2] for piece in pieces] == ["a", "b", "é", "\n"] + [""] * (len(pieces) - 4)
    assert colours[0] == colours[2] != colours[1]
    assert view.legend.plain == "chosen by the trunk, or drafted by head 1 2, by prompt lookup"


def test_ctrl_c_stops_and_still_sums_up(run: Path) -> None:
    with process(run, "go", "--max-bytes", "100000000") as child:
        assert child.stdout is not None
        assert child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate()
    assert child.returncode == 130
    assert b"ended by interrupted" in errors
    assert b"Traceback" not in errors


def test_a_reader_that_goes_away_is_no_error(run: Path) -> None:
    with process(run, "go", "--max-bytes", "100000000") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(1)
        child.stdout.close()
        assert child.stderr.read() == b""
