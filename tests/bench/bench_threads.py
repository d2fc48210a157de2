"""What torch's waiting threads cost: a training step and a decoding step of `tiny` through torch, on a quiet and on a
busy machine.

    python tests/bench/bench_threads.py

Each setting runs in a process of its own, because OpenMP reads it once; settings take turns, three rounds. The last
line is one JSON object: median, least and most milliseconds of a step, by setting, quiet and beside one busy process.
"""

import json
import os
import statistics
import subprocess
import sys
import time

SETTINGS: dict[str, tuple[int, dict[str, str]]] = {
    "two threads, default": (2, {}),
    "two threads, passive": (2, {"OMP_WAIT_POLICY": "PASSIVE"}),
    "two threads, spin 1000": (2, {"GOMP_SPINCOUNT": "1000"}),
    "two threads, spin 10000": (2, {"GOMP_SPINCOUNT": "10000"}),
    "one thread": (1, {}),
}
ROUNDS = 3
SECONDS = 4.0


def measure(threads: int) -> dict[str, float]:
    """Milliseconds of a training step and of decoding steps, in this process."""
    import torch

    from bytelm.config import RunConfig
    from bytelm.decode import GenerateSettings, generate
    from bytelm.loss import multi_byte_loss
    from bytelm.model import ByteLM
    from bytelm.packing import plain_batch

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    config = RunConfig.build("tiny")
    model = ByteLM(config.model, config.heads)
    windows = torch.randint(0, 256, (config.train.batch_windows, config.data.window_bytes + config.heads.count))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = multi_byte_loss(model, plain_batch(windows, config.heads.count))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        step()
        steps += 1
    found = {"train": 1e3 * (time.perf_counter() - begin) / steps}
    for name, settings in {
        "plain": GenerateSettings(max_bytes=40, temperature=1.0, draft="none"),
        "adaptive": GenerateSettings(max_bytes=40, temperature=1.0),
    }.items():
        times = []
        for _ in range(3):
            done = generate(model, b"hello", settings, context_bytes=config.data.window_bytes)
            times.append(1e3 * done.elapsed_s / done.steps)
        found[f"decode, {name}"] = min(times)
    return found


def measured(name: str) -> dict[str, float]:
    """The same in a process of its own."""
    _, variables = SETTINGS[name]
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, __file__, name], env=environment | variables, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure everything and print."""
    from machine import machine

    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for load in ("quiet", "busy"):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if load == "busy" else None
        try:
            for name in [name for _ in range(ROUNDS) for name in SETTINGS]:
                for what, milliseconds in measured(name).items():
                    table.setdefault(name, {}).setdefault(f"{what}, {load}", {"ms": []})["ms"].append(milliseconds)
        finally:
            if busy is not None:
                busy.kill()
    summary = {
        name: {
            what: [round(value, 2) for value in (statistics.median(found["ms"]), min(found["ms"]), max(found["ms"]))]
            for what, found in row.items()
        }
        for name, row in table.items()
    }
    print(json.dumps({"machine": machine(), "rounds": ROUNDS, "median_least_most_ms": summary}))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(measure(SETTINGS[sys.argv[1]][0])))
    else:
        main()
