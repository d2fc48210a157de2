"""Tasks scored by log-probabilities: HellaSwag, ARC and PIQA by their choices, LAMBADA by its last word.

A choice is right if the model gives it the highest log-probability: as it is (``accuracy``), or divided by its bytes
(``accuracy_by_byte``), so that short choices have no advantage. LAMBADA: the last word is right if greedy decoding
would write it, byte for byte.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bytelm.errors import SourceError
from bytelm.likelihood import Likelihood, likelihoods
from bytelm.scoring import default_stride
from bytelm.task import Request, Result, longer_than
from bytelm.task_data import DataSet, Row, drawn, field_of, read_rows, text_of, texts_of


@dataclass(frozen=True, kw_only=True)
class Question:
    """A beginning and the continuations to choose from.

    Attributes:
        before: What the model reads.
        choices: Continuations.
        right: Index of the right one.
    """

    before: str
    choices: tuple[str, ...]
    right: int


CHOICE_SETS: Final = {
    "hellaswag": DataSet(
        files=("hellaswag_val_full.txt.bz2", "hellaswag_val.jsonl", "hellaswag.jsonl"),
        hub="Rowan/hellaswag",
        split="validation",
    ),
    "arc_easy": DataSet(files=("arc_easy.jsonl", "ARC-Easy-Test.jsonl"), hub="allenai/ai2_arc", config="ARC-Easy"),
    "arc_challenge": DataSet(
        files=("arc_challenge.jsonl", "ARC-Challenge-Test.jsonl"), hub="allenai/ai2_arc", config="ARC-Challenge"
    ),
    "piqa": DataSet(files=("piqa.jsonl",), hub="ybisk/piqa", split="validation", revision="refs/convert/parquet"),
}
LAMBADA: Final = DataSet(files=("lambada_openai.jsonl", "lambada.jsonl"), hub="EleutherAI/lambada_openai")


def choices(request: Request) -> Result:
    """All sets of choices whose data is there: those of a folder, or all four of the hub.

    Raises:
        SourceError: There is no data at all, or it is damaged.
    """
    data = request.data
    if data is not None and not data.is_dir():
        raise SourceError(f"{data} is one file, and choices are several tasks; name the one: {', '.join(CHOICE_SETS)}")
    names = [
        name
        for name, source in CHOICE_SETS.items()
        if data is None or any((data / file).exists() for file in source.files)
    ]
    if not names:
        wanted = ", ".join(source.files[0] for source in CHOICE_SETS.values())
        raise SourceError(f"{data} holds no data of choices; put one of {wanted} there")
    found = {name: one_set(name)(request) for name in names}
    return Result(
        facts={"sets": {name: result.facts for name, result in found.items()}},
        lines=tuple(line for result in found.values() for line in result.lines),
        samples=tuple(sample for result in found.values() for sample in result.samples),
    )


def one_set(name: str) -> Callable[[Request], Result]:
    """The task of one set of choices, by its name in ``CHOICE_SETS``."""

    def run(request: Request) -> Result:
        rows = read_rows(CHOICE_SETS[name], request.data, name)
        questions = drawn([question_of(row, name, n) for n, row in enumerate(rows, 1)], request.limit, request.seed)
        pairs = [(one.before.encode(), choice.encode()) for one in questions for choice in one.choices]
        found = iter(_scored(request, pairs))
        samples = []
        for one in questions:
            scored = [next(found) for _ in one.choices]
            totals = [likelihood.total for likelihood in scored]
            by_byte = [likelihood.total / max(1, len(likelihood.nats)) for likelihood in scored]
            samples.append(
                {
                    "set": name,
                    "before": one.before,
                    "choices": list(one.choices),
                    "right": one.right,
                    "nats": totals,
                    "chosen": totals.index(max(totals)),
                    "chosen_by_byte": by_byte.index(max(by_byte)),
                }
            )
        return _accuracy(name, request, samples)

    return run


def lambada(request: Request) -> Result:
    """The last word of a passage.

    Raises:
        SourceError: The data cannot be had or is damaged.
    """
    rows = read_rows(LAMBADA, request.data, "lambada")
    passages = drawn([passage_of(row, n) for n, row in enumerate(rows, 1)], request.limit, request.seed)
    found = _scored(request, [(before.encode(), word.encode()) for before, word in passages])
    right = sum(one.is_greedy for one in found)
    nats, size = -sum(one.total for one in found), sum(len(one.nats) for one in found)
    facts = {
        "examples": len(passages),
        "accuracy": right / len(passages),
        "standard_error": _standard_error(right / len(passages), len(passages)),
        "bits_per_byte_of_the_word": nats / math.log(2) / size,
        "perplexity_of_the_word": math.exp(min(700.0, nats / len(passages))),
        **_cut(request, [before + word for before, word in passages]),
    }
    samples = [
        {"before": before, "word": word, "nats": one.total, "right": one.is_greedy}
        for (before, word), one in zip(passages, found, strict=True)
    ]
    line = (
        f"lambada: accuracy {facts['accuracy']:.4f} ± {facts['standard_error']:.4f} over {len(passages):,} passages, "
        f"{facts['bits_per_byte_of_the_word']:.3f} bits per byte of the word"
    )
    return Result(facts=facts, lines=(line, *_told(request, facts)), samples=tuple(samples))


def question_of(row: Row, name: str, number: int) -> Question:
    """The question of a row, in any of the forms that these sets have.

    Raises:
        SourceError: It has none of them.
    """
    if "endings" in row:  # HellaSwag
        before, after = _hellaswag_text(row, name, number)
        return _question(before, after, _index(row, ["label", "gold"], name, number), name, number)
    if "sol1" in row:  # PIQA
        before = f"Question: {text_of(row, ['goal'], name, number)}\nAnswer:"
        texts = [text_of(row, [field], name, number) for field in ("sol1", "sol2")]
        return _question(before, texts, _index(row, ["label", "gold"], name, number), name, number)
    asked: Any = field_of(row, ["query", "question"], name, number)
    if isinstance(asked, dict):  # ARC as its authors give it
        row = {**row, "choices": asked.get("choices"), "question": asked.get("stem")}
    texts, labels = _options(row, name, number)
    if "answerKey" in row:
        right = labels.index(row["answerKey"]) if row["answerKey"] in labels else -1
    else:
        right = _index(row, ["gold", "label"], name, number)
    asked = text_of(row, ["query", "question"], name, number).rstrip("\n")
    before = asked if asked.startswith("Question:") else f"Question: {asked}"
    return _question(f"{before}\nAnswer:", texts, right, name, number)


def passage_of(row: Row, number: int) -> tuple[str, str]:
    """What stands before the last word of a passage, and the word with the space before it.

    Raises:
        SourceError: The row holds no passage.
    """
    if "context" in row:
        word = text_of(row, ["continuation"], "lambada", number).strip()
        if word:
            return text_of(row, ["context"], "lambada", number), f" {word}"
        raise SourceError(f"row {number} of the data of task lambada has no last word; give data of this task")
    before, space, word = text_of(row, ["text"], "lambada", number).rstrip().rpartition(" ")
    if not space:
        raise SourceError(f"row {number} of the data of task lambada is one word alone; give data of this task")
    return before, f" {word}"


def _question(before: str, texts: list[str], right: int, name: str, number: int) -> Question:
    if not 0 <= right < len(texts):
        raise SourceError(f"row {number} of the data of task {name} does not say which of its choices is right")
    return Question(before=before, choices=tuple(f" {text}" for text in texts), right=right)


def _options(row: Row, name: str, number: int) -> tuple[list[str], list[Any]]:
    """Texts and labels of the choices of a row: texts, pairs of text and label, or lists of both."""
    found = field_of(row, ["choices"], name, number)
    if isinstance(found, dict):  # as the hub gives them
        texts, labels = texts_of(found, ["text"], name, number), field_of(found, ["label"], name, number)
    elif isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
        texts = [text_of(one, ["text"], name, number) for one in found]
        labels = [one.get("label") for one in found]
    else:
        texts, labels = texts_of(row, ["choices"], name, number), []
    return texts, labels if isinstance(labels, list) else []


def _index(row: Row, names: list[str], task: str, number: int) -> int:
    value = str(field_of(row, names, task, number))
    return int(value) if value.isdecimal() else -1


def _hellaswag_text(row: Row, name: str, number: int) -> tuple[str, list[str]]:
    """Context and endings; marks of headings and brackets of the WikiHow part are taken out."""
    if "ctx_a" in row and "activity_label" in row:
        second = str(row.get("ctx_b") or "")
        label, first = (text_of(row, [field], name, number) for field in ("activity_label", "ctx_a"))
        context = f"{label}: {first} {second[:1].upper()}{second[1:].lower()}"
    else:
        context = text_of(row, ["ctx"], name, number)
    return _without_marks(context), [_without_marks(one) for one in texts_of(row, ["endings"], name, number)]


def _without_marks(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()


def _scored(request: Request, pairs: list[tuple[bytes, bytes]]) -> list[Likelihood]:
    done = 0

    def after_batch(count: int) -> None:
        nonlocal done
        done += count
        request.progress(min(done, len(pairs)), len(pairs))

    return likelihoods(request.model.model, pairs, context_bytes=_context(request), after_batch=after_batch)


def _accuracy(name: str, request: Request, samples: list[dict[str, Any]]) -> Result:
    count = len(samples)
    plain = sum(sample["chosen"] == sample["right"] for sample in samples) / count
    by_byte = sum(sample["chosen_by_byte"] == sample["right"] for sample in samples) / count
    chance = sum(1 / len(sample["choices"]) for sample in samples) / count
    facts = {
        "examples": count,
        "accuracy": plain,
        "accuracy_by_byte": by_byte,
        "standard_error": _standard_error(plain, count),
        "chance": chance,
        **_cut(request, [sample["before"] + max(sample["choices"], key=len) for sample in samples]),
    }
    line = (
        f"{name}: accuracy {plain:.4f} ± {facts['standard_error']:.4f}, by byte {by_byte:.4f}, chance {chance:.4f}, "
        f"over {count:,} questions"
    )
    return Result(facts=facts, lines=(line, *_told(request, facts)), samples=tuple(samples))


def _cut(request: Request, texts: list[str]) -> dict[str, int]:
    """How many examples do not fit into the window."""
    return {"longer_than_the_window": longer_than(_context(request), (text.encode() for text in texts))}


def _told(request: Request, facts: dict[str, Any]) -> tuple[str, ...]:
    if not facts["longer_than_the_window"]:
        return ()
    context = _context(request)
    return (
        f"{facts['longer_than_the_window']:,} of these are longer than the window of {context} bytes: there a byte is "
        f"scored with the {context - default_stride(context)} before it at least, not with all of them",
    )


def _context(request: Request) -> int:
    return request.context_bytes or request.model.context_bytes


def _standard_error(accuracy: float, count: int) -> float:
    return math.sqrt(accuracy * (1 - accuracy) / count)
