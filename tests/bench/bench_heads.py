"""What eight heads cost the language model: bits per byte of head 0 with and without them, at equal steps and seconds.

    python tests/bench/bench_heads.py --corpus CORPUS --out OUT [--sizes tiny 3M 8M] [--seeds 3] [--steps 1000]
        [--weight-ratio 0.3] [--row-share 0.5]

Each size is trained with one head, with ``--heads`` heads of equal weight on all rows (the paper's setting), and with
a weight ratio and a share of rows, which are those of the preset ``tiny`` unless others are given. Steps are equal; a
further run with one head has as many steps as fit into the processor seconds of the latter's. Seconds are of the
processor, so that neighbours on the machine disturb little; the ratio of a step with all heads over one with one head
is the median of paired steps.

``kept`` is the share of the extra bytes per step (beyond the one that plain decoding gives) that remains, over equal
weights. Bytes per step are those of the last validation: how far the heads agree with held-out text, by greedy choices.

A run that is finished in OUT is not trained again; one that was cut off is begun anew, for its seconds count. The last
line is one JSON object.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, Final

import torch
from machine import machine

from bytelm.config import RunConfig
from bytelm.events import Finished, Progress
from bytelm.presets import PRESETS
from bytelm.run_log import read_log
from bytelm.train import train

SIZES: Final[dict[str, list[str]]] = {
    "tiny": [],
    "3M": ["model.d_model=192", "model.layers=6", "model.d_ff=512", "model.attention_heads=6", "model.kv_heads=3"],
    "8M": ["model.d_model=320", "model.layers=6", "model.d_ff=864", "model.attention_heads=10", "model.kv_heads=5"],
}
_OWN: Final = PRESETS["tiny"]["heads"]


def arms(heads: int, weight_ratio: float, row_share: float) -> dict[str, list[str]]:
    """Settings of each arm; the last one is that of the weights and rows that are asked for."""
    return {
        "one head": ["heads.count=1", "heads.weight_ratio=1", "heads.row_share=1"],
        "equal weights": [f"heads.count={heads}", "heads.weight_ratio=1", "heads.row_share=1"],
        f"ratio {weight_ratio:g}, rows {row_share:g}": [
            f"heads.count={heads}",
            f"heads.weight_ratio={weight_ratio}",
            f"heads.row_share={row_share}",
        ],
    }


def trained(corpus: str, run: Path, changes: list[str], seed: int, steps: int) -> dict[str, float]:
    """Train a run unless that was done before; its last validation and the processor seconds of the whole run."""
    config = RunConfig.build(
        "tiny",
        [
            *changes,
            f"train.seed={seed}",
            f"train.steps={steps}",
            "train.threads=1",
            "train.sample_bytes=0",
            f"train.validate_every_steps={steps}",
            "train.keep_best=false",
        ],
    )
    result = run / "seconds.json"
    if not result.exists():
        shutil.rmtree(run, ignore_errors=True)
        begun_s = time.process_time()
        for event in train(config, corpus, run):
            if isinstance(event, Finished) and event.reason == "budget":
                result.write_text(json.dumps({"seconds": time.process_time() - begun_s}), encoding="utf-8")
    last = [record for record in read_log(run) if record["kind"] == "validation"][-1]
    return {
        "bits_per_byte": last["bits_per_byte"],
        "bytes_per_step": last["bytes_per_step_estimate"] or 1.0,
        **json.loads(result.read_text(encoding="utf-8")),
    }


def seconds_of_a_step(corpus: str, changes: dict[str, list[str]], folder: Path, rounds: int = 5) -> dict[str, float]:
    """Processor seconds of a step of each arm over those of one head: medians of rounds in which all take turns."""
    found: dict[str, list[float]] = {name: [] for name in changes}
    for turn in range(rounds):
        for name, own in changes.items():
            config = RunConfig.build("tiny", [*own, "train.steps=24", "train.threads=1", "train.sample_bytes=0"])
            config = config.with_changes([f"train.seed={turn}", "train.validation_bytes=1024"])
            run, begun_s = folder / f"{name.replace(' ', '-')}-{turn}", 0.0
            shutil.rmtree(run, ignore_errors=True)
            for event in train(config, corpus, run):
                if isinstance(event, Progress):
                    if event.step == 20:
                        found[name].append(time.process_time() - begun_s)
                    begun_s = time.process_time()
    return {
        name: statistics.median(one / other for one, other in zip(seconds, found["one head"], strict=True))
        for name, seconds in found.items()
    }


def _folder(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def main() -> None:
    """Train, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--weight-ratio", type=float, default=_OWN["weight_ratio"])
    parser.add_argument("--row-share", type=float, default=_OWN["row_share"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "steps": options.steps, "heads": options.heads}
    for size in options.sizes:
        asked = arms(options.heads, options.weight_ratio, options.row_share)
        of_size = {name: [*SIZES[size], *own] for name, own in asked.items()}
        ours = list(asked)[-1]
        places = options.out / f"{size}-{options.heads}-{options.steps}"
        places.mkdir(parents=True, exist_ok=True)
        timed = places / f"costs-{_folder(ours)}.json"
        if not timed.exists():
            timed.write_text(
                json.dumps(seconds_of_a_step(options.corpus, of_size, places / "timing")), encoding="utf-8"
            )
        costs: dict[str, float] = json.loads(timed.read_text(encoding="utf-8"))
        found: dict[str, list[dict[str, float]]] = {}
        longer = round(options.steps * costs[ours])
        for seed in range(options.seeds):
            for name, changes in [*of_size.items(), ("one head, equal seconds", of_size["one head"])]:
                steps = longer if "seconds" in name else options.steps
                run = places / f"{_folder(name)}-{steps}-{seed}"
                found.setdefault(name, []).append(trained(options.corpus, run, changes, seed, steps))
        print(f"\n{size}, {options.heads} heads, {options.steps} steps, {options.seeds} seeds\n")
        print("| | bits per byte | over one head | over it, equal seconds | bytes per step | kept | time of a step |")
        print("|---|---|---|---|---|---|---|")
        rows: dict[str, Any] = {}
        extra = [one["bytes_per_step"] - 1.0 for one in found["equal weights"]]
        for name, runs in found.items():
            bits = [one["bits_per_byte"] for one in runs]
            over, over_seconds = (
                [one - other["bits_per_byte"] for one, other in zip(bits, found[base], strict=True)]
                for base in ("one head", "one head, equal seconds")
            )
            steps = [one["bytes_per_step"] for one in runs]
            kept = [(one - 1.0) / most for one, most in zip(steps, extra, strict=True)]
            rows[name] = {
                "bits_per_byte": bits,
                "over_one_head": over,
                "over_one_head_at_equal_seconds": over_seconds,
                "bytes_per_step": steps,
                "kept": kept,
                "time_of_a_step": costs.get(name, 1.0),
            }
            print(
                f"| {name} | {statistics.mean(bits):.3f} | {statistics.mean(over):+.3f} | "
                f"{statistics.mean(over_seconds):+.3f} | {statistics.mean(steps):.3f} | {statistics.mean(kept):.0%} | "
                f"{costs.get(name, 1.0):.2f} |"
            )
        result[size] = rows
    print()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
