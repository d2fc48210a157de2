"""Decoding speed, plain and self-speculative, beside other tools with a model of the same shape.

    python tests/bench/bench_decode.py --run RUN [--data FOLDER] [--threads 1] [--repeats 3] [--max-bytes 192]

RUN is a trained run; FOLDER holds held-out files named ``code*``, ``prose*``, ``random*`` and ``repetitive*`` (kinds
that are missing are taken from Python's standard library, the shipped sample, or made). Variants take turns; with one
thread processor time is counted, so that neighbours on the machine disturb little. Beside: Hugging Face ``generate``
with a Llama of the same shape and byte vocabulary, and random weights, plain and with prompt lookup (extra
``bench``); llama.cpp through llama-cpp-python (extra ``bench-llama``). What is not installed is named in the result.
The last line is one JSON object.
"""

import argparse
import importlib
import importlib.util
import json
import random
import statistics
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine

from bytelm.api import LanguageModel, load
from bytelm.decode import DecodePlan, Request, decode_batch
from bytelm.generation import GenerateSettings, Step
from bytelm.quickstart import unpack_sample
from bytelm.tune import measure_costs, tune

KINDS = ("code", "prose", "random", "repetitive")
POLICIES = ("none", "adaptive", "heads", "tree", "ngram")


def texts(folder: Path | None) -> dict[str, bytes]:
    """Held-out bytes of each kind."""
    found = {}
    for kind in KINDS:
        files = sorted(folder.glob(f"{kind}*")) if folder else []
        found[kind] = b"".join(file.read_bytes() for file in files)
    if not found["code"]:
        found["code"] = b"".join(
            file.read_bytes() for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]
        )
    if not found["prose"]:
        with tempfile.TemporaryDirectory() as unpacked:
            unpack_sample(Path(unpacked))
            found["prose"] = max((file.read_bytes() for file in Path(unpacked).rglob("*") if file.is_file()), key=len)
    source = random.Random(0)
    found["random"] = found["random"] or source.randbytes(1 << 15)
    line = b"name,%d,the same words in every line of a long table;\n"
    found["repetitive"] = found["repetitive"] or b"".join(line % (row // 40) for row in range(600))
    return found


def prompts_of(data: bytes, count: int, length: int, seed: int) -> list[bytes]:
    """Pieces from random places."""
    source = random.Random(seed)
    return [data[place : place + length] for place in (source.randrange(len(data) - length) for _ in range(count))]


def clock() -> Callable[[], float]:
    """Processor time where one thread works."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def ours(
    model: LanguageModel, prompts: Sequence[bytes], plan: DecodePlan, draft: str, max_bytes: int, slots: int = 1
) -> dict[str, float]:
    """Bytes and seconds after the prompts were read, and steps."""
    now = clock()
    settings = [GenerateSettings(max_bytes=max_bytes, draft=draft, sequence=place) for place in range(len(prompts))]  # pyright: ignore[reportArgumentType]  # a policy
    seconds, done, steps = 0.0, 0, 0
    groups = [range(len(prompts))] if slots > 1 else [range(place, place + 1) for place in range(len(prompts))]
    for group in groups:
        asked = [Request(prompts[place], settings[place]) for place in group]
        begin: float | None = None
        seen: set[int] = set()
        for index, step in decode_batch(model.model, asked, context_bytes=model.context_bytes, slots=slots, tuned=plan):
            if begin is None:
                begin = now()  # prompts are read before the first step ends, in batches as alone
            elif index in seen:
                done += given(step)
            steps += 1
            seen.add(index)
        assert begin is not None
        seconds += now() - begin
    return {"bytes": done, "seconds": seconds, "steps": steps}


def given(step: Step) -> int:
    """Bytes of a step, those of a stop string or an end included."""
    return step.accepted + 1


def hugging_face(model: LanguageModel) -> Any:
    """A Llama of the same shape, random weights, in the same precision."""
    utilities = importlib.import_module("transformers.utils")
    # A torchvision of another torch, which some environments have, must not keep a text model from being imported.
    setattr(utilities, "is_torchvision_available", lambda: False)  # noqa: B010  it is not exported
    transformers = importlib.import_module("transformers")

    shape = model.config.model
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    llama: Any = transformers.LlamaForCausalLM(config)
    return llama.to(model.model.embedding.dtype).eval()


@torch.inference_mode()
def theirs(llama: Any, prompts: Sequence[bytes], max_bytes: int, **options: Any) -> dict[str, float]:
    """Bytes and seconds of Hugging Face ``generate``."""
    now, seconds, done = clock(), 0.0, 0
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        begin = now()
        llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
        first = now() - begin
        begin = now()
        out = llama.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_bytes, do_sample=False, **options
        )
        seconds += now() - begin - first
        done += out.shape[1] - ids.shape[1] - 1
    return {"bytes": done, "seconds": max(seconds, 1e-9), "steps": done}


def curve(model: LanguageModel) -> dict[str, list[float]]:
    """Cost of passes of 1, 4, 8 … rows over that of one row, for the bytes before it that fit."""
    costs = measure_costs(model.model, context_bytes=model.context_bytes, repeats=15)
    rows = costs[-1][1].rows
    return {"rows": list(rows), "over_one_row": [round(one / costs[-1][1].cost[0], 3) for one in costs[-1][1].cost]}


def summary(rates: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": round(statistics.median(rates), 1), "least": round(min(rates), 1), "most": round(max(rates), 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-bytes", type=int, default=192)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")

    model = load(arguments.run, precision=arguments.precision)
    length = min(256, model.context_bytes // 2)
    data = texts(arguments.data)
    kinds = {kind: prompts_of(data[kind], arguments.prompts, length, 1) for kind in KINDS}
    plan = tune(
        model.model,
        {kind: prompts_of(data[kind], 8, length, 2) for kind in KINDS},
        context_bytes=model.context_bytes,
        max_bytes=96,
        say=lambda line: print(line, file=sys.stderr),
    ).plan
    absent = [name for name in ("transformers", "llama_cpp") if importlib.util.find_spec(name) is None]
    llama = None if "transformers" in absent else hugging_face(model)

    rates: dict[str, dict[str, list[float]]] = {}
    per_step: dict[str, list[float]] = {kind: [] for kind in KINDS}
    batch: dict[str, list[float]] = {"none": [], "adaptive": []}
    for repeat in range(arguments.repeats):
        for kind, prompts in kinds.items():
            for policy in POLICIES:
                found = ours(model, prompts, plan, policy, arguments.max_bytes)
                rates.setdefault(f"bytelm {policy}", {}).setdefault(kind, []).append(found["bytes"] / found["seconds"])
                if policy == "adaptive":
                    per_step[kind].append((found["bytes"] + len(prompts)) / found["steps"])
            if llama is not None and kind in ("code", "repetitive"):
                for name, options in (("plain", {}), ("prompt lookup", {"prompt_lookup_num_tokens": 10})):
                    found = theirs(llama, prompts[:2], arguments.max_bytes // 2, **options)
                    rates.setdefault(f"hugging face {name}", {}).setdefault(kind, []).append(
                        found["bytes"] / found["seconds"]
                    )
        many = [
            prompt[: 16 + 13 * place % length]
            for place, prompt in enumerate(
                prompts_of(data["code"], 8, length, 3) + prompts_of(data["prose"], 8, length, 3)
            )
        ]
        for policy, found_rates in batch.items():
            found = ours(model, many, plan, policy, arguments.max_bytes // 2, slots=16)
            found_rates.append(found["bytes"] / found["seconds"])
        print(f"round {repeat + 1} of {arguments.repeats}", file=sys.stderr)

    median = {tool: {kind: statistics.median(one) for kind, one in by.items()} for tool, by in rates.items()}
    plain = median["bytelm none"]
    over_plain = {kind: round(median["bytelm adaptive"][kind] / plain[kind], 3) for kind in KINDS}
    fixed = {kind: max(median[f"bytelm {policy}"][kind] for policy in POLICIES[2:]) for kind in KINDS}
    hf = median.get("hugging face plain", {}).get("code")
    batch_gain = statistics.median(batch["adaptive"]) / statistics.median(batch["none"])
    alone_gain = (over_plain["code"] + over_plain["prose"]) / 2
    print(
        json.dumps(
            {
                "machine": machine(),
                "parameters": model.model.parameter_counts()["total"],
                "precision": arguments.precision,
                "threads": arguments.threads,
                "repeats": arguments.repeats,
                "absent": absent,
                "bytes_per_second": {
                    tool: {kind: summary(one) for kind, one in by.items()} for tool, by in rates.items()
                },
                "bytes_per_step": {kind: round(statistics.median(one), 2) for kind, one in per_step.items()},
                "speculative_over_plain": over_plain,
                "adaptive_over_best_fixed": {
                    kind: round(median["bytelm adaptive"][kind] / max(fixed[kind], plain[kind]), 3) for kind in KINDS
                },
                "plain_over_hf": None if hf is None else round(plain["code"] / hf, 3),
                "speculative_over_llama_cpp": None,
                "step_cost_rows": curve(model),
                "batch16_bytes_per_second": {policy: summary(one) for policy, one in batch.items()},
                "batch16_over_batch1": round(batch_gain / alone_gain, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
