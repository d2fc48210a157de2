"""``bytelm train``: from a corpus to a run, and on from where a run was saved."""

import contextlib
import enum
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bytelm.cli import console
from bytelm.cli.dry_run import dry_run
from bytelm.cli.interrupt import StopRequest
from bytelm.cli.quantities import parse_duration, parse_size

if TYPE_CHECKING:
    from bytelm.config import RunConfig
    from bytelm.ranks import Ranks
    from bytelm.tensorboard import TensorBoard
    from bytelm.train import Finished, Started

_DEFAULT_PRESET: Final = "tiny"
_LEAST_VALIDATIONS: Final = 8  # so that the curve of a run that is begun is a curve
_LEAST_VALIDATION_BYTES: Final = 4096
_VALIDATION_BYTES_A_SECOND: Final = 50
"""Of a budget of time: the preset ``tiny`` scores some 5,000 bytes a second on one slow core."""


class ResumeChoice(enum.StrEnum):
    """What to do with a run that was saved before."""

    never = "never"
    auto = "auto"
    require = "require"


def train(
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            metavar="DIR[:WEIGHT]",
            help="A corpus, here or at s3://…; again for more, each with its weight. A resumed run remembers its own.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run, made if missing.")] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Settings to start from: tiny (default), nano, small, base, large, paper-7b."),
    ] = None,
    vocab: Annotated[
        str | None,
        typer.Option(
            "--vocab",
            metavar="bytes|bpe:SIZE",
            help="What ids stand for: bytes (default), or a BPE baseline learnt from the corpus, like bpe:4096.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; again for more. See --settings."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Train for this many steps.")] = None,
    size: Annotated[
        str | None,
        typer.Option("--bytes", metavar="SIZE", help="Train on this many bytes: 50M, 1.5G (1000s), 64KiB (1024s)."),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option("--time-budget", metavar="TIME", help="Train for this long over all starts: 90s, 5m, 1h30m."),
    ] = None,
    resume: Annotated[
        ResumeChoice,
        typer.Option("--resume", help="A run that was saved: refuse it, go on if there is one, or go on in any case."),
    ] = ResumeChoice.never,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            metavar="RUN|CHECKPOINT",
            help="Begin with the settings, the trunk and, in the same family, the heads of another run.",
        ),
    ] = None,
    heads_only: Annotated[
        bool,
        typer.Option("--heads-only", help="With --init-from: train the drafting heads alone; what it says stays."),
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write events for TensorBoard, too, into RUN/tensorboard.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Tell what the run will take, from a few real steps; write nothing.")
    ] = False,
    settings: Annotated[bool, typer.Option("--settings", help="List all settings with their defaults.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> int:
    """Train a byte model on a corpus, or on several by weight: --corpus a/:0.7 --corpus b/:0.3.

    RUN gets config.toml, metrics.jsonl and checkpoints/. One budget ends the training: --steps, --bytes or
    --time-budget. Ctrl-C saves first and says how to go on; a second one leaves at once. A resumed run takes its
    settings from RUN; --set changes rates, intervals and budgets, but not the model. With a larger budget the
    schedule stretches: the learning rate follows the share of the present budget that is spent.
    """
    if settings:
        _print_settings(as_json)
        return console.EXIT_OK

    from bytelm.checkpoint import checkpoints
    from bytelm.errors import ConfigError
    from bytelm.ranks import joined

    with joined() as ranks:
        with ranks.agreed():
            if out is None:
                raise ConfigError("no place for the run; give --out RUN")
            named = [] if vocab is None else [f"model.vocabulary={vocab}"]
            wanted = [*_beginning(init_from, heads_only), *named, *(changes or []), *_budget(steps, size, time_budget)]
            if resume is not ResumeChoice.never and checkpoints(out):
                config, corpus = _resumed(out, preset, wanted, corpus)
            else:
                config = validated_often(_config(preset, wanted, init_from), changes or [])
            if not corpus:
                raise ConfigError("nothing to train on; give --corpus CORPUS (bytelm ingest makes one)")
            if dry and ranks.count > 1:
                raise ConfigError("--dry-run measures one process; start it without torchrun")
        if dry:
            return dry_run(config, corpus, out, resume=resume.value, as_json=as_json)
        with _board(ranks) if tensorboard else contextlib.nullcontext() as board:
            return _train(config, corpus, out, resume, ranks, board, as_json=as_json)


def _train(
    config: "RunConfig",
    corpus: list[str],
    out: Path,
    resume: ResumeChoice,
    ranks: "Ranks",
    board: "TensorBoard | None",
    *,
    as_json: bool,
) -> int:
    with console.alive("loading torch") if ranks.is_first else contextlib.nullcontext():
        from bytelm.cli.dashboard import TrainingView
        from bytelm.train import Finished, Started
        from bytelm.train import train as train_model

    started: Started | None = None
    finished: Finished | None = None
    speaks = TrainingView() if ranks.is_first else contextlib.nullcontext()
    with (
        contextlib.ExitStack() as beginning,
        speaks as view,
        StopRequest(quiet=ranks.count > 1) as should_stop,
    ):
        if ranks.is_first:
            beginning.enter_context(console.alive("making the model"))
        for event in train_model(config, corpus, out, resume=resume.value, should_stop=should_stop, ranks=ranks):
            beginning.close()
            if view is not None:
                view.show(event)
            if board is not None:
                board.show(event)
            if isinstance(event, Started):
                started = event
            elif isinstance(event, Finished):
                finished = event
    assert started is not None
    assert finished is not None
    if not ranks.is_first:
        return console.EXIT_OK
    program = "bytelm" if ranks.count == 1 else f"torchrun --nproc-per-node {ranks.on_this_machine} -m bytelm.cli"
    go_on = f"{program} train --out {shlex.quote(str(out))} --resume auto"
    if as_json:
        console.print_json(_summary(started, finished))
    else:
        console.result(console.one_line(finished.checkpoint), whole=True)
    if finished.reason == "stopped":
        console.say(f"stopped at step {finished.step}, saved; go on with: {go_on}", whole=True)
        return console.EXIT_INTERRUPTED
    if finished.step == started.step:
        console.say(f"the budget was spent before; for more: {go_on} --steps {2 * finished.step}", whole=True)
    return console.EXIT_OK


def _board(ranks: "Ranks") -> "contextlib.AbstractContextManager[TensorBoard | None]":
    """What writes for TensorBoard, on the first rank alone."""
    from bytelm.tensorboard import TensorBoard

    with ranks.agreed():
        return TensorBoard() if ranks.is_first else contextlib.nullcontext()


def _budget(steps: int | None, size: str | None, time_budget: str | None) -> list[str]:
    budgets = []
    if steps is not None:
        budgets.append(f"train.steps={steps}")
    if size is not None:
        budgets.append(f"train.bytes={parse_size(size)}")
    if time_budget is not None:
        budgets.append(f"train.time_budget_s={parse_duration(time_budget)}")
    return budgets


def _beginning(init_from: Path | None, heads_only: bool) -> list[str]:
    from bytelm.errors import ConfigError

    if heads_only and init_from is None:
        raise ConfigError("--heads-only trains heads for a model that is there; give it with --init-from RUN")
    frozen = ["train.frozen=language_model"] if heads_only else []
    return frozen if init_from is None else [f"train.init_from={json.dumps(str(init_from))}", *frozen]


def _config(preset: str | None, changes: list[str], init_from: Path | None = None) -> "RunConfig":
    """Settings of the preset, or else of what the run begins with, or else of the default preset."""
    from bytelm.config import RunConfig

    if preset is None and init_from is not None:
        from bytelm.fine_tuning import settings_from

        return settings_from(init_from, changes)
    return RunConfig.build(preset or _DEFAULT_PRESET, changes)


def validated_often(config: "RunConfig", changes: list[str]) -> "RunConfig":
    """The same settings with enough validations to draw a curve, unless their interval was asked for.

    In a short budget of time each scores fewer bytes, so that all together take about a tenth of it where the preset
    ``tiny`` trains on one slow core.
    """
    named = {change.partition("=")[0].strip() for change in changes}
    if named & {"train.validate_every_steps", "train.spread_validations"}:
        return config
    wanted = [f"train.spread_validations={_LEAST_VALIDATIONS}"]
    budget_s, most = config.train.time_budget_s, config.train.validation_bytes
    if budget_s is not None and "train.validation_bytes" not in named:
        scored = max(_LEAST_VALIDATION_BYTES, round(_VALIDATION_BYTES_A_SECOND * budget_s))
        wanted.append(f"train.validation_bytes={min(most, scored)}")
    return config.with_changes(wanted)


def _resumed(
    run: Path, preset: str | None, changes: list[str], corpus: list[str] | None
) -> "tuple[RunConfig, list[str]]":
    """The run's own settings and corpus, with what was asked for now on top."""
    from bytelm.checkpoint import read_run

    config, own_corpus = read_run(run)
    config = config.with_changes(changes) if preset is None else _config(preset, changes)
    return config, corpus or ([own_corpus] if isinstance(own_corpus, str) else own_corpus)


def _summary(started: "Started", finished: "Finished") -> dict[str, Any]:
    from bytelm.run_log import read_log

    records = read_log(started.run)
    step = next((record for record in reversed(records) if record["kind"] == "step"), {})
    validation = next((record for record in reversed(records) if record["kind"] == "validation"), {})
    return {
        "run": str(started.run),
        "checkpoint": str(finished.checkpoint),
        "finished": finished.reason,
        "step": finished.step,
        "bytes_seen": finished.bytes_seen,
        "elapsed_s": round(finished.elapsed_s, 3),
        "bytes_per_second": round(finished.bytes_seen / finished.elapsed_s, 1),
        "bits_per_byte": validation.get("bits_per_byte"),
        "bits_per_byte_by_head": validation.get("bits_per_byte_by_head"),
        "validation_step": validation.get("step"),
        "scored_bytes": validation.get("scored_bytes"),
        "train_bits_per_byte": step.get("bits_per_byte"),
        "train_bits_per_byte_by_head": step.get("bits_per_byte_by_head"),
        "parameters": started.parameters,
        "device": started.device,
        "precision": started.precision,
        "resumed_from": None if started.resumed_from is None else str(started.resumed_from),
    }


def _print_settings(as_json: bool) -> None:
    from bytelm.config import describe_settings

    rows = describe_settings()
    if as_json:
        keys = ("setting", "default", "description")
        console.print_json({"settings": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, default, description in rows:
        console.result(f"{name:<{widths[0]}}  {default:<{widths[1]}}  {description}")
