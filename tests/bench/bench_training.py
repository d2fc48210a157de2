"""What K heads, transformer heads, windows and our own model cost in training: time of a step, and peak memory.

    python tests/bench/bench_training.py [--rounds 5] [--steps 3] [--quick] [--only CASE ...]

Every case is a whole step (forward, backward, clipping, fused AdamW) on the same random bytes, in a process of its
own. Cases take turns, as many rounds as asked for. In a round a case's time is the median of its steps after one that
is not counted; a ratio is the median of the rounds' ratios, with the least and the most beside it under ``spread``.

Peak memory is measured in further processes, on two steps: on a GPU what torch's allocator held at most, on a CPU the
resident memory above that of the process before it had a model. There the C library is told to give freed memory back
at once (``MALLOC_MMAP_THRESHOLD_``), for all cases alike, because otherwise its leftovers are measured as well; times
are taken without that.

On a GPU one process measures everything, because each would compile its layers anew, and as a training runs there:
layers compiled, the backend that ``auto`` takes; a case's time is the median of its steps after three.

The shape is that of a preset: on a CPU ``small`` (45 M parameters) with windows of 2,048 bytes, on a GPU ``small`` and
``base`` as they are, each micro-batch a step, and ``base`` with windows of 32,768 bytes too. The cases:

    linear_k1, _k8, _k32          K linear heads
    transformer_k1, _k8           K transformer heads, K - 1 layers taken off the trunk: equal parameters
    naive_transformer_k8          the same with the sum of all losses, as one would write it
    full_attention                one linear head, all layers global: what the Llama below computes
    hf_llama                      transformers' LlamaForCausalLM of that shape, with our vocabulary; SDPA
    full_8192, window_8192        one window of 8,192 bytes, two layers, all global or all local

``hf_llama`` is left out where transformers is missing (``pip install 'bytelm[bench]'``), and named under ``absent``.

The last line is one JSON object.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine

CASES: dict[str, list[str]] = {
    "linear_k1": ["heads.count=1"],
    "linear_k8": ["heads.count=8"],
    "linear_k32": ["heads.count=32"],
    "transformer_k1": ["heads.family=transformer", "heads.count=1"],
    "transformer_k8": ["heads.family=transformer", "heads.count=8", "heads.keep_parameters_equal=true"],
    "naive_transformer_k8": [
        "heads.family=transformer",
        "heads.count=8",
        "heads.keep_parameters_equal=true",
        "heads.backward=naive",
    ],
    "full_attention": ["heads.count=1", 'model.attention_pattern=["global"]'],
    "hf_llama": ["heads.count=1", 'model.attention_pattern=["global"]'],
    "full_8192": [
        "heads.count=1",
        "model.layers=2",
        "data.window_bytes=8192",
        "train.batch_windows=1",
        'model.attention_pattern=["global"]',
    ],
    "window_8192": [
        "heads.count=1",
        "model.layers=2",
        "data.window_bytes=8192",
        "train.batch_windows=1",
        'model.attention_pattern=["local"]',
    ],
}
RATIOS = {
    "linear_k8_over_k1": ("linear_k8", "linear_k1"),
    "linear_k32_over_k1": ("linear_k32", "linear_k1"),
    "transformer_k8_over_k1": ("transformer_k8", "transformer_k1"),
    "naive_transformer_k8_over_k1": ("naive_transformer_k8", "transformer_k1"),
}
OTHER_RATIOS = {
    "step_time_over_hf_llama": ("full_attention", "hf_llama"),
    "window_over_full": ("window_8192", "full_8192"),
}
CPU_SHAPE = ["data.window_bytes=2048", "train.batch_windows=2"]
QUICK_SHAPE = [*CPU_SHAPE, "model.layers=9", "model.d_model=128", "model.attention_heads=4", "model.kv_heads=2"]
SEED = 0


def resident_bytes() -> int:
    """Resident memory of this process now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def hf_llama(config: Any) -> Any:
    """The Llama of transformers with the shape of ours."""
    from llama import llama

    context = config.data.window_bytes
    return llama(config.model, context_ids=context, use_cache=False, attn_implementation="sdpa")


def measure(case: str, shape: list[str], steps: int, what: str) -> dict[str, Any]:
    """Seconds of each step, or the peak of memory, of one case in this process."""
    import torch
    from torch import nn

    from bytelm.attention import choose_backend
    from bytelm.compiling import choose_compile, compile_layers
    from bytelm.config import RunConfig
    from bytelm.job import choose_precision
    from bytelm.loss import multi_byte_loss
    from bytelm.mfu import mfu, peak_flops
    from bytelm.model import ByteLM
    from bytelm.optim import make_optimizer
    from bytelm.packing import plain_batch

    torch.manual_seed(SEED)
    preset, *changes = shape
    config = RunConfig.build(preset, [*changes, *CASES[case]])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(config.train, device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    with autocast():  # libraries of the products are loaded before memory is counted
        torch.randn(64, 64, device=device).matmul(torch.randn(64, 64, device=device))
    if case == "hf_llama":
        from llama import transformers

        _ = transformers().LlamaForCausalLM
    before = resident_bytes()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    ours = None
    if case == "hf_llama":
        model: nn.Module = hf_llama(config)
    else:
        channels = config.model.head_channels
        backend = choose_backend(config.train.attention_backend, device, dtype=dtype, channels=channels).backend
        model = ours = ByteLM(config.model, config.heads, attention_backend=backend)
        if choose_compile(config.train.compile, device):
            compile_layers(ours)
    model = model.to(device).train()
    optimizer = make_optimizer(model, config.train)
    width = config.data.window_bytes + config.heads.count
    windows_BW = torch.randint(0, 256, (config.train.batch_windows, width), dtype=torch.uint8).to(device)

    def loss() -> torch.Tensor:
        if ours is None:
            ids_BT = windows_BW[:, : config.data.window_bytes].long()
            return model(input_ids=ids_BT, labels=ids_BT).loss
        return multi_byte_loss(ours, plain_batch(windows_BW, config.heads.count), backward=config.heads.backward).loss

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    facts: dict[str, Any] = {
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "shape": f"{preset} {' '.join(changes)}",
        "step_bytes": config.train.batch_windows * config.data.window_bytes,
    }
    if what == "memory":
        step()
        step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return facts | {"peak_bytes": peak - before}
    for _ in range(3 if device.type == "cuda" else 1):  # on a GPU the first compile
        step()
    seconds = []
    for _ in range(steps):
        begun_s = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun_s)
    facts["step_s"] = seconds
    if device.type == "cuda":
        facts["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    if ours is not None:
        speed = facts["step_bytes"] / statistics.median(seconds)
        peak = peak_flops(device, precision)
        facts["mfu"] = mfu(ours.flops_per_byte(config.data.window_bytes, training=True), speed, peak)
        facts["peak_flops"] = peak.source
    return facts


def measured(case: str, shape: list[str], steps: int, what: str) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {"GOMP_SPINCOUNT": "1000", **os.environ}  # as the program sets it
    if what == "memory":
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    work = json.dumps({"case": case, "shape": shape, "steps": steps, "what": what})
    done = subprocess.run(
        [sys.executable, __file__, "--measure", work], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{case} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compared(table: dict[str, list[float]], cases: tuple[str, str]) -> tuple[float, float, float] | None:
    """Median, least and most of the rounds' ratios; None where a case was not measured."""
    above, below = (table.get(case) for case in cases)
    if not above or not below:
        return None
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def summarized(
    found: dict[str, dict[str, tuple[float, float, float] | None]], round_to: Callable[[float], float]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]]]:
    """Medians by name, and the spread by the same names."""
    medians: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, list[float]]] = {}
    for group, values in found.items():
        for name, value in values.items():
            if value is not None:
                medians.setdefault(group, {})[name] = round_to(value[0])
                spread.setdefault(group, {})[name] = [round_to(value[1]), round_to(value[2])]
    return medians, spread


def main() -> None:
    """Measure everything and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a narrow model and two rounds, to try the benchmark")
    parser.add_argument("--only", nargs="+", choices=CASES, help="these cases alone")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(**json.loads(options.measure))))
        return

    import torch

    absent = {} if importlib.util.find_spec("transformers") else {"transformers": "pip install 'bytelm[bench]'"}
    names = [name for name in CASES if not (absent and name == "hf_llama")]
    if options.only:
        names = [name for name in names if name in options.only]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers") if name not in absent}
    rounds, steps = options.rounds, options.steps
    if torch.cuda.is_available():
        conditions = {"machine": machine(), "versions": versions, "seed": SEED, "steps": steps, "absent": absent}
        print(json.dumps(conditions | on_the_gpu(names, steps)))
        return
    shape = ["small", *CPU_SHAPE]
    if options.quick:
        shape, rounds, steps = ["small", *QUICK_SHAPE], 2, 2

    times: dict[str, list[float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        for name in names:
            facts[name] = measured(name, shape, steps, "seconds")
            times.setdefault(name, []).append(statistics.median(facts[name].pop("step_s")))
            print(f"round {number + 1} {name}: {times[name][-1]:.3f} s", file=sys.stderr)
    peaks: dict[str, list[float]] = {}
    for name in names:
        peaks[name] = [measured(name, shape, steps, "memory")["peak_bytes"]]
        print(f"memory {name}: {peaks[name][0] / 1e6:.0f} MB", file=sys.stderr)
    medians, spread = summarized(
        {
            "step_time_ratio": {name: compared(times, cases) for name, cases in RATIOS.items()},
            "peak_memory_ratio": {name: compared(peaks, cases) for name, cases in RATIOS.items()},
            "other": {name: compared(times, cases) for name, cases in OTHER_RATIOS.items()},
        },
        lambda value: round(value, 4),
    )
    others = medians.pop("other", {})
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions,
        "seed": SEED,
        "rounds": rounds,
        "steps": steps,
        "absent": absent,
        **medians,
        **others,
        "spread": spread,
        "cases": {
            name: {
                **facts[name],
                "step_s": round(statistics.median(times[name]), 4),
                "peak_memory_gb": round(peaks[name][0] / 1e9, 4),
            }
            for name in names
        },
    }
    print(json.dumps(result))


GPU_CASES = ("linear_k1", "linear_k8", "linear_k32", "transformer_k1", "transformer_k8", "naive_transformer_k8")
GPU_SHAPES = {
    "small": (["small"], (*GPU_CASES, "full_attention", "hf_llama", "full_8192", "window_8192")),
    "base": (["base"], GPU_CASES),
    "base 32768": (["base", "data.window_bytes=32768", "train.batch_windows=4"], ("linear_k8",)),
}


def on_the_gpu(names: list[str], steps: int) -> dict[str, Any]:
    """Times, utilisation and peak memory of the presets as they are, for each family and K."""
    import torch

    cases: dict[str, dict[str, Any]] = {}
    for shape_name, (shape, cases_of_shape) in GPU_SHAPES.items():
        for name in cases_of_shape:
            if name not in names:
                continue
            label = f"{shape_name} {name}"
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                facts = measure(name, shape, steps, "both")
            except torch.OutOfMemoryError as error:
                cases[label] = {"out_of_memory": str(error).splitlines()[0]}
                continue
            facts["step_s"] = round(statistics.median(facts.pop("step_s")), 5)
            facts["peak_memory_gb"] = round(facts.pop("peak_bytes") / 1e9, 3)
            cases[label] = facts
            print(f"{label}: {json.dumps(facts)}", file=sys.stderr, flush=True)

    def ratios(shape_name: str, pairs: dict[str, tuple[str, str]], what: str) -> dict[str, float]:
        found = {
            ratio: [cases.get(f"{shape_name} {name}", {}).get(what) for name in pair] for ratio, pair in pairs.items()
        }
        return {ratio: round(above / below, 4) for ratio, (above, below) in found.items() if above and below}

    return {
        "step_time_ratio": {name: ratios(name, RATIOS, "step_s") for name in ("small", "base")},
        "peak_memory_ratio": {name: ratios(name, RATIOS, "peak_memory_gb") for name in ("small", "base")},
        **ratios("small", OTHER_RATIOS, "step_s"),
        "mfu": {name: round(facts["mfu"], 4) for name, facts in cases.items() if "mfu" in facts},
        "peak_memory_gb": {name: facts["peak_memory_gb"] for name, facts in cases.items() if "peak_memory_gb" in facts},
        "cases": cases,
    }


if __name__ == "__main__":
    main()
