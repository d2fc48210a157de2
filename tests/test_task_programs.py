import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from bytelm.api import LanguageModel
from bytelm.config import RunConfig
from bytelm.errors import ConfigError, SourceError
from bytelm.model import ByteLM
from bytelm.sandbox import require
from bytelm.task import Request
from bytelm.task_programs import humaneval, mbpp

ROWS = [
    {
        "task_id": f"Example/{number}",
        "prompt": f"def f{number}(x):\n",
        "entry_point": f"f{number}",
        "test": f"def check(candidate):\n    assert candidate(3) == {number}\n",
    }
    for number in range(3)
]


def no_held_out() -> NoReturn:
    raise AssertionError("programs need no held-out bytes")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    config = RunConfig.build(
        "tiny", ["model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16"]
    )
    torch.manual_seed(0)
    return LanguageModel(ByteLM(config.model, config.heads).eval(), config)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    place = tmp_path / "HumanEval.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def request(model: LanguageModel, data: Path, **changes: Any) -> Request:
    asked: dict[str, Any] = {"samples": 2, "pass_at": ((1, 0.0), (2, 0.9)), "max_bytes": 8, "folder": data / "eval"}
    held_out: Any = no_held_out
    return Request(model=model, checkpoint=Path("run/step-1"), held_out=held_out, data=data, **{**asked, **changes})


def test_programs_are_written_and_kept_but_not_run_unless_asked(model: LanguageModel, data: Path) -> None:
    found = humaneval(request(model, data))
    assert found.facts["code_was_run"] is False
    assert "pass_at" not in found.facts
    assert "--run-code" in found.lines[-1]
    assert len(found.samples) == 3 * 2 * 2
    assert all(sample["bytes"] <= 8 and "passed" not in sample for sample in found.samples)
    (kept,) = (data / "eval").glob("humaneval-step-1-*.programs.jsonl")
    assert [json.loads(line) for line in kept.read_bytes().splitlines()] == list(found.samples)


def test_what_was_interrupted_goes_on_with_the_same_programs(model: LanguageModel, data: Path) -> None:
    whole = humaneval(request(model, data, folder=data / "whole"))

    def stop(done: int, _: int | None) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        humaneval(request(model, data, progress=stop))
    (kept,) = (data / "eval").glob("*.programs.jsonl")
    written = kept.read_bytes()
    assert written.count(b"\n") == 6
    kept.write_bytes(written[:-3])  # a kill in the middle of a line
    again = humaneval(request(model, data))
    assert again == whole
    assert kept.read_bytes().startswith(written[: written.rfind(b"\n", 0, -1) + 1])  # all but what was cut off
    lines = kept.read_bytes()
    assert humaneval(request(model, data)) == whole
    assert kept.read_bytes() == lines  # nothing is written a second time


def test_a_program_does_not_depend_on_those_that_are_written_with_it(model: LanguageModel, data: Path) -> None:
    many = humaneval(request(model, data, samples=11, limit=1, pass_at=((1, 0.9),), folder=None)).samples
    few = humaneval(request(model, data, samples=3, limit=1, pass_at=((1, 0.9),), folder=None)).samples
    assert [one["completion_hex"] if "completion_hex" in one else one["completion"] for one in few] == [
        one["completion_hex"] if "completion_hex" in one else one["completion"] for one in many[:3]
    ]
    assert len({json.dumps(one.get("completion", one.get("completion_hex"))) for one in many}) > 5


def test_other_settings_do_not_go_on_with_these_programs(model: LanguageModel, data: Path) -> None:
    humaneval(request(model, data))
    humaneval(request(model, data, seed=1))
    humaneval(request(model, data, max_bytes=4))
    assert len(list((data / "eval").glob("*.programs.jsonl"))) == 3


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"problem": "Example/0"}', "[" * 100_000])
def test_a_damaged_line_of_what_was_written_is_named(model: LanguageModel, data: Path, line: str) -> None:
    humaneval(request(model, data))
    (kept,) = (data / "eval").glob("*.programs.jsonl")
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(SourceError, match=r"programs.jsonl is damaged: line 2 is no program"):
        humaneval(request(model, data))
    kept.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert len(humaneval(request(model, data)).samples) == len(lines)


def test_programs_are_judged_later_without_being_written_again(
    model: LanguageModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        require()
    except ConfigError as error:
        pytest.skip(str(error))
    humaneval(request(model, data))
    (kept,) = (data / "eval").glob("*.programs.jsonl")
    records = [json.loads(line) for line in kept.read_bytes().splitlines()]
    for record in records:  # as if the model had written this
        number = int(record["problem"][-1])
        right = record["sample"] == 0 or number == 0
        record |= {"completion": f"    return {number if right else 'None'}\n", "parses": True}
    kept.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(LanguageModel, "generate_batch", no_held_out)
    found = humaneval(request(model, data, run_code=True))
    assert found.facts["pass_at"] == [
        {"k": 1, "temperature": 0.0, "value": pytest.approx((1 + 0.5 + 0.5) / 3)},
        {"k": 2, "temperature": 0.9, "value": 1.0},
    ]
    assert {sample["reason"] for sample in found.samples} == {"", "AssertionError: "}


def test_what_is_no_python_is_not_started(model: LanguageModel, data: Path) -> None:
    try:
        require()
    except ConfigError as error:
        pytest.skip(str(error))
    found = humaneval(request(model, data, run_code=True, pass_at=((1, 0.9),)))
    assert found.facts["pass_at"][0]["value"] == 0.0
    assert {sample["passed"] for sample in found.samples} == {False}


def test_code_is_refused_before_anything_is_written_where_it_cannot_be_isolated(
    model: LanguageModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match="cannot be isolated"):
        humaneval(request(model, data, run_code=True))
    assert not (data / "eval").exists()


def test_a_prompt_longer_than_the_window_is_told(model: LanguageModel, data: Path) -> None:
    row = {"task_id": 11, "text": "x" * 400, "code": "", "test_list": ["assert f(1) == 2"]}
    (data / "mbpp.jsonl").write_text(json.dumps(row) + "\n")
    found = mbpp(request(model, data, folder=None))
    assert found.facts["prompts_longer_than_the_window"] == 1
    assert "1 prompts are longer than the window of 256 bytes: the last 128 bytes are read" in found.lines


def test_a_limit_takes_some_problems(model: LanguageModel, data: Path) -> None:
    assert humaneval(request(model, data, limit=2, folder=None)).facts["problems"] == 2
