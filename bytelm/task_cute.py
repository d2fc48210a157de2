"""The task ``cute``: characters and words spelled, found, put in, taken out, replaced and swapped.

Data: the tables of CUTE (Edman et al. 2024, arXiv 2409.15452), one for each of its 21 kinds. A prompt is our own, made
for models that only continue text: four examples of the kind, drawn by the seed, and then the question; the answer is
what greedy decoding writes up to the end of the line, and must be the right one character by character.
"""

import random
from pathlib import Path
from typing import Any, Final

from bytelm.errors import SourceError
from bytelm.task import Request, Result, cut_prompts, longer_than
from bytelm.task_data import Row, drawn, field_of, read_file

_SHOTS: Final = 4
_SPARE_BYTES: Final = 16

_QUESTIONS: Final = {
    "spell": "Spell out: {0}",
    "spell_inverse": "Write as one word: {0}",
    "contains_char": "Is the letter {0} in {1}?",
    "contains_word": "Is the word {0} in this sentence? {1}",
    "orth": "Which is written more like {0}: {1} or {2}?",
    "sem": "Which means more nearly the same as {0}: {1} or {2}?",
    "ins_char": "Put {0} after every {1} in: {2}",
    "ins_word": "Put {0} after every {1} in: {2}",
    "del_char": "Take every {0} out of: {1}",
    "del_word": "Take every {0} out of: {1}",
    "sub_char": "Put {1} in the place of every {0} in: {2}",
    "sub_word": "Put {1} in the place of every {0} in: {2}",
    "swap_char": "Swap {0} and {1} in: {2}",
    "swap_word": "Swap {0} and {1} in: {2}",
}
KINDS: Final = tuple(
    kind + ending
    for kind in _QUESTIONS
    for ending in (("", "_rand") if kind.endswith(("_char", "l", "_inverse")) else ("",))
)


def cute(request: Request) -> Result:
    """Ask all kinds of which there is a table.

    Raises:
        SourceError: There is no table, or it is damaged.
    """
    tables = _tables(request.data)
    by_kind: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    cut = 0
    for done, (kind, place) in enumerate(tables.items()):
        request.progress(done, len(tables))
        found, too_long = _ask(request, kind, read_file(place))
        cut += too_long
        by_kind[kind] = sum(sample["right"] for sample in found) / len(found)
        samples += found
    mean = sum(by_kind.values()) / len(by_kind)
    line = f"cute: {mean:.4f} right over {len(by_kind)} kinds and {len(samples):,} questions"
    kinds = "; ".join(f"{kind} {share:.3f}" for kind, share in by_kind.items())
    facts = {
        "accuracy": mean,
        "examples": len(samples),
        "by_kind": by_kind,
        "shots": _SHOTS,
        "prompts_longer_than_the_window": cut,
    }
    lines = (line, kinds, *cut_prompts(cut, request.model.context_bytes))
    return Result(facts=facts, lines=lines, samples=tuple(samples))


def question(kind: str, row: Row, number: int) -> tuple[str, str]:
    """Question and answer of a row.

    Raises:
        SourceError: The row lacks a field.

    Example:
        >>> question("del_char", {"input1": "t", "input2": "the", "label": "he"}, 1)
        ('Take every t out of: the', 'he')
    """
    form = _QUESTIONS[kind.removesuffix("_rand")]
    inputs = [str(field_of(row, [f"input{place + 1}"], "cute", number)) for place in range(3) if f"{{{place}}}" in form]
    return form.format(*inputs), str(field_of(row, ["label"], "cute", number))


def _tables(data: Path | None) -> dict[str, Path]:
    if data is None:
        raise SourceError(
            "task cute has no data here; give --data DIR with its tables (DIR/spell.tsv, DIR/contains_char.tsv …, or "
            "in DIR/cute/)"
        )
    if data.is_file():
        if data.stem not in KINDS:
            raise SourceError(f"{data} is no table of cute; those are {', '.join(KINDS)}, each with .tsv behind it")
        return {data.stem: data}
    found = {
        kind: folder / f"{kind}.tsv"
        for kind in KINDS
        for folder in (data / "cute", data)
        if (folder / f"{kind}.tsv").exists()
    }
    if not found:
        raise SourceError(f"{data} holds no table of cute; put spell.tsv, contains_char.tsv … there")
    return found


def _ask(request: Request, kind: str, rows: list[Row]) -> tuple[list[dict[str, Any]], int]:
    """What was asked and said, and how many prompts were longer than the window."""
    pairs = [question(kind, row, number) for number, row in enumerate(rows, start=1)]
    shots = random.Random(f"{request.seed} {kind}").sample(range(len(pairs)), min(_SHOTS, len(pairs) - 1))
    shown = "".join(f"{asked}\n{answer}\n\n" for asked, answer in (pairs[place] for place in shots))
    rest = drawn([pair for place, pair in enumerate(pairs) if place not in shots], request.limit, request.seed)
    longest = max(len(answer.encode()) for _, answer in rest)
    samples = []
    for asked, answer in rest:
        found = request.model.generate(f"{shown}{asked}\n", max_bytes=longest + _SPARE_BYTES, stop="\n")
        said = found.data.decode("utf-8", "backslashreplace").strip()
        samples.append({"kind": kind, "question": asked, "answer": answer, "said": said, "right": said == answer})
    prompts = (f"{shown}{asked}\n".encode() for asked, _ in rest)
    return samples, longer_than(request.model.context_bytes, prompts)
