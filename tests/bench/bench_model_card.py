"""What a model card says in figures: held-out bytes by kind of text, beside zstd and xz, and what drafts are worth.

    python tests/bench/bench_model_card.py --model nano --held-out validation/permissive

``--held-out`` has a folder for each source, named by its kind and more (``code_python_stdlib``, ``en_rust_docs``). Of
each kind as many bytes are scored as ``--limit-bytes`` says, in pieces from evenly spread places: by head 0, by zstd
and xz from the same pieces joined, and by what all heads, drafting, would accept on this very text. Then some pieces
are continued greedily, plain and as ``bytelm generate`` does it, in turn, and their bytes compared: seconds of the
processor, on one thread; the engine has read the prompt before. Last, tables of random words are scored when they are
shown first and when the same table stands before them: what a model copies from its context. Tables in Markdown come
first; the last line is one JSON object.
"""

import argparse
import json
import math
import random
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from machine import machine

import bytelm
from bytelm.api import LanguageModel
from bytelm.breakdown import break_down
from bytelm.drafting import DraftPolicy
from bytelm.evaluate import excerpts, some_bytes
from bytelm.generation import Generation
from bytelm.task_acceptance import loop_period
from bytelm.task_bpb import Compressors

KINDS: Final = {
    "Python": ("code_python_*",),
    "Go": ("code_go",),
    "Rust": ("code_rust",),
    "English documentation": ("en_*_docs", "en_freebsd_man"),
    "English prose": ("en_austen", "en_bible_kjv"),
    "WordNet": ("en_wordnet",),
    "Classical Chinese": ("zh_poetry",),
}
CONTINUED: Final = ("Python", "English documentation")
PROMPT_BYTES: Final = 192
COPIED_TABLES: Final = 20
ROWS_OF_TABLE: Final = 16


def texts(folder: Path, patterns: tuple[str, ...]) -> list[bytes]:
    """Files of some sources, in the order of their paths."""
    sources = sorted(source for pattern in patterns for source in folder.glob(pattern))
    return [path.read_bytes() for source in sources for path in sorted(source.rglob("*")) if path.is_file()]


def scored(model: LanguageModel, documents: list[bytes], limit_bytes: int) -> dict[str, Any]:
    """Bits per byte of the model and of compressors on the same bytes, and what drafts would be worth on them."""
    compressors = Compressors()
    total = sum(map(len, documents))
    pieces = some_bytes(iter(documents), total, limit_bytes=limit_bytes, window_bytes=model.context_bytes)
    passing = compressors.passing((piece, "") for piece in pieces)
    bits = break_down(model.model, passing, context_bytes=model.context_bytes).bits
    return {
        "held_out_bytes": total,
        "scored_bytes": bits.scored_bytes,
        "bits_per_byte_by_head": list(bits.by_head),
        "survival_by_head": list(bits.agreement_by_head),
        "bytes_per_step": bits.bytes_per_step_estimate,
        **compressors.bits_per_byte(),
    }


def continued(model: LanguageModel, documents: list[bytes], count: int, max_bytes: int) -> dict[str, Any]:
    """Greedy continuations, plain and with drafts, in turn, whether they agree, and their speeds."""
    pieces = excerpts(iter(documents), sum(map(len, documents)), count=count, length=PROMPT_BYTES)
    prompts = [piece for piece in pieces if len(piece) == PROMPT_BYTES][:count]
    ways: tuple[DraftPolicy, ...] = ("none", "adaptive")
    done: list[dict[str, tuple[Generation, float]]] = []
    model.generate(prompts[0], max_bytes=16)  # the first passes of a process pay for allocations
    for prompt in prompts:
        both = {}
        model.generate(prompt, max_bytes=1)  # the engine keeps what it has read: else the first way alone pays for it
        for way in ways:
            begin = time.process_time()
            generation = model.generate(prompt, max_bytes=max_bytes, draft=way)
            both[way] = generation, time.process_time() - begin
        done.append(both)
    straight = [both for both in done if loop_period(both["none"][0].data) is None]
    return {
        "equal": all(both["none"][0].data == both["adaptive"][0].data for both in done),
        "all": speeds(done),
        "without_loops": speeds(straight) if straight else None,
    }


def speeds(done: list[dict[str, tuple[Generation, float]]]) -> dict[str, float]:
    """Of continuations that were made both ways."""
    size = sum(len(both["none"][0].data) for both in done)
    plain, drafted = (sum(both[way][1] for both in done) for way in ("none", "adaptive"))
    return {
        "prompts": len(done),
        "generated_bytes": size,
        "plain_bytes_per_second": size / plain,
        "speculative_bytes_per_second": size / drafted,
        "speculative_over_plain": plain / drafted,
        "bytes_per_step": size / sum(both["adaptive"][0].steps for both in done),
    }


def copied(model: LanguageModel) -> dict[str, float]:
    """Bits per byte of tables of random words, at first and when the same table stands before them."""
    source = random.Random(0)

    def word() -> str:
        return "".join(source.choices(string.ascii_lowercase, k=8))

    bits: dict[str, list[float]] = {"first": [], "again": []}
    for _ in range(COPIED_TABLES):
        table = "".join(f"{word()} {word()}\n" for _ in range(ROWS_OF_TABLE))
        for place, before in (("first", ""), ("again", table)):
            bits[place].append(-float(model.score(before, table).sum()) / math.log(2) / len(table))
    return {place: sum(several) / len(several) for place, several in bits.items()}


def tables(kinds: dict[str, dict[str, Any]], spoken: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines for people, as a card has them."""
    yield "| held-out text | scored | bits per byte | zstd -19 | xz -9 | bytes a step, drafts on this text |"
    yield "|---|---|---|---|---|---|"
    for name, kind in kinds.items():
        figures = (kind["bits_per_byte_by_head"][0], kind["zstd -19"], kind["xz -9"], kind["bytes_per_step"])
        bold, *others = (f"{figure:.3f}" for figure in figures)
        yield f"| {name} | {kind['scored_bytes'] / 1e3:,.0f} kB | **{bold}** | {' | '.join(others)} |"
    heads = len(next(iter(kinds.values()))["survival_by_head"])
    yield ""
    yield f"| all heads right up to head | {' | '.join(map(str, range(1, heads)))} |"
    yield f"|---|{'---|' * (heads - 1)}"
    for name, kind in kinds.items():
        yield f"| {name} | {' | '.join(f'{100 * share:.0f} %' for share in kind['survival_by_head'][1:])} |"
    yield ""
    yield "| continued greedily | pieces | plain, bytes/s | with drafts, bytes/s | | bytes a step | bytes |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in spoken.items():
        for title, part in ((name, one["all"]), (f"{name}, what falls into no loop", one["without_loops"])):
            if part is not None:
                yield (
                    f"| {title} | {part['prompts']} | {part['plain_bytes_per_second']:,.0f} "
                    f"| {part['speculative_bytes_per_second']:,.0f} | **{part['speculative_over_plain']:.2f} ×** "
                    f"| {part['bytes_per_step']:.2f} | {'equal' if one['equal'] else 'DIFFERENT'} |"
                )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a run, one of its checkpoints, or a shipped model")
    parser.add_argument("--held-out", type=Path, required=True, help="folder with a folder for each source")
    parser.add_argument("--limit-bytes", type=int, default=128 << 10, help="of each kind")
    parser.add_argument("--prompts", type=int, default=12, help="pieces that are continued, of each kind")
    parser.add_argument("--max-bytes", type=int, default=192, help="bytes of a continuation")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = bytelm.load(asked.model, device="cpu", threads=1)
    held_out = {name: texts(asked.held_out, patterns) for name, patterns in KINDS.items()}
    found = {name: documents for name, documents in held_out.items() if documents}
    if not found:
        parser.error(f"{asked.held_out} has no folder like {', '.join(sum(KINDS.values(), ()))}")
    kinds = {name: scored(model, documents, asked.limit_bytes) for name, documents in found.items()}
    chosen = [name for name in CONTINUED if name in found]
    spoken = {name: continued(model, found[name], asked.prompts, asked.max_bytes) for name in chosen}
    copies = copied(model)
    print("\n".join(tables(kinds, spoken)))
    print(f"\na table of random words: {copies['first']:.2f} bits per byte at first, {copies['again']:.2f} shown again")
    counts = model.model.parameter_counts()
    facts = {"machine": machine(), "decoded_by": str(model.decoded_by), "parameters": counts}
    print(json.dumps(facts | {"scored": kinds, "continued": spoken, "copied": copies}))


if __name__ == "__main__":
    main()
