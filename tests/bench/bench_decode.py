"""Decoding speed, plain and self-speculative, beside other tools with a model of the same shape.

    python tests/bench/bench_decode.py --run RUN [--data FOLDER] [--threads 1,2] [--repeats 3] [--max-bytes 192]
    python tests/bench/bench_decode.py --shape 512,8,8,4,1408 [--threads 1,2]

RUN is a trained run; FOLDER is what ``held_out.py`` assembles (kinds that are missing are taken from Python's standard
library, the shipped sample, or made). The first half of each kind tunes, as ``bytelm tune`` does, prompts are from the
second. Variants take turns; with one thread processor time is counted, so that
neighbours on the machine disturb little, else the time on the wall. Time begins when the first step is over, for all.
Beside: Hugging Face ``generate`` with a Llama of the same shape and byte vocabulary, plain and with prompt lookup
(extra ``bench``), and the same Llama in llama.cpp (extra ``bench-llama``), both with random weights: see
``other_decoders.py``. What is not installed is named in the result.

``--shape WIDTH,LAYERS,HEADS,KV_HEADS,INNER`` compares plain decoding alone, of a model with random weights, K = 8 and
full attention.

The last line is one JSON object. Its figures are those of the first number of threads; ``by_threads`` has all.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from held_out import KINDS, prompts_of, texts
from machine import machine
from other_decoders import GGUF_PRECISIONS, LlamaCpp, absent, differences, hugging_face, random_llama, write_gguf

from bytelm.api import LanguageModel, WeightPrecision, load
from bytelm.config import HeadsConfig, ModelConfig
from bytelm.decode import DecodePlan, Request, decode_batch
from bytelm.errors import ConfigError
from bytelm.generation import DraftPolicy, Exactness, GenerateSettings
from bytelm.model import ByteLM
from bytelm.packed import why_not_int8
from bytelm.pairs import PairCorrection
from bytelm.tune import best_pairs, tune

POLICIES: Final[tuple[DraftPolicy, ...]] = ("none", "adaptive", "heads", "tree", "ngram")
ROWS: Final = (1, 2, 4, 8, 16, 32, 64)
DTYPES: Final[dict[WeightPrecision, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,
}
Rates = dict[str, dict[str, list[float]]]


@dataclass(slots=True)
class Subjects:
    """What is measured.

    Attributes:
        models: Ours by precision, packed.
        context_bytes: Of ours.
        precision: Of ours and of Hugging Face's.
        prompts: By kind.
        tuning: Prompts to tune with, by kind; none where there is nothing to draft.
        pairs: Correction of the draft heads, fitted to the same half of the texts.
        many: Unequal prompts for a batch of 16.
        llama: Of Hugging Face, or None.
        gguf: Open models of llama.cpp by name.
        absent: Packages that are not installed.
        max_bytes: For each prompt.
        facts: About the comparison, for the result.
    """

    models: dict[str, ByteLM]
    context_bytes: int
    precision: str
    prompts: dict[str, list[bytes]]
    tuning: dict[str, list[bytes]]
    many: list[bytes]
    max_bytes: int
    pairs: PairCorrection | None = None
    llama: Any = None
    gguf: dict[str, LlamaCpp] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> ByteLM:
        """The one that decodes."""
        return self.models[self.precision]


def clock() -> Callable[[], float]:
    """Processor time where one thread does all the work, else the time on the wall."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


def shape_of(text: str) -> ModelConfig:
    """``WIDTH,LAYERS,HEADS,KV_HEADS,INNER`` as a trunk with full attention."""
    width, layers, heads, kv_heads, inner = (int(one) for one in text.split(","))
    return ModelConfig(
        d_model=width,
        layers=layers,
        attention_heads=heads,
        kv_heads=kv_heads,
        d_ff=inner,
        attention_pattern=("global",),
    )


def ours(
    subjects: Subjects,
    prompts: Sequence[bytes],
    plan: DecodePlan | None,
    draft: DraftPolicy,
    *,
    exact: Exactness = "padded",
    max_bytes: int,
    slots: int = 1,
) -> dict[str, float]:
    """Bytes and seconds after the prompts were read, and steps."""
    now = clock()
    settings = [
        GenerateSettings(max_bytes=max_bytes, draft=draft, exact=exact, sequence=place) for place in range(len(prompts))
    ]
    seconds, done, steps = 0.0, 0, 0
    groups = [range(len(prompts))] if slots > 1 else [range(place, place + 1) for place in range(len(prompts))]
    for group in groups:
        asked = [Request(prompts[place], settings[place]) for place in group]
        begin: float | None = None
        seen: set[int] = set()
        for index, step in decode_batch(
            subjects.model, asked, context_bytes=subjects.context_bytes, slots=slots, tuned=plan
        ):
            if begin is None:
                begin = now()  # prompts are read before the first step ends, in batches as alone
            elif index in seen:
                done += step.accepted + 1  # those of a stop string or an end included
            steps += 1
            seen.add(index)
        assert begin is not None
        seconds += now() - begin
    return {"bytes": done, "seconds": seconds, "steps": steps}


@torch.inference_mode()
def step_cost(model: ByteLM, context_bytes: int, repeats: int = 12) -> dict[str, Any]:
    """Cost of a pass of 1, 2, 4 … rows, head 0 at each, and over that of one row; they take turns."""
    now, device = clock(), model.embedding.device
    past = min(512, max(1, context_bytes - ROWS[-1] - 1))  # the first of its bucket: all rows are in it
    cache = model.new_cache(1, past + ROWS[-1])
    model.prefill(torch.randint(0, 256, (1, past), device=device), cache)
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(repeats):
        for rows in ROWS:
            inputs = torch.zeros(1, rows, dtype=torch.int64, device=device)
            for place in range(4):
                begin = now()
                shared = model.cached_pass(cache, rows)
                hidden = model.decode(inputs, shared)
                model.heads.decode_logits(hidden, shared, range(1)).float().cpu()
                if place:  # as after another pass like it: the first one finds what other passes left in the caches
                    seconds[rows].append(now() - begin)
    typical = [statistics.quantiles(seconds[rows], n=4)[0] for rows in ROWS]
    return {
        "over_one_row": [round(one / typical[0], 3) for one in typical],
        "milliseconds": [round(1e3 * one, 3) for one in typical],
    }


def measure(subjects: Subjects, threads: int, repeats: int) -> dict[str, Any]:
    """All figures with a number of threads."""
    torch.set_num_threads(threads)
    say(f"{threads} threads")
    plan = None
    if subjects.tuning:
        plan = tune(
            subjects.model,
            subjects.tuning,
            context_bytes=subjects.context_bytes,
            max_bytes=96,
            pairs=subjects.pairs,
            say=say,
        ).plan
    rates: Rates = {}
    per_step: dict[str, list[float]] = {kind: [] for kind in subjects.prompts}
    batch: dict[DraftPolicy, list[float]] = {"none": [], "adaptive": []} if plan else {}
    for repeat in range(repeats):
        for kind, prompts in subjects.prompts.items():
            for policy in POLICIES if plan else POLICIES[:1]:
                found = ours(subjects, prompts, plan, policy, max_bytes=subjects.max_bytes)
                add(rates, f"bytelm {policy}", kind, found)
                if policy == "adaptive":
                    per_step[kind].append((found["bytes"] + len(prompts)) / found["steps"])
            if kind in ("code", "repetitive"):
                theirs(subjects, rates, kind, prompts, threads)
        for policy, found_rates in batch.items():
            found = ours(subjects, subjects.many, plan, policy, max_bytes=subjects.max_bytes // 2, slots=16)
            found_rates.append(found["bytes"] / found["seconds"])
        say(f"round {repeat + 1} of {repeats}")
    curves = {
        precision: step_cost(model, subjects.context_bytes) for precision, model in sorted(subjects.models.items())
    }
    return figures(rates, per_step, batch) | {"step_cost_rows": {"rows": list(ROWS), **curves}}


def theirs(subjects: Subjects, rates: Rates, kind: str, prompts: Sequence[bytes], threads: int) -> None:
    """The same prompts and lengths with the other tools; what they do not look at is measured on code alone."""
    now, max_bytes = clock(), subjects.max_bytes
    if kind == "code":
        found = ours(subjects, prompts, None, "none", exact="off", max_bytes=max_bytes)
        add(rates, "bytelm none, exact off", kind, found)
    if subjects.llama is not None:
        if kind == "code":
            add(rates, "hugging face plain", kind, hugging_face(subjects.llama, prompts, max_bytes, now))
        if subjects.tuning:
            found = hugging_face(subjects.llama, prompts, max_bytes, now, prompt_lookup_num_tokens=10)
            add(rates, "hugging face prompt lookup", kind, found)
    if kind == "code":
        for name, model in subjects.gguf.items():
            add(rates, name, kind, model.generate(prompts, max_bytes, threads, now))


def add(rates: Rates, tool: str, kind: str, found: dict[str, float]) -> None:
    """Note what was found."""
    rates.setdefault(tool, {}).setdefault(kind, []).append(found["bytes"] / found["seconds"])


def figures(rates: Rates, per_step: dict[str, list[float]], batch: dict[DraftPolicy, list[float]]) -> dict[str, Any]:
    """Medians, spreads, and ratios of medians."""
    median = {tool: {kind: statistics.median(one) for kind, one in by.items()} for tool, by in rates.items()}
    plain = median["bytelm none"]
    result: dict[str, Any] = {
        "bytes_per_second": {tool: {kind: summary(one) for kind, one in by.items()} for tool, by in rates.items()},
        "plain_over_hf": over(plain["code"], median.get("hugging face plain", {}).get("code")),
        "plain_over_llama_cpp": {
            precision: over(plain["code"], best_llama_cpp(median, precision)) for precision in GGUF_PRECISIONS
        },
    }
    adaptive = median.get("bytelm adaptive")
    if adaptive is None:
        return result
    over_plain = {kind: round(adaptive[kind] / plain[kind], 3) for kind in plain}
    fixed = {
        kind: max(median[f"bytelm {policy}"][kind] for policy in POLICIES if policy != "adaptive") for kind in plain
    }
    over_llama = {precision: over(adaptive["code"], best_llama_cpp(median, precision)) for precision in GGUF_PRECISIONS}
    gain = statistics.median(batch["adaptive"]) / statistics.median(batch["none"])
    return result | {
        "bytes_per_step": {kind: round(statistics.median(one), 2) for kind, one in per_step.items()},
        "speculative_over_plain": over_plain,
        "adaptive_over_best_fixed": {kind: round(adaptive[kind] / fixed[kind], 3) for kind in plain},
        "speculative_over_llama_cpp": over_llama["f32"],
        "speculative_over_llama_cpp_by_precision": over_llama,
        "batch16_bytes_per_second": {policy: summary(one) for policy, one in batch.items()},
        "batch16_over_batch1": round(gain / ((over_plain["code"] + over_plain["prose"]) / 2), 3),
    }


def best_llama_cpp(median: dict[str, dict[str, float]], precision: str) -> float | None:
    """The faster of llama.cpp's two kinds of attention; None where it was not measured."""
    found = [by["code"] for tool, by in median.items() if tool.startswith(f"llama.cpp {precision}")]
    return max(found, default=None)


def over(ours: float, theirs: float | None) -> float | None:
    """A ratio; None where the other was not measured."""
    return None if theirs is None else round(ours / theirs, 3)


def summary(rates: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": round(statistics.median(rates), 1), "least": round(min(rates), 1), "most": round(max(rates), 1)}


def say(line: str) -> None:
    """Tell a person who waits."""
    print(line, file=sys.stderr, flush=True)


def loaded_as(run: Path, precision: WeightPrecision) -> LanguageModel | None:
    """A run with weights of a precision; None where int8 cannot be had, and said so."""
    try:
        return load(run, precision=precision)
    except ConfigError as error:
        if precision != "int8":
            raise
        say(str(error))
        return None


def prepare(arguments: argparse.Namespace, folder: Path) -> Subjects:
    """Load and write what is going to be measured.

    Args:
        arguments: Of the command line.
        folder: For GGUF files.
    """
    if arguments.run is not None:
        loaded = {precision: one for precision in DTYPES if (one := loaded_as(arguments.run, precision)) is not None}
        models = {precision: one.model for precision, one in loaded.items()}
        context_bytes = loaded["float32"].context_bytes
    else:
        torch.manual_seed(0)
        shape = shape_of(arguments.shape)
        models = {precision: ByteLM(shape, HeadsConfig(count=8)) for precision in DTYPES}
        can_be_int8 = not why_not_int8(torch.device("cpu"))
        for precision, dtype in DTYPES.items():
            models[precision].load_state_dict(models["float32"].state_dict())
            models[precision].to(dtype=dtype).eval().pack(int8=precision == "int8" and can_be_int8)
        if not models["int8"].int8:
            del models["int8"]
        context_bytes = 2048
    if arguments.precision not in models:
        raise SystemExit("int8 cannot be had here, or no matrix is large enough for it")
    length = min(256, context_bytes // 2)
    data = texts(arguments.data)
    first = {kind: text[: len(text) // 2] for kind, text in data.items()}
    second = {kind: text[len(text) // 2 :] for kind, text in data.items()}
    drafting = arguments.run is not None
    kinds = KINDS if drafting else KINDS[:1]
    many = [piece for kind in ("code", "prose") for piece in prompts_of(second[kind], 8, length, 3)]
    subjects = Subjects(
        models=models,
        context_bytes=context_bytes,
        precision=arguments.precision,
        prompts={kind: prompts_of(second[kind], arguments.prompts, length, 1) for kind in kinds},
        tuning={kind: prompts_of(first[kind], 8, length, 2) for kind in kinds} if drafting else {},
        many=[prompt[: 16 + 13 * place % length] for place, prompt in enumerate(many)],
        max_bytes=arguments.max_bytes,
        absent=absent(("transformers", "llama_cpp", "gguf")),
    )
    if drafting:
        say("fitting the correction of the draft heads")
        known = {kind: first[kind] for kind in ("code", "prose")}
        fitted = best_pairs(subjects.model, known, context_bytes=context_bytes)
        subjects.pairs = None if fitted is None else fitted.pairs
        subjects.facts["draft_heads_corrected"] = subjects.pairs is not None
    if "transformers" in subjects.absent:
        return subjects
    llama = random_llama(subjects.model.config)
    subjects.facts["parameters_of_llama"] = sum(parameter.numel() for parameter in llama.parameters())
    if not subjects.absent:
        files = {precision: folder / f"{precision}.gguf" for precision in GGUF_PRECISIONS}
        for precision, file in files.items():
            write_gguf(llama, file, precision)
        found = differences(llama, files, subjects.prompts["code"][0][:128])
        say(f"largest difference of logits from Hugging Face's, over the largest logit: {found}")
        subjects.facts["llama_cpp_difference"] = {precision: float(f"{one:.2g}") for precision, one in found.items()}
        for precision, file in files.items():
            subjects.gguf[f"llama.cpp {precision}"] = LlamaCpp(file)
            subjects.gguf[f"llama.cpp {precision}, no flash attention"] = LlamaCpp(file, exact=True)
    subjects.llama = llama.to(device=subjects.model.embedding.device, dtype=DTYPES[arguments.precision])
    return subjects


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--run", type=Path)
    subject.add_argument("--shape", help="of a model with random weights: WIDTH,LAYERS,HEADS,KV_HEADS,INNER")
    parser.add_argument("--data", type=Path)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    both = "1,2" if cores > 1 else "1"
    parser.add_argument("--threads", default=both, help=f"numbers of threads, separated by commas; default: {both}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-bytes", type=int, default=192)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--precision", choices=tuple(DTYPES), default="float32")
    arguments = parser.parse_args()
    counts = [int(one) for one in arguments.threads.split(",")]
    if max(counts) > cores:
        parser.error(f"{max(counts)} threads would share {cores} cores: what waits there by spinning takes forever")
    warnings.filterwarnings("ignore")

    torch.set_num_threads(counts[0])
    with tempfile.TemporaryDirectory() as folder:
        subjects = prepare(arguments, Path(folder))
        results = {str(threads): measure(subjects, threads, arguments.repeats) for threads in counts}
        for model in subjects.gguf.values():
            model.close()
    print(
        json.dumps(
            {
                "machine": machine(),
                "parameters": subjects.model.parameter_counts()["total"],
                "precision": arguments.precision,
                "repeats": arguments.repeats,
                "prompts": arguments.prompts,
                "max_bytes": arguments.max_bytes,
                "absent": subjects.absent,
                "weights_of_other_tools": "random, of the same shape",
                **subjects.facts,
                "threads": counts[0],
                **results[str(counts[0])],
                "by_threads": results,
            }
        )
    )


if __name__ == "__main__":
    main()
