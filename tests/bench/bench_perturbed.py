"""How models bear misspelt, miscased and misspaced prompts: LAMBADA's last words and CUTE's questions, perturbed.

    python tests/bench/bench_perturbed.py --runs runs/byte,runs/bpe --lambada lambada.jsonl --cute cute/ --limit 200

A BPE vocabulary writes a misspelt word with other ids than the word; a byte model sees most of the same bytes. So this
is where bytes should win, if anywhere. Files are those of ``bytelm eval``: LAMBADA as lines of JSON, CUTE as a folder
of tables. Of a passage of LAMBADA all but the last word is perturbed; of a question of CUTE its own words are, and not
the letters and words that it asks about, nor the answers. Perturbations depend on the seed and the example alone, so
all models read the same bytes.

An answer is right if greedy decoding writes it: of LAMBADA the last word, of CUTE the whole line. Beside that stand
bits per byte of head 0 over the perturbed passages, which tell models apart that get no word right. Byte and BPE runs
are treated alike. A table in Markdown comes first; the last line is one JSON object.
"""

import argparse
import json
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from machine import machine

import bytelm
from bytelm.api import LanguageModel
from bytelm.errors import SourceError
from bytelm.evaluate import bits_per_byte
from bytelm.task_choices import passage_of
from bytelm.task_cute import KINDS, question
from bytelm.task_data import Row, drawn, read_file

SHOTS: Final = 4
SPARE_BYTES: Final = 16


def typos(text: str, rate: float, draw: Random) -> str:
    """Letters dropped, doubled, replaced or swapped with the next one, each with this probability."""
    found: list[str] = []
    letters = list(text)
    place = 0
    while place < len(letters):
        letter = letters[place]
        place += 1
        if not letter.isalpha() or draw.random() >= rate:
            found.append(letter)
            continue
        kind = draw.choice(("drop", "double", "replace", "swap"))
        if kind == "double":
            found += [letter, letter]
        elif kind == "replace":
            found.append(draw.choice(string.ascii_lowercase.replace(letter.lower(), "")))
        elif kind == "swap" and place < len(letters):
            found += [letters[place], letter]
            place += 1
    return "".join(found)


def case(text: str, rate: float, draw: Random) -> str:
    """Letters in the other case, each with this probability."""
    return "".join(letter.swapcase() if letter.isalpha() and draw.random() < rate else letter for letter in text)


def spacing(text: str, rate: float, draw: Random) -> str:
    """Spaces doubled or taken out, each with this probability."""
    return "".join(draw.choice(("", "  ")) if letter == " " and draw.random() < rate else letter for letter in text)


PERTURBATIONS: Final[dict[str, Callable[[str, float, Random], str]]] = {
    "typos": typos,
    "case": case,
    "spacing": spacing,
}


def perturbed(text: str, kind: str, rate: float, seed: int, example: str, *, keep: tuple[str, ...] = ()) -> str:
    """A perturbed text, always the same one for the same arguments; as it was where the rate is 0.

    Args:
        text: To perturb.
        kind: Name in ``PERTURBATIONS``.
        rate: Probability for each letter or space.
        seed: Of the benchmark.
        example: Name of the example, so that each has perturbations of its own.
        keep: Pieces of the text that stay as they are, wherever they occur.
    """
    draw = Random(f"{seed} {kind} {rate} {example}")
    kept = "|".join(re.escape(piece) for piece in sorted(set(keep), key=len, reverse=True) if piece)
    pieces = re.split(f"({kept})", text) if kept else [text]
    # Between pieces that are kept stand, at even places, those that are not.
    return "".join(piece if place % 2 else PERTURBATIONS[kind](piece, rate, draw) for place, piece in enumerate(pieces))


def lambada_prompts(rows: list[Row], kind: str, rate: float, seed: int) -> list[tuple[str, str]]:
    """Perturbed passages, each with its last word and the space before it."""
    found = []
    for number, row in enumerate(rows, start=1):
        before, word = passage_of(row, number)
        found.append((perturbed(before, kind, rate, seed, f"lambada {number}"), word))
    return found


def cute_prompts(
    table: str, rows: list[Row], kind: str, rate: float, seed: int, limit: int | None
) -> list[tuple[str, str]]:
    """Perturbed questions behind perturbed examples with their answers, each with its own answer."""
    if len(rows) < 2:
        raise SourceError(f"the table {table} of cute has {len(rows)} rows; a question and an example are the least")
    pairs = []
    for number, row in enumerate(rows, start=1):
        asked, answer = question(table, row, number)
        keep = tuple(str(value) for name, value in row.items() if name.startswith("input"))
        pairs.append((perturbed(asked, kind, rate, seed, f"{table} {number}", keep=keep), answer))
    shots = Random(f"{seed} {table}").sample(range(len(pairs)), min(SHOTS, len(pairs) - 1))
    shown = "".join(f"{asked}\n{answer}\n\n" for asked, answer in (pairs[place] for place in shots))
    rest = drawn([pair for place, pair in enumerate(pairs) if place not in shots], limit, seed)
    return [(f"{shown}{asked}\n", answer) for asked, answer in rest]


def share_right(model: LanguageModel, prompts: list[tuple[str, str]], *, line: bool) -> float:
    """Share of answers that greedy decoding writes.

    Args:
        model: Of bytes or of BPE ids.
        prompts: Each with its answer.
        line: Whether the answer must be the whole line; else what is written begins with it, as a whole word.
    """
    right = 0
    for prompt, answer in prompts:
        wanted = answer.encode()
        stop = "\n" if line else None
        said = model.generate(prompt, max_bytes=len(wanted) + SPARE_BYTES, stop=stop).data
        if line:
            right += said.strip() == wanted.strip()
        else:
            behind = said[len(wanted) : len(wanted) + 1]
            right += said.startswith(wanted) and not behind.isalnum()
    return right / len(prompts)


def measured(model: LanguageModel, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What a model gets right of each task, for each perturbation and rate."""
    lambada = [] if options.lambada is None else drawn(read_file(options.lambada), options.limit, options.seed)
    tables = {}
    if options.cute is not None:
        tables = {name: options.cute / f"{name}.tsv" for name in KINDS if (options.cute / f"{name}.tsv").is_file()}
        if not tables:
            raise SourceError(f"{options.cute} holds no table of cute; put spell.tsv, contains_char.tsv … there")
    for kind in PERTURBATIONS:
        for rate in options.rates:
            if lambada:
                prompts = lambada_prompts(lambada, kind, rate, options.seed)
                documents = [(before + word).encode() for before, word in prompts]
                bits = bits_per_byte(model.model, documents, context_bytes=model.context_bytes).by_head[0]
                yield {
                    "task": "lambada", "perturbation": kind, "rate": rate, "examples": len(prompts),
                    "right": share_right(model, prompts, line=False), "bits_per_byte": bits,
                }  # fmt: skip
            if tables:
                found = [
                    cute_prompts(name, read_file(place), kind, rate, options.seed, options.limit)
                    for name, place in tables.items()
                ]
                shares = [share_right(model, prompts, line=True) for prompts in found]
                yield {
                    "task": "cute", "perturbation": kind, "rate": rate, "examples": sum(map(len, found)),
                    "right": sum(shares) / len(shares), "bits_per_byte": None,
                }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure all runs, and print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", required=True, help="folders of byte or BPE runs, with commas")
    parser.add_argument("--lambada", type=Path, help="file of LAMBADA, as bytelm eval reads it")
    parser.add_argument("--cute", type=Path, help="folder of CUTE's tables, as bytelm eval reads it")
    parser.add_argument("--rates", default="0,0.05,0.1,0.2", help="probabilities of a perturbation, with commas")
    parser.add_argument("--limit", type=int, help="passages, and questions of each table, at most")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn and perturbed")
    options = parser.parse_args(arguments)
    options.rates = [float(rate) for rate in options.rates.split(",")]
    if options.lambada is None and options.cute is None:
        parser.error("there is nothing to ask: give --lambada, --cute or both")
    if not all(0.0 <= rate <= 1.0 for rate in options.rates):
        parser.error("a rate is a probability, from 0 to 1")
    found = []
    print("| run | task | perturbation | rate | examples | right | bits per byte |\n|---|---|---|--:|--:|--:|--:|")
    for run in options.runs.split(","):
        model = bytelm.load(run)
        for row in measured(model, options):
            bits = "–" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
            print(
                f"| {run} | {row['task']} | {row['perturbation']} | {row['rate']:g} | {row['examples']} | "
                f"{row['right']:.4f} | {bits} |"
            )
            found.append({"run": run, "vocabulary": model.vocabulary.name, "decoder": str(model.decoded_by), **row})
    print(
        json.dumps(
            {
                "benchmark": "perturbed",
                "bytelm": bytelm.__version__,
                "machine": machine(),
                "seed": options.seed,
                "limit": options.limit,
                "repeats": 1,
                "results": found,
            },
            ensure_ascii=False,
        )
    )


if __name__ == "__main__":
    main()
