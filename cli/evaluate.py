"""``bytelm eval``: what a model is worth on held-out bytes and on tasks."""

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bytelm.cli import console
from bytelm.cli.quantities import parse_size

if TYPE_CHECKING:
    from bytelm.held_out import HeldOut
    from bytelm.task import Progress as Told

_OF_A_TASK: Final = "Tasks"
_OF_PROGRAMS: Final = "Generated programs"
_OF_HELD_OUT: Final = "Held-out bytes"


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, one of its checkpoints, or the name of a shipped model.")
    ],
    task: Annotated[
        str,
        typer.Option(
            "--task",
            metavar="NAME,…",
            help="bpb, acceptance, humaneval, mbpp, lambada, choices (or hellaswag, arc_easy, arc_challenge, piqa), "
            "cute, utf8, induction, arithmetic.",
            rich_help_panel=_OF_A_TASK,
        ),
    ] = "bpb",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="File of the task's examples, or folder with files of several tasks. Default: the Hugging Face hub.",
            rich_help_panel=_OF_A_TASK,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Examples at most, drawn by --seed.", rich_help_panel=_OF_A_TASK),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of what is drawn and sampled.", rich_help_panel=_OF_A_TASK)
    ] = 0,
    samples: Annotated[
        bool, typer.Option("--samples", help="Keep every example in the results file.", rich_help_panel=_OF_A_TASK)
    ] = False,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-bytes", min=1, help="Bytes of a continuation. Default: the task's.", rich_help_panel=_OF_A_TASK
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Score this file, as one document.", rich_help_panel=_OF_HELD_OUT)
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            help="Score a split of this corpus. Default: the run's own one; for a shipped model bytelm's own code.",
            rich_help_panel=_OF_HELD_OUT,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Which split of the corpus. Default: validation.", rich_help_panel=_OF_HELD_OUT),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            min=2,
            help="Ids of a window. Default: data.window_bytes of the run.",
            rich_help_panel=_OF_HELD_OUT,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride", help="Ids that a window advances. Default: half the context.", rich_help_panel=_OF_HELD_OUT
        ),
    ] = None,
    limit_bytes: Annotated[
        str | None,
        typer.Option(
            "--limit-bytes",
            metavar="SIZE",
            help="Score pieces from evenly spread places, in all this much.",
            rich_help_panel=_OF_HELD_OUT,
        ),
    ] = None,
    compress: Annotated[
        bool,
        typer.Option(
            "--compress",
            help="Prove bits per byte: code the bytes arithmetically and decode them back, one by one.",
            rich_help_panel=_OF_HELD_OUT,
        ),
    ] = False,
    prompts: Annotated[
        int,
        typer.Option(
            "--prompts", min=1, help="Held-out prompts that acceptance continues.", rich_help_panel=_OF_HELD_OUT
        ),
    ] = 16,
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code",
            help="Run generated programs, in a sandbox; without it they are only written and parsed.",
            rich_help_panel=_OF_PROGRAMS,
        ),
    ] = False,
    programs: Annotated[
        int,
        typer.Option(
            "--programs", min=1, help="Programs for each problem, at each temperature.", rich_help_panel=_OF_PROGRAMS
        ),
    ] = 200,
    pass_at: Annotated[
        str | None,
        typer.Option(
            "--pass-at",
            metavar="K:T,…",
            help="For each k of pass@k the temperature. Default: 1:0.1,10:0.8,100:0.8, up to the number of programs.",
            rich_help_panel=_OF_PROGRAMS,
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="torch device; auto takes CUDA where there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Measure a model: bits per byte and what its heads are worth on held-out bytes, and how it does on tasks.

    Every byte is scored once, from its raw bytes; the rule about its context is part of the result. What a task
    finds is printed and kept in the run's folder eval/, or in ./eval for a model that ships with bytelm.
    """
    limit_of_bytes = None if limit_bytes is None else parse_size(limit_bytes)
    with console.alive("loading torch and the model"):
        from bytelm.api import load
        from bytelm.checkpoint import find_checkpoint
        from bytelm.errors import StorageError
        from bytelm.held_out import open_held_out
        from bytelm.task import Request
        from bytelm.tasks import TASKS, check_vocabulary, keep, parse_pass_at, parse_tasks, results_folder

        names = parse_tasks(task)
        asked = parse_pass_at(pass_at, programs)
        checkpoint = find_checkpoint(run)
        model = load(checkpoint, device=device, precision="float32")
        for name in names:
            check_vocabulary(name, model)
    folder = results_folder(checkpoint)

    @functools.cache  # a pipe can be read once, and tasks ask for it again and again
    def held_out() -> "HeldOut":
        return open_held_out(checkpoint, file=file, corpus=corpus, split=split, limit_bytes=limit_of_bytes)

    summary: dict[str, Any] = {"checkpoint": str(checkpoint), "tasks": {}}
    kept: list[str] = []
    for name in names:
        begun_s = time.monotonic()
        with _bar(name) as told:
            request = Request(
                model=model,
                checkpoint=checkpoint,
                held_out=held_out,
                folder=folder,
                progress=told,
                data=data,
                limit=limit,
                seed=seed,
                context_bytes=context,
                stride=stride,
                limit_bytes=limit_of_bytes,
                compress=compress,
                prompts=prompts,
                max_bytes=max_bytes,
                run_code=run_code,
                samples=programs,
                pass_at=asked,
            )
            found = TASKS[name](request)
        facts = {**found.facts, "seed": seed, "limit": limit, "elapsed_s": round(time.monotonic() - begun_s, 3)}
        summary["tasks"][name] = facts
        if not as_json:
            for line in found.lines:
                console.result(line)
        try:
            kept.append(str(keep(folder, checkpoint, name, facts, found.samples if samples else ())))
        except StorageError as error:
            console.say(f"what {name} found is not kept: {error}")
    if as_json:
        console.print_json(summary)
    elif kept:
        console.say(f"kept in {', '.join(kept)}")


@contextlib.contextmanager
def _bar(task: str) -> "Iterator[Told]":
    """A progress bar on a terminal, nothing elsewhere."""
    people = console.people()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=people, transient=True, disable=not people.is_terminal) as progress:
        bar = progress.add_task(task, total=None)

        def told(done: int, total: int | None) -> None:
            progress.update(bar, completed=done, total=total)

        yield told
