import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bytelm.api import LanguageModel
from bytelm.config import RunConfig
from bytelm.errors import ConfigError, GenerationError
from bytelm.held_out import HeldOut, of_file
from bytelm.model import ByteLM
from bytelm.task import Request
from bytelm.task_acceptance import acceptance, loop_period
from bytelm.task_probes import arithmetic, induction
from bytelm.tasks import TASKS, check_vocabulary, keep, parse_pass_at, parse_tasks, results_folder


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    changes = ["model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16"]
    config = RunConfig.build("tiny", [*changes, "heads.count=3"])
    torch.manual_seed(0)
    return LanguageModel(ByteLM(config.model, config.heads).eval(), config)


def request(model: LanguageModel, held_out: HeldOut | None = None, **changes: Any) -> Request:
    given: Any = lambda: held_out  # noqa: E731  the fields of a request are typed
    return Request(model=model, checkpoint=Path("step-1"), held_out=given, **changes)


@pytest.mark.parametrize(
    ("data", "period"),
    [
        (b"", None),
        (b"x" * 31, None),
        (b"x" * 32, 1),
        (b"He said: " + b"the sea, " * 4, 9),
        (b"He said: " + b"the sea, " * 3, None),
        (b"abcd" * 8, 4),
        (b"abcd" * 8 + b"e", None),
        (bytes(range(100)), None),
        (b"start" + bytes(range(50)) * 4, 50),
    ],
)
def test_a_loop_is_what_repeats_at_the_end(data: bytes, period: int | None) -> None:
    assert loop_period(data) == period


def test_continuations_that_loop_are_counted_apart(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("".join(chr(97 + number * 7 % 26) for number in range(900)))
    generate, said = model.generate, iter([b"x" * 64, bytes(range(64))] * 2)

    def loops_every_other_time(prompt: bytes, **options: Any) -> Any:
        return dataclasses.replace(generate(prompt, **options), data=next(said), steps=16)

    monkeypatch.setattr(model, "generate", loops_every_other_time)
    found = acceptance(request(model, of_file(tmp_path / "text"), prompts=4)).facts
    assert (found["prompts"], found["loops"]) == (4, 2)
    assert found["bytes_per_step"] == found["bytes_per_step_without_loops"] == 4.0


def test_pass_at_is_read_or_that_of_the_paper() -> None:
    assert parse_pass_at(None, 200) == ((1, 0.1), (10, 0.8), (100, 0.8))
    assert parse_pass_at(None, 10) == ((1, 0.1), (10, 0.8))
    assert parse_pass_at(" 2:0, 5:1.5", 5) == ((2, 0.0), (5, 1.5))
    for text, message in (("1", "is not k:temperature"), ("0:1", "is not"), ("x:1", "is not"), ("1:-1", "is not")):
        with pytest.raises(ConfigError, match=message):
            parse_pass_at(text, 5)
    with pytest.raises(ConfigError, match="pass@10 needs 10 programs a problem, found --programs 5"):
        parse_pass_at("10:0.8", 5)
    with pytest.raises(GenerationError, match="is no temperature"):
        parse_pass_at("1:0.00001", 5)


def test_tasks_are_named_once_each() -> None:
    assert parse_tasks("bpb, utf8") == ["bpb", "utf8"]
    with pytest.raises(ConfigError, match="did you mean 'humaneval'"):
        parse_tasks("human_eval")
    with pytest.raises(ConfigError, match="names a task twice"):
        parse_tasks("bpb,bpb")


def test_tasks_of_bytes_refuse_a_run_of_another_vocabulary(model: LanguageModel) -> None:
    config = RunConfig.build("tiny", ["model.vocabulary=bpe:1024"])
    other = LanguageModel(model.model, config)
    check_vocabulary("bpb", other)
    for task in set(TASKS) - {"bpb"}:
        check_vocabulary(task, model)
        with pytest.raises(ConfigError, match=r"for models of bytes, and the run has model.vocabulary = bpe:1024"):
            check_vocabulary(task, other)


def test_results_lie_in_the_run_or_beside_a_checkpoint_that_stands_alone(tmp_path: Path) -> None:
    assert results_folder(tmp_path / "run" / "checkpoints" / "step-7") == tmp_path / "run" / "eval"
    assert results_folder(tmp_path / "alone") == tmp_path / "eval"
    place = keep(tmp_path / "eval", tmp_path / "step-7", "bpb", {"x": 1.5}, ({"said": "世"},))
    found = json.loads(place.read_bytes())
    assert (found["task"], found["x"], found["samples"]) == ("bpb", 1.5, [{"said": "世"}])


def test_induction_asks_for_the_second_parts_of_names(model: LanguageModel) -> None:
    found = induction(request(model, limit=3))
    assert found.facts["stories"] == 3
    assert found.facts["mentions"] == len(found.samples) > 10
    assert found.facts["accuracy"] == sum(sample["right"] for sample in found.samples) / len(found.samples)
    assert all(len(sample["second"]) == 3 for sample in found.samples)
    assert found == induction(request(model, limit=3))
    assert found != induction(request(model, limit=3, seed=1))


def test_arithmetic_counts_what_is_right_by_operations(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = model.generate

    def knows_short_ones(prompt: str, **options: Any) -> Any:
        value = values[prompt[:-1]] if len(prompt) < 14 else "?"
        return dataclasses.replace(generate(prompt, **options), data=value.encode())

    asked = arithmetic(request(model, limit=2)).samples
    values = {sample["expression"]: sample["value"] for sample in asked}
    assert all(not sample["right"] for sample in asked)
    monkeypatch.setattr(model, "generate", knows_short_ones)
    found = arithmetic(request(model, limit=2))
    for operations, share in found.facts["by_operations"].items():
        here = found.samples[2 * (int(operations) - 1) : 2 * int(operations)]
        assert share == sum(len(sample["expression"]) < 13 for sample in here) / 2
    assert found.facts["by_operations"]["10"] == 0.0
