"""Decoding speed of the engine: plain, with drafts, by rows, threads and sequences, beside llama.cpp and torch.

    python tests/bench/bench_decode.py [--model nano] [--data FOLDER] [--parts plain,drafts,…] [--repeats 3] [--quick]

Everything is measured side by side in one process. With one thread processor time is counted, so that neighbours on the
machine disturb little; with two the time on the wall. Time begins when the prompt has been read. Variants take turns,
round by round; figures are medians, with the least and the most beside them, and ratios medians of the rounds' ratios.

``--model`` is a trained model, a run or the name of one that ships. FOLDER is what ``held_out.py`` assembles; without
it texts are taken from Python's standard library and the sample, or made. A model of 25 M parameters (512 wide, 8
layers, 8 heads) has random weights. llama.cpp (extra ``bench-llama``) runs Llamas of the same two shapes, with random
weights, with flash attention and without; the better one counts. A Llama has neither n-grams nor local windows. What
is not installed is named under ``absent``.

    plain     bytes a second of float32, bfloat16 and int8 beside llama.cpp's f32, f16 and q8_0, after 64 and 400 bytes,
              and the bandwidth of memory that the large model uses
    rows      passes of 2 … 32 rows over a pass of one
    drafts    with drafts over without, by text, tuned and untuned, greedy and sampled, and over llama.cpp
    policies  trees, chains, heads alone at the costs of 1 M, 10 M, 25 M and 140 M parameters, by replay
    batch     sixteen sequences side by side, with drafts and without
    threads   two threads over one
    python    what of a step passes outside the library
    prefill   reading 2,048 bytes
    torch     the same model through torch, and Hugging Face ``generate`` where transformers is installed

The last line is one JSON object.
"""

import argparse
import importlib.metadata
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from decode_costs import rows
from decode_drafts import batch, drafts, python, torch_beside
from decode_plain import plain, prefill, threads
from decode_policies import policies
from decode_rates import say
from decode_subjects import CONTEXTS, LARGE, SHAPES, Subjects
from machine import machine

from bytelm.engine.library import load_library, unavailable_reason

PARTS: Final[dict[str, Callable[[Subjects], dict[str, Any]]]] = {
    "plain": plain,
    "rows": rows,
    "drafts": drafts,
    "policies": policies,
    "batch": batch,
    "threads": threads,
    "python": python,
    "prefill": prefill,
    "torch": torch_beside,  # last: importing torch brings threads of its own
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("nano"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between them; default: all")
    parser.add_argument("--repeats", type=int, help="rounds; default: 3, with --quick 1")
    parser.add_argument("--prompts", type=int, help="of each text; default: 4, with --quick 2")
    parser.add_argument("--temperatures", default="0,0.8", help="of decoding with drafts")
    parser.add_argument("--quick", action="store_true", help="see only whether everything runs")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if (library := load_library()) is None:
        parser.error(f"there is no engine to measure: {unavailable_reason()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2 and {"threads", "prefill"} & set(parts):
        parser.error("threads and prefill need two cores: what waits by spinning takes forever on one; leave them out")
    warnings.filterwarnings("ignore")
    begin, load = time.perf_counter(), os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        subjects = Subjects(
            path=arguments.model,
            data=arguments.data,
            folder=Path(folder),
            repeats=arguments.repeats or (1 if arguments.quick else 3),
            prompts=arguments.prompts or (2 if arguments.quick else 4),
            quick=arguments.quick,
            temperatures=tuple(float(one) for one in arguments.temperatures.split(",")),
        )
        found: dict[str, Any] = {}
        for part in (one for one in PARTS if one in parts):
            started = time.perf_counter()
            found |= PARTS[part](subjects)
            say(f"{part} took {time.perf_counter() - started:.0f} s")
        if subjects.tunings:
            found["tune_predicted_over_achieved"] = subjects.predictions()
        subjects.close()
    facts = {
        "machine": machine(),
        "engine": {"instruction_set": library.isa, "compiler": library.compiler},
        "llama_cpp": _version("llama-cpp-python"),
        "absent": subjects.absent,
        "model": str(arguments.model),
        "llama_cpp_difference": subjects.differences,
        "weights_of_llama_cpp_and_of_shapes": "random, seed 0",
        "shapes": dict(SHAPES),
        "large": LARGE,
        "texts": {kind: len(data) for kind, data in subjects.texts.items()},
        "bytes_before": CONTEXTS,
        "clock": "processor time with one thread, time on the wall with two",
        "parts": parts,
        "quick": arguments.quick,
        "repeats": subjects.repeats,
        "prompts": subjects.prompts,
        "load_before": load,
        "elapsed_s": round(time.perf_counter() - begin),
    }
    print()
    print(json.dumps(facts | found, allow_nan=False))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
