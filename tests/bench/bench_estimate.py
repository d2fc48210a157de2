"""How near ``bytelm train --dry-run`` comes to what then happens: time, memory, disk.

    python tests/bench/bench_estimate.py [--rounds 3] [--only CASE ...]

Each case is estimated and then run to its end, as a person would: two commands, one after the other, on the sample
that ships with bytelm. The last line is one JSON object: for each case estimate over truth, median with least and
most, of the seconds of the run (its steps, validations and saving; without starting Python and opening the corpus), of
the peak of its memory, and of the size of its checkpoint.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample.tar.zst"
CASES: dict[str, list[str]] = {
    "tiny": ["--preset", "tiny", "--steps", "300", "--set=train.validate_every_steps=100"],
    "tiny, transformer heads, muon": [
        "--preset", "tiny", "--steps", "200", "--set=heads.family=transformer", "--set=train.optimizer=muon",
    ],
    "tiny, 16 windows, average": [
        "--preset", "tiny", "--steps", "60", "--set=train.batch_windows=16", "--set=train.ema_decay=0.99",
    ],
    "nano, 2 windows": [
        "--preset", "nano", "--steps", "20", "--set=train.batch_windows=2", "--set=train.accumulation=2",
    ],
}  # fmt: skip


def bytelm(*words: str) -> tuple[dict[str, Any], int]:
    """One command in a process of its own: the JSON that it prints, and the peak of its memory in bytes."""
    environment = {"GOMP_SPINCOUNT": "1000", **os.environ}  # as the program sets it
    command = [sys.executable, "-m", "bytelm.cli", *words, "--json"]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        err.seek(0)
        if status != 0:
            sys.exit(f"bytelm {' '.join(words)} failed:\n{err.read().decode()}")
        return json.loads(out.read()), usage.ru_maxrss * 1024


def compared(case: str, corpus: Path, run: Path) -> dict[str, float]:
    """Estimate over truth for one case."""
    words = ["train", "--corpus", str(corpus), "--out", str(run), *CASES[case]]
    told, _ = bytelm(*words, "--dry-run")
    assert not run.exists()
    done, peak = bytelm(*words)
    size = sum(path.stat().st_size for path in Path(done["checkpoint"]).iterdir())
    return {
        "seconds": told["speed"]["time_left_s"] / done["elapsed_s"],
        "memory": (told["speed"]["peak_memory_bytes"] + told["saving_memory_bytes"]) / peak,
        "disk": told["checkpoint_bytes"] / size,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CASES)
    options = parser.parse_args()

    ratios: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        # By a command: a process's peak begins with the memory of the one that starts it, so this one stays small.
        bytelm("ingest", str(SAMPLE), "--out", str(place / "corpus"))
        for number in range(options.rounds):
            for case in options.only or CASES:
                for what, ratio in compared(case, place / "corpus", place / f"{case} {number}").items():
                    ratios.setdefault(case, {}).setdefault(what, []).append(ratio)
                print(f"round {number + 1} {case}: {ratios[case]}", file=sys.stderr)
    summary = {
        case: {
            what: {
                "median": round(statistics.median(values), 4),
                "least": round(min(values), 4),
                "most": round(max(values), 4),
            }
            for what, values in row.items()
        }
        for case, row in ratios.items()
    }
    print(json.dumps({"machine": machine(), "rounds": options.rounds, "estimate_over_truth": summary}))


if __name__ == "__main__":
    main()
