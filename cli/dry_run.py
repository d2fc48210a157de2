"""``bytelm train --dry-run``: what a run will take, for people and for programs; nothing is written."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bytelm.cli import console
from bytelm.cli.quantities import duration, size

if TYPE_CHECKING:
    from bytelm.config import RunConfig
    from bytelm.estimate import Estimate


def dry_run(config: "RunConfig", corpus: list[str], out: Path, *, resume: Any, as_json: bool) -> int:
    """Estimate a run and print what was found.

    Args:
        config: All settings.
        corpus: Folder or address of the corpus, or several with weights.
        out: Folder of the run, which is not made.
        resume: As for the run itself.
        as_json: Print one JSON object instead of lines.
    """
    with console.alive("loading torch, then measuring a few steps; nothing is written"):
        from bytelm.estimate import estimate

        told = estimate(config, corpus, out, resume=resume)
    if as_json:
        console.print_json({"dry_run": True, "run": str(out), **asdict(told), "memory_bytes": told.memory.total})
    else:
        for name, text in _lines(told):
            console.result(f"{name:<11} {text}")
    return console.EXIT_OK


def _lines(told: "Estimate") -> Iterator[tuple[str, str]]:
    parts = ", ".join(f"{name} {count:,}" for name, count in told.parameters.items() if name != "total")
    yield "parameters", f"{told.parameters['total']:,}: {parts}"
    yield "operations", f"{told.flops_per_byte / 1e6:,.1f} million for each byte, forward and backward"
    parts = ", ".join(f"{name} {size(count)}" for name, count in asdict(told.memory).items() if count)
    yield "memory", f"{size(told.memory.total)} at the peak of a step on {told.device}, {told.precision}: {parts}"
    if told.speed is not None:
        whole = "the program and what the allocator keeps included" if told.device == "cpu" else "in torch's allocator"
        yield "", f"{size(told.speed.peak_memory_bytes)} measured, {whole}"
    if told.saving_memory_bytes:
        yield "", f"{size(told.saving_memory_bytes)} more of main memory while checkpoints are written"
    if told.available_memory_bytes is not None:
        yield "", f"{size(told.available_memory_bytes)} were free"
    yield "disk", f"{size(told.checkpoint_bytes)} a checkpoint, {size(told.disk_bytes)} for those that are kept"
    if told.speed is None:
        yield "speed", f"not measured: {told.obstacle}"
        return
    speed = told.speed
    yield (
        "speed",
        f"{size(speed.bytes_per_second)}/s, {speed.step_s:.3g} s for a step of {size(told.step_bytes)} "
        f"(mean of {speed.steps}); {100 * speed.mfu:.1f} % of the device's peak ({speed.peak_flops})",
    )
    yield "time", f"{duration(speed.time_left_s)} for {speed.steps_left:,} steps and their validations"
