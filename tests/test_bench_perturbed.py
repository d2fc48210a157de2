"""Perturbed prompts are the same for all models, keep what is asked about, and byte and BPE runs answer them."""

import importlib
import json
import string
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bytelm.cli.app import run
from bytelm.errors import SourceError

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps in the warm sun."
LAMBADA = [{"text": f"she said that the number of the day was {number}, and then she went home"} for number in range(3)]
TABLE = "input1\tlabel\nword\tw o r d\nfish\tf i s h\nbird\tb i r d\n"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "bench"))
    return importlib.import_module("bench_perturbed")


@pytest.mark.parametrize("kind", ["typos", "case", "spacing"])
def test_a_perturbation_is_the_same_for_the_same_seed_and_example(bench: ModuleType, kind: str) -> None:
    one = bench.perturbed(TEXT, kind, 0.3, 0, "a")
    assert one == bench.perturbed(TEXT, kind, 0.3, 0, "a")
    assert len({one, TEXT, bench.perturbed(TEXT, kind, 0.3, 1, "a"), bench.perturbed(TEXT, kind, 0.3, 0, "b")}) == 4
    assert bench.perturbed(TEXT, kind, 0.0, 0, "a") == TEXT


def test_each_perturbation_changes_what_its_name_says(bench: ModuleType) -> None:
    assert bench.perturbed(TEXT, "case", 0.5, 0, "a").lower() == TEXT.lower()
    spaced = bench.perturbed(TEXT, "spacing", 0.5, 0, "a")
    assert spaced.replace(" ", "") == TEXT.replace(" ", "")
    others = str.maketrans("", "", string.ascii_letters)
    wrong = bench.perturbed(TEXT, "typos", 0.1, 0, "a")
    assert sorted(wrong.translate(others)) == sorted(TEXT.translate(others))


@pytest.mark.parametrize("kind", ["typos", "case", "spacing"])
def test_what_is_kept_stays_as_it_is(bench: ModuleType, kind: str) -> None:
    kept = ("brown fox", "lazy")
    found = bench.perturbed(TEXT, kind, 1.0, 0, "a", keep=kept)
    assert found != TEXT
    assert all(piece in found for piece in kept)


def test_the_last_word_and_the_answers_are_not_perturbed(bench: ModuleType) -> None:
    assert {word for _, word in bench.lambada_prompts(LAMBADA, "typos", 0.5, 0)} == {" home"}
    rows: list[dict[str, Any]] = [{"input1": word, "label": " ".join(word)} for word in ("fish", "bird", "worm")]
    (prompt, answer), *_ = bench.cute_prompts("spell", rows, "case", 1.0, 0, None)
    assert answer in ("f i s h", "b i r d", "w o r m")
    assert prompt.count("sPELL OUT: ") == 3
    assert all(row["input1"] in prompt for row in rows)
    with pytest.raises(SourceError, match="a question and an example are the least"):
        bench.cute_prompts("spell", rows[:1], "case", 1.0, 0, None)


class Parrot:
    """Stands in for a model: it writes one text, whatever it reads."""

    def __init__(self, said: bytes) -> None:
        self.data = said

    def generate(self, _: str, **__: Any) -> "Parrot":
        return self


@pytest.mark.parametrize(
    ("said", "answer", "line", "right"),
    [
        (b" home again", " home", False, True),
        (b" homeless", " home", False, False),
        (b" hom", " home", False, False),
        (b" w o r d", "w o r d", True, True),
        (b"w o r d s", "w o r d", True, False),
    ],
)
def test_an_answer_is_right_as_a_whole_word_or_line(
    bench: ModuleType, said: bytes, answer: str, *, line: bool, right: bool
) -> None:
    assert bench.share_right(Parrot(said), [("asked", answer)], line=line) == right


def test_byte_and_bpe_runs_are_asked_alike(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(12):
        (sources / f"{number}.txt").write_text(TEXT * 12 + str(number))
    assert run(["ingest", str(sources), "--out", str(tmp_path / "corpus"), "--validation-fraction", "0"]) == 0
    small = ("model.d_model=32", "model.d_ff=48", "model.layers=1", "data.window_bytes=128", "train.sample_bytes=0")
    for vocabulary in ("bytes", "bpe:300"):
        options = [word for change in small for word in ("--set", change)]
        code = run([
            "train", "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / vocabulary.partition(":")[0]),
            "--preset", "tiny", "--steps", "2", "--set", f"model.vocabulary={vocabulary}", *options,
        ])  # fmt: skip
        assert code == 0
    (tmp_path / "spell.tsv").write_text(TABLE)
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LAMBADA))
    capsys.readouterr()
    bench.main([
        "--runs", f"{tmp_path / 'bytes'},{tmp_path / 'bpe'}", "--lambada", str(tmp_path / "lambada.jsonl"), "--cute",
        str(tmp_path), "--rates", "0,0.2", "--limit", "1",
    ])  # fmt: skip
    *table, last = capsys.readouterr().out.splitlines()
    facts = json.loads(last)
    assert len(table) == 2 + len(facts["results"])
    assert len(facts["results"]) == 2 * 3 * 2 * 2  # runs, perturbations, rates, tasks
    assert {row["vocabulary"] for row in facts["results"]} == {"bytes", "bpe:300"}
    clean = [row["bits_per_byte"] for row in facts["results"] if row["rate"] == 0 and row["task"] == "lambada"]
    assert clean[0] == clean[1] == clean[2]  # at rate 0 all perturbations are the same text
    assert clean[3] == clean[4] == clean[5] != clean[0]
