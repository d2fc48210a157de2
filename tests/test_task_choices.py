import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bytelm.api import LanguageModel
from bytelm.config import RunConfig
from bytelm.errors import SourceError
from bytelm.model import ByteLM
from bytelm.task import Request
from bytelm.task_choices import Question, choices, lambada, one_set, passage_of, question_of
from bytelm.task_cute import KINDS, cute, question
from bytelm.task_utf8 import TEMPERATURES, judge, utf8
from bytelm.tasks import TASKS, parse_tasks


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    changes = ["model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16"]
    config = RunConfig.build("tiny", [*changes, "heads.count=2"])
    torch.manual_seed(0)
    return LanguageModel(ByteLM(config.model, config.heads).eval(), config)


def request(model: LanguageModel, data: Path | None, **changes: Any) -> Request:
    nothing: Any = None
    return Request(model=model, checkpoint=Path("step-1"), held_out=nothing, data=data, **changes)


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        (
            "hellaswag",
            {"ctx": "A man sits. he", "label": 2, "endings": ["a.", "b.", "c.", "d."]},
            Question(before="A man sits. he", choices=(" a.", " b.", " c.", " d."), right=2),
        ),
        (
            "hellaswag",
            {
                "activity_label": "How to sit",
                "ctx_a": "[header] Sit [title] Find a chair.",
                "ctx_b": "then",
                "ctx": "ignored",
                "endings": ["sit  down. [step] Done.", "run."],
                "label": "1",
            },
            Question(before="How to sit: Sit. Find a chair. Then", choices=(" sit down. Done.", " run."), right=1),
        ),
        (
            "arc_easy",
            {"query": "Question: What is it?", "choices": ["this", "that"], "gold": 0},
            Question(before="Question: What is it?\nAnswer:", choices=(" this", " that"), right=0),
        ),
        (
            "arc_easy",
            {"question": "What?", "choices": {"text": ["this", "that"], "label": ["A", "B"]}, "answerKey": "B"},
            Question(before="Question: What?\nAnswer:", choices=(" this", " that"), right=1),
        ),
        (
            "arc_challenge",
            {
                "question": {
                    "stem": "What?",
                    "choices": [{"text": "this", "label": "1"}, {"text": "that", "label": "2"}],
                },
                "answerKey": "1",
            },
            Question(before="Question: What?\nAnswer:", choices=(" this", " that"), right=0),
        ),
        (
            "piqa",
            {"goal": "To sit", "sol1": "run", "sol2": "rest", "label": 1},
            Question(before="Question: To sit\nAnswer:", choices=(" run", " rest"), right=1),
        ),
        (
            "piqa",
            {"query": "Question: To sit\n", "choices": ["run", "rest"], "gold": 1},
            Question(before="Question: To sit\nAnswer:", choices=(" run", " rest"), right=1),
        ),
    ],
)
def test_all_forms_of_a_question_are_read(name: str, row: dict[str, Any], expected: Question) -> None:
    assert question_of(row, name, 1) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"x": 1}, "row 7 of the data of task piqa has no field 'query' or 'question', only 'x'"),
        ({"query": "?"}, "has no field 'choices'"),
        ({"query": "?", "choices": ["a"], "gold": 3}, "does not say which of its choices is right"),
        ({"query": "?", "choices": ["a"], "gold": "b"}, "does not say which"),
        ({"goal": "?", "sol1": "a", "sol2": "b", "label": -1}, "does not say which"),
        ({"ctx": "?", "endings": ["a"]}, "has no field 'label' or 'gold'"),
        ({"ctx": "?", "endings": "ab", "label": 0}, "should have a list of texts in 'endings'"),
        ({"goal": 1, "sol1": "a", "sol2": "b", "label": 0}, "should have text in 'goal', found 1"),
        ({"query": "?", "choices": [["a"], "b"], "gold": 0}, "should have text in 'choices'"),
        ({"query": "?", "choices": [{"label": "A"}], "gold": 0}, "has no field 'text'"),
        ({"query": "?", "choices": {"label": ["A"]}, "answerKey": "A"}, "has no field 'text'"),
        ({"query": "?", "choices": {"text": ["a"], "label": "A"}, "answerKey": "A"}, "does not say which"),
        ({"question": {"stem": "?"}, "answerKey": "A"}, "has no field 'choices'"),
        ({"query": "?", "choices": 5, "gold": 0}, "should have a list of texts in 'choices', found 5"),
    ],
)
def test_rows_without_a_question_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        question_of(row, "piqa", 7)


def test_the_likeliest_choice_is_chosen_as_a_whole_and_by_byte(model: LanguageModel, tmp_path: Path) -> None:
    rows = [
        {"query": "What?", "choices": ["a", "this is it"], "gold": 0},
        {"query": "Who?", "choices": ["somebody", "me and you", "x"], "gold": 1},
    ]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = one_set("piqa")(request(model, tmp_path))
    for row, sample in zip(rows, found.samples, strict=True):
        nats = [model.score(f"Question: {row['query']}\nAnswer:", f" {text}") for text in row["choices"]]
        assert sample["nats"] == pytest.approx([one.sum() for one in nats], rel=1e-4)
        assert sample["chosen"] == max(range(len(nats)), key=lambda place: nats[place].sum())
        assert sample["chosen_by_byte"] == max(range(len(nats)), key=lambda place: nats[place].mean())
    right = sum(sample["chosen"] == sample["right"] for sample in found.samples)
    assert found.facts["accuracy"] == right / 2
    assert found.facts["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert (found.facts["longer_than_the_window"], len(found.lines)) == (0, 1)


def test_choices_are_the_sets_that_are_there(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"put one of hellaswag_val_full.txt.bz2"):
        choices(request(model, tmp_path))
    (tmp_path / "arc_easy.jsonl").write_text('{"query": "?", "choices": ["a", "b"], "gold": 0}\n')
    (tmp_path / "hellaswag.jsonl").write_text('{"ctx": "he", "endings": ["a", "b"], "label": 0}\n')
    assert set(choices(request(model, tmp_path)).facts["sets"]) == {"arc_easy", "hellaswag"}
    with pytest.raises(SourceError, match="name the one: hellaswag, arc_easy, arc_challenge, piqa"):
        choices(request(model, tmp_path / "arc_easy.jsonl"))


def test_the_last_word_is_right_if_it_is_what_would_be_written(model: LanguageModel, tmp_path: Path) -> None:
    assert passage_of({"text": "She said it was fine \n"}, 1) == ("She said it was", " fine")
    assert passage_of({"context": "It was", "continuation": "fine"}, 1) == ("It was", " fine")
    with pytest.raises(SourceError, match="no last word"):
        passage_of({"context": "It was", "continuation": " "}, 1)
    with pytest.raises(SourceError, match="one word alone"):
        passage_of({"text": "fine"}, 1)
    rows = [{"text": "She said it was fine"}, {"text": "x" * 400 + " fine"}]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = lambada(request(model, tmp_path))
    nats = model.score("She said it was", " fine").sum()
    assert found.samples[0]["nats"] == pytest.approx(nats, rel=1e-4)
    assert found.facts["longer_than_the_window"] == 1
    assert found.lines[1].startswith(
        "1 of these are longer than the window of 256 bytes: there a byte is scored with the 128"
    )
    total = -sum(sample["nats"] for sample in found.samples)
    assert found.facts["bits_per_byte_of_the_word"] == pytest.approx(total / math.log(2) / 10)
    assert found.facts["accuracy"] == sum(sample["right"] for sample in found.samples) / 2


def test_cute_asks_what_its_tables_hold(model: LanguageModel, tmp_path: Path) -> None:
    assert len(KINDS) == 21
    row = {"input1": "a", "input2": "b", "input3": "cab", "label": "cba"}
    asked = {kind: question(kind, row, 1)[0] for kind in KINDS}
    assert asked["swap_char"] == asked["swap_char_rand"] == "Swap a and b in: cab"
    assert asked["sub_word"] == "Put b in the place of every a in: cab"
    with pytest.raises(SourceError, match="give --data DIR with its tables"):
        cute(request(model, None))
    with pytest.raises(SourceError, match="holds no table of cute"):
        cute(request(model, tmp_path))
    folder = tmp_path / "cute"
    folder.mkdir()
    (folder / "spell.tsv").write_text("input1\tlabel\n" + "".join(f"w{n}\tw {n}\n" for n in range(9)))
    (folder / "del_char.tsv").write_text("input1\tinput2\tlabel\nt\tthe\the\na\tan\tn\n")
    found = cute(request(model, tmp_path, limit=3))
    assert found.facts["by_kind"] == {"spell": 0.0, "del_char": 0.0}
    assert [sample["kind"] for sample in found.samples] == ["spell"] * 3 + ["del_char"]
    assert found == cute(request(model, tmp_path, limit=3))
    assert found.facts["prompts_longer_than_the_window"] == 0
    long = "input1\tlabel\n" + "".join(f"{'w' * 90}{n}\tw {n}\n" for n in range(9))
    (folder / "spell.tsv").write_text(long)
    assert (
        "3 prompts are longer than the window of 256 bytes: the last 128 bytes are read"
        in cute(request(model, tmp_path, limit=3)).lines
    )
    (folder / "spell.tsv").write_text("input1\nthe\nan\n")
    with pytest.raises(SourceError, match="no field 'label'"):
        cute(request(model, folder / "spell.tsv"))


def test_a_right_answer_of_cute_is_counted(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spell.tsv").write_text("input1\tlabel\n" + "".join(f"w{n}\tw {n}\n" for n in range(6)))
    generate = model.generate

    def knows_even_ones(prompt: str, **options: Any) -> Any:
        number = int(prompt[-2])
        said = f"w {number}" if number % 2 == 0 else f"w{number}"
        return dataclasses.replace(generate(prompt, **options), data=said.encode())

    monkeypatch.setattr(model, "generate", knows_even_ones)
    found = cute(request(model, tmp_path, seed=2))
    assert len(found.samples) == 2
    for sample in found.samples:
        assert sample["right"] is (int(sample["question"][-1]) % 2 == 0)
    assert found.facts["accuracy"] == sum(sample["right"] for sample in found.samples) / 2


@pytest.mark.parametrize(
    ("data", "cut", "expected"),
    [
        (b"", False, (True, 1.0)),
        ("Grüße 世界".encode(), False, (True, 1.0)),
        ("世".encode()[:2], True, (True, 1.0)),
        ("世".encode()[:2], False, (False, 0.0)),
        (b"ab\xffc", True, (False, 0.75)),
        (b"\xed\xa0\x80a", False, (False, 0.25)),
        (b"\xc0\xaf", True, (False, 0.0)),
    ],
)
def test_outputs_are_judged_strictly(data: bytes, cut: bool, expected: tuple[bool, float]) -> None:
    assert judge(data, cut=cut) == expected


def test_utf8_is_measured_by_temperature_and_script(model: LanguageModel) -> None:
    found = utf8(request(model, None, limit=4, max_bytes=6, seed=3))
    assert list(found.facts["by_temperature"]) == [f"{temperature:g}" for temperature in TEMPERATURES]
    for temperature, shares in found.facts["by_temperature"].items():
        here = [sample for sample in found.samples if f"{sample['temperature']:g}" == temperature]
        assert shares["outputs"] == len(here) == 4
        assert shares["valid"] == sum(sample["valid"] for sample in here) / 4
    assert set(found.facts["by_script"]) == {sample["script"] for sample in found.samples}
    assert found == utf8(request(model, None, limit=4, max_bytes=6, seed=3))


def test_every_task_is_known_by_its_name() -> None:
    assert {"bpb", "acceptance", "humaneval", "mbpp", "lambada", "choices", "cute", "utf8"} <= set(TASKS)
    assert parse_tasks("hellaswag, piqa") == ["hellaswag", "piqa"]
